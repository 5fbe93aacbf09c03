"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dspool.cli import completion

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="YAML file with the configuration (else the one DSPOOL_CONFIG names)."
    ),
]
AppliedFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        "--config",
        "-c",
        help="YAML file with the configuration (else what DSPOOL_CONFIG names).",
    ),
]
"""Of what works on that file: `dspool apply -f pool.yaml`."""
StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", help="Where sessions and the run file are kept. Names the service to talk to."
    ),
]
Host = Annotated[
    str | None, typer.Option(help="Address to listen on; beyond loopback only with access tokens.")
]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")]
EnvFile = Annotated[
    Path | None,
    typer.Option("--env-file", help="File with NAME=VALUE lines; what the environment sets counts more."),
]
PoolName = Annotated[
    str | None,
    typer.Option(
        "--pool",
        help="Which of the service's pools; by default the one it runs.",
        autocompletion=completion.pools,
    ),
]
ProgramName = Annotated[
    str, typer.Argument(metavar="PROGRAM", help="The pool program.", autocompletion=completion.programs)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
