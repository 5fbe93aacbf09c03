"""`dspool upgrade`: a running service becomes one of this installation while it is used."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from dspool.cli.apply import APPLYING, refuse, wanted_of
from dspool.cli.options import AppliedFile, Debug, Json, StateDir
from dspool.cli.output import Output, guarded
from dspool.cli.run_file import ServiceRun
from dspool.cli.service import run_file, running
from dspool.core.lifecycle.config_changes import text_of
from dspool.core.lifecycle.upgrades import Installation, why_not
from dspool.errors import ConfigError, PoolNotReady
from dspool.runtime.installed import installation

CUT_OFF: Final = "the service goes on, in part with this dspool; the same command does the rest"
UPGRADING: Final = "dspool_serve.ingress.upgrading"
"""Loaded when it is asked for, as `APPLYING` is."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(upgrade)


def upgrade(
    config: AppliedFile = None,
    state_dir: StateDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all that can be checked, and change nothing.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Have the running service served by this dspool: call it in the new environment.

    Installed beside the old one, with the same Python and Ray, at the same path on each machine. The store, the
    supervisor, the workers and the HTTP processes are replaced in turn, and no request fails. With a file, its changes
    are made as well; without one, the settings stay. What cannot be upgraded is refused, and then nothing is changed
    (exit code 2).
    """
    out = Output(json, debug)
    with guarded(out, interrupted=CUT_OFF):
        facts = _upgrade(running(run_file(config, state_dir)), config, dry_run, out)
        out.result(facts, facts["message"])


def _upgrade(run: ServiceRun, file: Path | None, dry_run: bool, out: Output) -> dict[str, Any]:
    if run.development:
        raise PoolNotReady("a `dspool dev` is started anew: Ctrl-C, then `dspool dev` of the new environment")
    # Before Ray is asked, which cannot be joined by another version of it.
    if why := _why_not_joined(run.installation, installation()):
        raise ConfigError(f"{why}; nothing was changed")
    applying, upgrading = import_module(APPLYING), import_module(UPGRADING)
    began = time.monotonic()
    with applying.joined(run.ray_address, run.ray_token_path) as record:
        if file is not None:
            wanted = wanted_of(run, file)
        else:
            wanted = list(asyncio.run(applying.running_pools(record, heals=False)).values())
        facts = {
            "before": msgspec.to_builtins(record.installation),
            "after": msgspec.to_builtins(installation()),
            "dry_run": dry_run,
            "upgraded": False,
            "changes": [],
            "took_s": 0.0,
        }
        if upgrading.is_done(record):
            more = "; `dspool apply` makes the changes of a file" if file is not None else ""
            return {**facts, "message": f"nothing to upgrade: {record.installation} serves already{more}"}
        # An earlier upgrade that was cut off is finished with this installation, and not with the one that it was for.
        todo = asyncio.run(applying.plan(record, wanted, heals=False))
        facts["changes"] = msgspec.to_builtins(todo.pools)
        if not out.as_json:
            out.result({}, f"{record.installation}\n-> {installation()}\n{text_of(todo.pools)}")
        refuse(todo.pools, facts)
        asyncio.run(upgrading.refuse(record, wanted, todo.standing, out.progress))
        if dry_run:
            return {**facts, "message": "it can be upgraded; nothing was changed"}
        asyncio.run(applying.apply(record, todo, wanted, out.progress, upgrades=True))
    took_s = round(time.monotonic() - began, 3)
    message = f"upgraded to dspool {installation().dspool} in {took_s:.1f} s"
    return {**facts, "upgraded": True, "took_s": took_s, "message": message}


def _why_not_joined(started: Installation, mine: Installation) -> str:
    """Why this process cannot join the cluster of a service that was started like that, and what to do."""
    # Which dspool serves by now, and what clients of it speak, the cluster knows.
    return why_not(started, msgspec.structs.replace(started, python=mine.python, ray=mine.ray))


__all__ = ["upgrade"]
