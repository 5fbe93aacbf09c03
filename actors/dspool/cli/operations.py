"""`dspool operations`: the operations that ended, searched as on the dashboard."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated, Final

import typer

from dspool.cli.layout import local_time, table
from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import Output
from dspool.cli.service import as_json, serving
from dspool.core.metrics.operation_records import MAX_PAGE, KeptOperation, OperationFilters
from dspool.errors import InvalidRequest

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(operations)


def operations(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    program: Annotated[str | None, typer.Option(help="Only of this pool program.")] = None,
    version: Annotated[int | None, typer.Option(help="Only of this version of it.")] = None,
    outcome: Annotated[
        str | None,
        typer.Option(help="ok, error, timeout, client_error, rejected, cancelled, or failed: any but ok."),
    ] = None,
    error: Annotated[
        str | None, typer.Option(help="Only with this error code, or exception that a program raised.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Only of this session.")] = None,
    principal: Annotated[str | None, typer.Option(help="Only on behalf of this caller.")] = None,
    worker: Annotated[
        str | None, typer.Option(help="Only of this worker, by its id; it may be dead.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Ended in this time (90s, 15m, 24h, 7d), or since this local time.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Ended before; as --since.")] = None,
    at_least: Annotated[float | None, typer.Option(min=0, help="Took at least this many seconds.")] = None,
    at_most: Annotated[float | None, typer.Option(min=0, help="Took at most this many seconds.")] = None,
    text: Annotated[str | None, typer.Option(help="Only with this text in the id.")] = None,
    slowest: Annotated[bool, typer.Option("--slowest", help="The slowest first, not the newest.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="Show at most this many.")] = 50,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List operations that ended, the newest first: those that the pool keeps."""
    out = Output(json, debug)
    with serving(out, config, state_dir, pool) as served:
        now = time.time()
        filters: OperationFilters = {
            "program": program,
            "version": version,
            "outcome": outcome,
            "error": error,
            "session": session,
            "principal": principal,
            "worker": worker,
            "since": None if since is None else moment(since, now, "--since"),
            "until": None if until is None else moment(until, now, "--until"),
            "at_least_s": at_least,
            "at_most_s": at_most,
            "text": text,
            "sort": "duration" if slowest else "time",
            "limit": limit,
        }
        page = served.operations(**filters)
        if json:
            for one in page.operations:
                out.result(as_json(one), "")
        elif page.operations:
            out.result(
                {},
                table(("ended", "operation", "program", "outcome", "took"), list(map(_row, page.operations))),
            )
        else:
            out.progress("", f"none of the {page.kept:,} operations that are kept fits")
        if page.next_cursor is not None and not json:
            out.progress("", f"there are more: see --limit; {page.kept:,} are kept")


def moment(text: str, now: float, option: str) -> float:
    """The time that `text` means: a duration before `now`, or a local time. Raises: InvalidRequest."""
    if match := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", text):
        return max(0.0, now - float(match[1]) * _SECONDS[match[2]])
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest(
            f"{option} is a duration (90s, 15m, 24h, 7d) or a time (2026-05-01T03:00), got {text[:50]!r}"
        ) from None


def _row(one: KeptOperation) -> tuple[str, str, str, str, str]:
    ended = local_time(one.ended_at)
    program = one.program or one.command
    version = f" v{one.version}" if one.version else ""
    outcome = one.exception or one.code or one.outcome
    return ended, one.id, program + version, outcome, f"{one.duration_s:.3f} s"
