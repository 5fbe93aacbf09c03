"""History by column, as JSON or CSV. Made once for all who look, so what counts is that it is made quickly."""

from __future__ import annotations

import csv
import io
import json
import time
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from msgspec import Struct

from dspool.core.metrics.measures import Table
from dspool.errors import InvalidRequest
from dspool_serve.api.common import POOL, answer_packed, measured_pool, patiently
from dspool_serve.context import Context
from dspool_serve.costly import in_thread
from dspool_serve.http.requests import Request, number
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

ONLY_WITH_OPERATIONS: Final = frozenset(
    {"mean_s", "p50_s", "p95_s", "p99_s", "wait_mean_s", "wait_p95_s", "wait_p99_s", "error_rate"}
)
"""Figures that a time without operations does not have: null, and not an excellent 0."""
LONGEST_S: Final = 604_800.0
LATEST_S: Final = 1e11
RANGE: Final = ("range", "from", "to")
_number = "%.6g".__mod__
_time = "%.3f".__mod__


class HistoryTable(Struct):
    """Figures over time, oldest first; each column has a value for each time, null where nothing was measured."""

    pool: str
    resolution_s: float
    at: list[float]
    """Wall-clock seconds."""
    columns: dict[str, list[float | None]]


class Range(NamedTuple):
    """An interval of history. `start` and `end` are wall-clock seconds; both None: the last `seconds`."""

    seconds: float
    start: float | None = None
    end: float | None = None


async def get_table(context: Context, request: Request) -> Response:
    parameters = frozenset({*RANGE, "program", "slot", "worker", "columns", "format", "resolution"})
    query = request.query(parameters)
    pool = measured_pool(context, request)
    asked = range_of(query)
    program, worker = query.get("program"), query.get("worker")
    ordinal = int(number(query, "slot", 0, least=0, most=1e6)) if "slot" in query else None
    resolution_s = number(query, "resolution", 0.0, least=0.0, most=LONGEST_S)
    # Each once: a column that is named a thousand times would be written a thousand times.
    names = tuple(dict.fromkeys(query["columns"].split(","))) if "columns" in query else None
    form = query.get("format", "json")
    if form not in ("json", "csv"):
        raise InvalidRequest("format is json or csv", field="format")

    async def make() -> bytes:
        table = await pool.table(
            asked.seconds, program=program, ordinal=ordinal, worker=worker, resolution_s=resolution_s
        )
        if names is not None and (unknown := [name for name in names if name not in table.columns]):
            known = ", ".join(sorted(table.columns))
            raise InvalidRequest(f"there is no column {unknown[0][:50]!r}; known: {known}", field="columns")
        encoded = encode_csv if form == "csv" else encode_table
        return await in_thread(lambda: encoded(pool.name, table, names, start=asked.start, end=asked.end))

    key = (
        "table",
        pool.name,
        asked if asked.start is None else asked[1:],
        program,
        ordinal,
        worker,
        names,
        form,
        resolution_s,
    )

    async def once() -> bytes:
        made: bytes = await context.service.answers.get(key, lambda: patiently(make()))
        return made

    # A day of all columns takes a second. Everybody has a turn of their own, also for what another asked before: who
    # joined another's question would wait behind all that this one asked.
    body = await context.service.costly.run(request.principal, once)
    return Response(200, body, b"text/csv; charset=utf-8") if form == "csv" else answer_packed(request, body)


def range_of(query: dict[str, str], default_s: float = 300.0) -> Range:
    """The interval that a request names. Raises: InvalidRequest."""
    if "from" not in query and "to" not in query:
        # Whole seconds: so many different answers are kept, and no more.
        return Range(float(round(number(query, "range", default_s, least=1.0, most=LONGEST_S))))
    now = time.time()
    end = number(query, "to", now, least=0.0, most=LATEST_S)
    start = number(query, "from", end - default_s, least=0.0, most=LATEST_S)
    if start >= end:
        raise InvalidRequest("from must be before to", field="from")
    return Range(min(LONGEST_S, max(1.0, now - start)), start, end)


