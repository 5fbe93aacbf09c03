"""The deployment checklist as commands: `dspool preflight` before a deployment, `dspool postflight` after it."""

from __future__ import annotations

import asyncio
import json as json_module
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from dspool import private_files
from dspool.cli import overview
from dspool.cli.checklist import after, before
from dspool.cli.doctor import picture
from dspool.cli.doctor.findings import Finding, fail
from dspool.cli.options import AppliedFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import EXIT_FAILED, Output, guarded
from dspool.cli.service import run_file, running_pool
from dspool.config import load_pools
from dspool.errors import ConfigError

BASELINE = "preflight.json"
"""In the state directory: what there was before, for `postflight`."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(preflight)
    app.command()(postflight)


def preflight(
    config: AppliedFile = None,
    state_dir: StateDir = None,
    paid: Annotated[
        bool, typer.Option("--paid", help="Ask each language model once, which may cost money.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.5, max=600, help="How long the benchmark runs.")] = 3.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check what is to be deployed, before it is: configuration, warm-up, store, models, capacity, monitoring.

    Loads every program in a pool of its own in this process, without Ray, and removes that again. Where a service runs,
    its figures are kept for `dspool postflight`. Exit code 1 when a check fails.
    """
    out = Output(json, debug)
    with guarded(out):
        flags = {"state_dir": None if state_dir is None else str(state_dir)}
        try:
            configs = [one.config for one in load_pools(cli=flags, file=config)]
        except ConfigError as refused:
            findings = [fail("configuration", refused.message, "nothing starts with it", "correct it")]
        else:
            findings = asyncio.run(before.examine(configs, paid=paid, seconds=seconds, environ=os.environ))
            file = run_file(config, state_dir)
            seen = {one.name: after.figures(overview.status(file, one.name)) for one in configs}
            if any(seen.values()):
                private_files.replace(file.state_dir / BASELINE, msgspec.json.encode(seen))
        _said(out, findings, {})


def postflight(
    config: AppliedFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare the running service with what `dspool preflight` saw: latency, errors, cost, memory, alerts, settings.

    Exit code 1 when a check fails.
    """
    out = Output(json, debug)
    with guarded(out):
        file = run_file(config, state_dir)
        with running_pool(file, pool) as served:
            name = served.name
            served.status()
        seen = overview.status(file, name)
        earlier = _earlier(file.state_dir / BASELINE).get(name)
        now = after.figures(seen)
        findings = after.examine(earlier, now, seen)
        _said(out, findings, {"pool": name, "before": earlier, "after": now})


def _earlier(path: Path) -> dict[str, Any]:
    try:
        read = json_module.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _said(out: Output, findings: list[Finding], more: dict[str, Any]) -> None:
    levels = {found.level for found in findings}
    result = "fail" if "fail" in levels else "warn" if "warn" in levels else "ok"
    out.result({"result": result, "checks": msgspec.to_builtins(findings), **more}, picture(findings))
    if result == "fail":
        raise typer.Exit(EXIT_FAILED)


__all__ = ["BASELINE", "add_to", "postflight", "preflight"]
