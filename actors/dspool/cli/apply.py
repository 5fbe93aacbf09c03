"""`dspool apply`: a running service becomes what its file says while it is used."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from dspool.cli import programs
from dspool.cli.options import AppliedFile, Debug, Json, StateDir
from dspool.cli.output import Output, guarded
from dspool.cli.run_file import ServiceRun
from dspool.cli.service import run_file, running
from dspool.config import load_pools
from dspool.core.lifecycle.config_changes import PoolChange, text_of
from dspool.errors import ConfigError, PoolNotReady

APPLYING: Final = "dspool_serve.ingress.applying"
"""Loaded when it is asked for: imports point down, and this package lies below."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(apply)


def apply(
    config: AppliedFile = None,
    state_dir: StateDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Change the running service to what the file says.

    Shows what differs, setting by setting, and how each changes: in place; by new workers, each warm before an old one
    finishes and hands its sessions on; by new HTTP processes. A pool that is new in the file is started, one that is no
    longer there ends. What cannot change while the service runs is refused, and then nothing is changed (exit code 2).
    """
    out = Output(json, debug)
    with guarded(out):
        run = running(run_file(config, state_dir))
        facts = change(run, config, dry_run, out)
        out.result(facts, facts["message"])


def change(run: ServiceRun, file: Path | None, dry_run: bool, out: Output) -> dict[str, Any]:
    """Plan it, show it, and do it.

    Raises:
        ConfigError: something cannot change while the service runs; nothing was changed.
        PoolNotReady: the service is under `dspool dev`, or it does not answer.
    """
    if run.development:
        raise PoolNotReady("a `dspool dev` follows its files by itself")
    wanted = [one.config for one in load_pools(cli=run.flags, file=file)]
    for one in wanted:
        programs.find_configured(one)
    applying: Any = import_module(APPLYING)
    began = time.monotonic()
    with applying.joined(run.ray_address, run.ray_token_path) as record:
        applying.refuse_other_code(record)
        todo = asyncio.run(applying.plan(record, wanted))
        facts = {
            "changes": _facts(todo.pools),
            "new_ingress": todo.new_ingress,
            "dry_run": dry_run,
            "applied": False,
        }
        if not out.as_json:
            out.result({}, text_of(todo.pools))
        refuse(todo.pools, facts)
        if dry_run or todo.is_empty:
            said = "nothing was changed" if dry_run else "nothing to change"
            return {**facts, "took_s": 0.0, "message": said}
        asyncio.run(applying.apply(record, todo, wanted, out.progress))
    took_s = round(time.monotonic() - began, 3)
    return {**facts, "applied": True, "took_s": took_s, "message": f"applied in {took_s:.1f} s"}


def refuse(pools: list[PoolChange], facts: dict[str, Any]) -> None:
    """Raises: ConfigError: something is refused; names all of it."""
    refused = [(change.pool, one) for change in pools for one in change.refused]
    if refused:
        said = "; ".join(f"{one.setting}: {one.why}" for _, one in refused)
        raise ConfigError(
            f"cannot change while the service runs: {said}; nothing was changed",
            key=refused[0][1].setting,
            refused=[one.setting for _, one in refused],
            changes=facts["changes"],
        )


def _facts(pools: list[PoolChange]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = msgspec.to_builtins(pools)
    return found


def restart_all(run: ServiceRun, pool: str | None, out: Output) -> dict[str, Any]:
    """Replace every worker of `pool`, or of all pools and then the HTTP processes too."""
    applying: Any = import_module(APPLYING)
    began = time.monotonic()
    with applying.joined(run.ray_address, run.ray_token_path) as record:
        names = [pool] if pool is not None else list(record.pools)
        rolled = asyncio.run(applying.restart(record, names, out.progress, ingress=pool is None))
    return {"restarted": rolled, "new_ingress": pool is None, "took_s": round(time.monotonic() - began, 3)}


__all__ = ["apply", "change", "restart_all"]
