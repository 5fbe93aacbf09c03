"""`dspool versions` and `dspool rollback`: what a pool program was, what deployments came of, and the way back."""

from __future__ import annotations

import textwrap
from typing import Annotated, Any

import typer

from dspool.cli.layout import local_time, table
from dspool.cli.options import ConfigFile, Debug, Json, PoolName, ProgramName, StateDir
from dspool.cli.output import Output
from dspool.cli.service import as_json, serving
from dspool.core.lifecycle.versions import check_known
from dspool.messages import VersionNumbers
from dspool.supervisor.canary import Rollout

WIDTH = 80
WIDEST = 24
"""Characters of a cell: the table is to fit a terminal."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(versions)
    app.command()(rollback)


def versions(
    program: ProgramName,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the versions of a pool program, and its last deployments with what their canaries saw."""
    out = Output(json, debug)
    with serving(out, config, state_dir, pool) as served:
        programs = {one["program"]: one for one in served.programs()}
        check_known(program, programs, "to show")
        rollouts = [one for one in served.rollouts() if one.program == program]
        known = programs[program]
        facts = {"program": program, "version": known["version"], "versions": known["deployments"]}
        text = f"{version_table(known)}\n\n{rollout_table(rollouts)}"
        out.result({"pool": served.name, **facts, "rollouts": as_json(rollouts)}, text)


def rollback(
    program: ProgramName,
    version: Annotated[
        int | None, typer.Argument(metavar="[VERSION]", min=1, help="Else the one that was current before.")
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an earlier version of a pool program current again, on every worker at once.

    Operations that run finish with the version they began with.
    """
    out = Output(json, debug)
    with serving(out, config, state_dir, pool) as served:
        done = served.rollback(program, version)
        facts = {"pool": served.name, "program": program, "version": done.version}
        out.result(facts, f"{program} v{done.version} is current again on all workers")


def version_table(known: dict[str, Any]) -> str:
    """The newest first; the current one has a star."""
    rows = [
        (
            f"v{one['version']}{' *' if one['version'] == known['version'] else ''}",
            one.get("summary", "")[:WIDEST],
            one.get("source", "")[:8] or "-",
            one.get("made_by") or "-",
            one.get("by") or "-",
            local_time(one.get("made_at")),
        )
        for one in known["deployments"]
    ]
    return table(("version", "what", "source", "made by", "who", "when"), rows)


def rollout_table(rollouts: list[Rollout]) -> str:
    """What became of each; below its line the figures of both sides over the canary's time, and why."""
    if not rollouts:
        return "no deployment is remembered"
    rows = [
        (
            local_time(one.began_at),
            f"v{one.version}",
            f"{'rollback, ' if one.kind == 'rollback' else ''}{one.phase}",
            one.by or "-",
        )
        for one in rollouts
    ]
    head, *lines = table(("deployed", "version", "end", "who"), rows).splitlines()
    told = [head]
    for line, one in zip(lines, rollouts, strict=True):
        told.append(line)
        if one.new is not None and one.new.operations:
            told.append(f"  canary: {figures(one.new)}; v{one.previous} meanwhile: {figures(one.old)}")
        told += textwrap.wrap(one.reason, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(told)


def figures(numbers: VersionNumbers | None) -> str:
    if numbers is None or not numbers.operations:
        return "none"
    return f"{numbers.operations:,}, {numbers.error_rate:.1%} failed, {numbers.run_s * 1e3:,.0f} ms"
