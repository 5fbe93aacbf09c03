"""`dspool logs`: what the processes of the pool logged, user code included."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Protocol

import typer

from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import Output
from dspool.cli.service import as_json, serving
from dspool.telemetry.log_files import MAX_LINES, LogLine, LogPage

POLL_S = 1.0


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(logs)


def logs(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    operation: Annotated[
        str | None, typer.Option(help="Only lines of this operation; its id is in every answer and error.")
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(help="Only lines of this worker: its number, or its id; by its id it may be dead."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_LINES, help="Show at most this many, the newest.")
    ] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is logged next.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what the pool's processes logged, with tracebacks: also what your programs log and print."""
    out = Output(json, debug)
    with serving(out, config, state_dir, pool) as served:
        page = served.logs(operation=operation, worker=worker, limit=limit)
        if page.truncated and not follow:
            out.progress("warning", "older lines are left out: see --limit, --operation and --worker")
        named = [f"{kind} {name}" for kind, name in (("operation", operation), ("worker", worker)) if name]
        if named and not page.lines and not follow:
            out.progress("warning", f"there is no line of {' and '.join(named)}")
        try:
            for line in page.lines:
                out.result(as_json(line), line.text)
            if follow:
                for line in following(served, page, operation, worker):
                    out.result(as_json(line), line.text)
        except KeyboardInterrupt:
            return


class LoggingPool(Protocol):
    """The blocking form of a pool, as far as this command asks it."""

    def logs(
        self,
        *,
        operation: str | None = None,
        worker: str | None = None,
        after: float = 0.0,
        limit: int = 200,
    ) -> LogPage: ...


def following(
    pool: LoggingPool, page: LogPage, operation: str | None = None, worker: str | None = None
) -> Iterator[LogLine]:
    """The lines after `page`, as they come, each once."""
    after = page.next or time.time()
    seen = set(page.lines)
    while True:
        page = pool.logs(operation=operation, worker=worker, after=after, limit=MAX_LINES)
        yield from (line for line in page.lines if line not in seen)
        after = max(after, page.next)
        seen = {line for line in (*seen, *page.lines) if line.at >= after}
        if not page.truncated:
            time.sleep(POLL_S)


__all__ = ["add_to", "following"]