def encode_table(
    pool: str,
    table: Table,
    names: Sequence[str] | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
) -> bytes:
    """A `HistoryTable` of the rows between `start` and `end` (wall-clock seconds) as JSON."""
    rest = points(table, names, start=start, end=end)[1:]
    return f'{{"pool":{json.dumps(pool)},"resolution_s":{table.resolution_s:g},{rest}'.encode()


def encode_csv(
    pool: str,
    table: Table,
    names: Sequence[str] | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
) -> bytes:
    at, columns = rows_of(table, table.columns if names is None else names, start=start, end=end)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["time_utc", "time_s", *columns])
    for row, when in enumerate(at):
        values = ("" if column[row] is None else f"{column[row]:.9g}" for column in columns.values())
        writer.writerow([_utc(when), f"{when:.3f}", *values])
    return text.getvalue().encode()


def points(
    table: Table,
    names: Iterable[str] | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
) -> str:
    """`{"at": [...], "columns": {...}}`."""
    times = table.times()
    rows = _between(times, start, end)
    idle = _idle(table, rows)
    columns = (
        f'"{name}":[{_values(table.column(name)[rows], idle if name in ONLY_WITH_OPERATIONS else None)}]'
        for name in (table.columns if names is None else names)
    )
    return f'{{"at":[{",".join(map(_time, times[rows]))}],"columns":{{{",".join(columns)}}}}}'


def rows_of(
    table: Table, names: Iterable[str], *, start: float | None = None, end: float | None = None
) -> tuple[list[float], dict[str, list[float | None]]]:
    """(times, values by name) as numbers; as in `points`, None where there was nothing to measure."""
    times = table.times()
    rows = _between(times, start, end)
    idle = _idle(table, rows)
    found: dict[str, list[float | None]] = {}
    for name in names:
        values: list[float | None] = (
            list(table.column(name)[rows]) if name in table.columns else [None] * len(times[rows])
        )
        if name in ONLY_WITH_OPERATIONS and idle:
            values = [None if nothing else value for value, nothing in zip(values, idle, strict=True)]
        found[name] = values
    return list(times[rows]), found


def _between(times: array[float], start: float | None, end: float | None) -> slice:
    first, last = 0, len(times)
    if start is not None:
        first = next((at for at, time in enumerate(times) if time >= start), last)
    if end is not None:
        last = next((at for at, time in enumerate(times) if time > end), last)
    return slice(first, max(first, last))


def _idle(table: Table, rows: slice) -> list[bool]:
    return [not ended for ended in table.column("operations")[rows]] if "operations" in table.columns else []


def _values(values: array[float], idle: list[bool] | None) -> str:
    if not any(values) and (idle is None or not any(idle)):
        return ",".join("0" * len(values))
    if not idle:
        return ",".join(map(_number, values))
    return ",".join(
        "null" if nothing else _number(value) for value, nothing in zip(values, idle, strict=True)
    )


def _utc(at: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1000):03d}Z"


RANGE_QUERY: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("range", {"type": "number", "minimum": 1, "maximum": LONGEST_S, "description": "the last seconds"}),
    ("from", {"type": "number", "description": "wall-clock seconds; in place of range"}),
    ("to", {"type": "number", "description": "wall-clock seconds; now by default"}),
)

ROUTES: Final = (
    Route(
        "GET",
        POOL + "/metrics/table",
        get_table,
        "Figures over time by column, of the pool, a program or a worker; as JSON or CSV",
        HistoryTable,
        problems=("invalid_request", "not_allowed", "queue_full", "pool_not_ready", "worker_lost"),
        query=(
            *RANGE_QUERY,
            ("program", {"type": "string"}),
            ("slot", {"type": "integer", "minimum": 0}),
            ("worker", {"type": "string", "description": "a worker's id, also of one that ended lately"}),
            ("columns", {"type": "string", "description": "names with commas between; all by default"}),
            ("format", {"type": "string", "enum": ["json", "csv"], "default": "json"}),
            (
                "resolution",
                {"type": "number", "minimum": 0, "description": "least seconds between two points"},
            ),
        ),
        role="reader",
    ),
)
