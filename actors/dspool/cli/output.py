"""What the commands print: for people on a terminal, plain for logs, JSON for programs; and exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from dspool.cli.layout import folded, table
from dspool.errors import CallerError, ConfigError, PoolError

EXIT_FAILED = 1
"""It was tried and went wrong."""
EXIT_REFUSED = 2
"""Refused before anything was done: bad flag or configuration, port in use, already running."""
EXIT_NOT_RUNNING = 3
"""No service runs from the state directory."""
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
"""Whoever read the output is gone, as in `dspool events | head -1`: what a shell says of SIGPIPE."""


class Output:
    """Prints the progress and the result of one command.

    With `as_json`, progress and result are JSON lines on stdout and errors are one JSON line on stderr.
    """

    def __init__(self, as_json: bool = False, debug: bool = False) -> None:
        self.as_json = as_json
        self.debug = debug
        self._stdout = sys.stdout
        self._console = Console(file=self._stdout, highlight=False, soft_wrap=True)
        self._silent = False
        self._waiting = False

    def progress(self, step: str, text: str) -> None:
        if self._silent:
            return
        if self._waiting:
            # The line that said what is waited for.
            self._waiting = False
            self._console.file.write("\r\x1b[2K")
        if self.as_json:
            self._line({"event": "progress", "step": step, "text": text})
        elif self._console.is_terminal:
            if step == "wait":
                self._waiting = True
                self._console.print(f"    [dim]{text[: self._console.width - 6]}[/]", end="")
                self._console.file.flush()
                return
            colour = "yellow" if step == "warning" else "green" if step == "ready" else "cyan"
            self._console.print(f"[{colour}]{step:>8}[/]  ", end="")
            self._console.print(text, markup=False)
        else:
            print(f"{step:>8}  {text}", file=self._stdout, flush=True)

    def ready(self, facts: dict[str, Any]) -> None:
        """The service runs. With JSON this is the last line: what follows is about ending."""
        if self.as_json:
            self._line({"event": "ready", **facts})
            self._silent = True
            return
        self.progress("", f"dashboard: {facts['url']}/dashboard")
        if "ray_dashboard" in facts:
            asks = "it asks for a token, which `dspool open --ray` prints"
            self.progress("", f"Ray's dashboard: {facts['ray_dashboard']} ({asks})")
        self.progress("", f"try: curl {facts['url']}/v1/pools/{facts['pool']}")
        self.progress("", "Ctrl-C lets running operations finish and stops")

    def result(self, facts: dict[str, Any], text: str, *, whole_lines: bool = False) -> None:
        """`whole_lines` are printed as they are, whatever the terminal's width."""
        if self.as_json:
            self._line(facts)
        else:
            print(text if whole_lines else folded(text), file=self._stdout, flush=True)

    def error(self, failed: PoolError) -> None:
        if self.as_json:
            self._line({"event": "error", **failed.to_wire()}, sys.stderr)
        else:
            operation_id = failed.details.get("operation_id")
            operation = f" (operation {operation_id})" if operation_id else ""
            print(folded(f"Error: {failed}{operation}"), file=sys.stderr, flush=True)

    table = staticmethod(table)

    def _line(self, facts: dict[str, Any], to: Any = None) -> None:
        print(json.dumps(facts), file=to or self._stdout, flush=True)


@contextmanager
def guarded(out: Output, *, interrupted: str = "") -> Iterator[None]:
    """Turns an error into one line and an exit code; a traceback only with `--debug`. So does it with Ctrl-C where
    `interrupted` says how things stand then."""
    try:
        yield
    except PoolError as failed:
        if out.debug:
            raise
        out.error(failed)
        raise typer.Exit(exit_code(failed)) from None
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        if not interrupted:
            raise
        out.error(PoolError(f"interrupted: {interrupted}"))
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except Exception as unexpected:
        if out.debug:
            raise
        kind = type(unexpected).__name__
        first = str(unexpected).strip().partition("\n")[0][:300]
        out.error(PoolError(f"{kind}: {first} (--debug shows the traceback)"))
        raise typer.Exit(EXIT_FAILED) from None


def exit_code(failed: PoolError) -> int:
    if failed.details.get("running") is False:
        return EXIT_NOT_RUNNING
    return EXIT_REFUSED if isinstance(failed, (ConfigError, CallerError)) else EXIT_FAILED
