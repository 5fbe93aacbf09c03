"""`dspool errors`: what operations fail with, by what it is, as the dashboard's page has it."""

from __future__ import annotations

from typing import Annotated

import typer

from dspool.cli import completion
from dspool.cli.layout import local_time, many
from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import Output
from dspool.cli.service import as_json, serving
from dspool.core.metrics.error_groups import ErrorGroup


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(errors)


def errors(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    program: Annotated[
        str | None, typer.Option(help="Only of this pool program.", autocompletion=completion.programs)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many kinds.")] = 20,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what operations fail with: by exception and line, or by the model's error.

    The most frequent of the last minute come first. Each names an operation; `dspool logs --operation ID` shows its
    traceback.
    """
    out = Output(json, debug)
    with serving(out, config, state_dir, pool) as served:
        kept = served.errors()
        found = sorted(
            (one for one in kept.errors if program in (None, one.program)),
            key=lambda one: (-one.lately, -one.last),
        )
        facts = {"pool": served.name, "errors": as_json(found[:limit]), "forgotten": kept.forgotten}
        out.result(facts, errors_text(served.name, found, limit, program, kept.forgotten))


def errors_text(
    pool: str, found: list[ErrorGroup], limit: int, program: str | None, forgotten: int = 0
) -> str:
    """A few lines for each kind."""
    if not found:
        of = "" if program is None else f" of {program}"
        return f"no operation{of} in pool {pool} has failed since its metrics began"
    told = [group_text(one) for one in found[:limit]]
    if len(found) > limit:
        told.append(f"there are {len(found) - limit} more: see --limit")
    if forgotten:
        told.append(f"{many(forgotten)} older kinds are no longer kept")
    return "\n\n".join(told)


def group_text(one: ErrorGroup) -> str:
    """What it is; how often, since when; where; an operation to look at."""
    lines = [f"{one.text}, in {one.program}"]
    now = f"{many(one.lately)} in the last minute" if one.lately else "none in the last minute"
    lines.append(
        f"  {now}, {many(one.count)} in all; since {local_time(one.since)}, last {local_time(one.last)}"
    )
    where = [f"v{version} ({many(number)})" for version, number in one.versions.items()]
    where += [f"{worker} ({many(number)})" for worker, number in one.workers.items()]
    if where:
        lines.append(f"  {', '.join(where)}")
    if one.operations:
        lines.append(f"  dspool logs --operation {one.operations[0]}")
    return "\n".join(lines)


__all__ = ["add_to", "errors_text"]
