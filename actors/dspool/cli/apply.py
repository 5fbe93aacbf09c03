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
from dspool.config import PoolConfig, load_pools
from dspool.core.lifecycle.config_changes import PoolChange, text_of
from dspool.core.lifecycle.gradual_watch import HOLD_S, STEPS, Course, course_of
from dspool.errors import ConfigError, PoolNotReady

APPLYING: Final = "dspool_serve.ingress.applying"
ALERTS: Final = "dspool_console.alerts.watch"
"""Both are loaded when they are asked for: imports point down, and this package lies below."""
CUT_OFF: Final = (
    "what was changed stays, and workers go on being replaced; the same command does the rest, and with the file from "
    "before it takes it back"
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(apply)


def apply(
    config: AppliedFile = None,
    state_dir: StateDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    gradual: Annotated[
        bool,
        typer.Option(
            "--gradual",
            help="Where workers are replaced, send a part of the operations to new ones first, then more, and go back "
            "if they do worse.",
        ),
    ] = False,
    steps: Annotated[
        str | None,
        typer.Option(metavar="PERCENT,...", help=f"Parts to go by, the last is 100 (default {STEPS})."),
    ] = None,
    hold_s: Annotated[
        float | None,
        typer.Option(help=f"Seconds to look at each part but the last (default {HOLD_S:g})."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Change the running service to what the file says.

    Shows what differs, setting by setting, and how each changes: in place; by new workers, each warm before an old one
    finishes and hands its sessions on; by new HTTP processes. A pool that is new in the file is started, one that is no
    longer there ends. What cannot change while the service runs is refused, and then nothing is changed (exit code 2).
    With --gradual a pool goes back by itself (exit code 1) when an alert holds that did not before, or when the new
    workers fail more than those before; Ctrl-C goes back, too.
    """
    out = Output(json, debug)
    with guarded(out, interrupted=CUT_OFF):
        course = _course(gradual, steps, hold_s)
        run = running(run_file(config, state_dir))
        facts = change(run, config, dry_run, out, course)
        out.result(facts, facts["message"])


def _course(gradual: bool, steps: str | None, hold_s: float | None) -> Course | None:
    """Raises: ConfigError: what was said is no course; nothing was changed."""
    if gradual:
        return course_of(STEPS if steps is None else steps, HOLD_S if hold_s is None else hold_s)
    for option, value in (("--steps", steps), ("--hold-s", hold_s)):
        if value is not None:
            raise ConfigError(f"{option} is for --gradual, got {value!r} without it")
    return None


def change(
    run: ServiceRun, file: Path | None, dry_run: bool, out: Output, course: Course | None = None
) -> dict[str, Any]:
    """Plan it, show it, and do it, step by step where there is a `course`.

    Raises:
        ConfigError: something cannot change while the service runs; nothing was changed.
        ChangeWentBack: a pool went back by itself.
        PoolNotReady: the service is under `dspool dev`, or it does not answer.
    """
    if run.development:
        raise PoolNotReady("a `dspool dev` follows its files by itself")
    wanted = wanted_of(run, file)
    applying: Any = import_module(APPLYING)
    began = time.monotonic()
    with applying.joined(run.ray_address, run.ray_token_path) as record:
        applying.refuse_other_code(record)
        todo = asyncio.run(applying.plan(record, wanted, heals=not dry_run))
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
        gradually = None
        if course is not None:
            watch: Any = import_module(ALERTS)
            gradually = applying.Gradually(course, lambda pool: watch.AlertWatch(pool, None))
        done = asyncio.run(applying.apply(record, todo, wanted, out.progress, gradually))
    took_s = round(time.monotonic() - began, 3)
    said = f"applied in {took_s:.1f} s"
    if course is not None:
        facts["gradual"] = {"steps": msgspec.to_builtins(done), "went_back": False, "reason": ""}
        said += "" if done else "; nothing of it needed steps"
    return {**facts, "applied": True, "took_s": took_s, "message": said}


def wanted_of(run: ServiceRun, file: Path | None) -> list[PoolConfig]:
    """The pools as the file has them, or the one that DSPOOL_CONFIG names.

    Raises:
        ConfigError: there is none, or it says nothing: everything would become the defaults.
    """
    loaded = load_pools(cli=run.flags, file=file)
    # The name of a pool below `pools` comes from no key of its own.
    if not any(
        source.startswith("file:") or (key, source) == ("name", "code")
        for one in loaded
        for key, source in one.sources.items()
    ):
        raise ConfigError(
            "no file says anything, and everything would become the defaults: name one, as in dspool apply -f "
            "pool.yaml; nothing was changed"
        )
    for one in loaded:
        programs.find_configured(one.config)
    return [one.config for one in loaded]


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


__all__ = ["apply", "change", "restart_all", "wanted_of"]
