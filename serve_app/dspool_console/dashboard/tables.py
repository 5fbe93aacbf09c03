"""History by column as JSON. Made once for all who look, so what counts is that it is made quickly."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from typing import Final

from dspool.core.metrics.measures import Table

ONLY_WITH_OPERATIONS: Final = frozenset(
    {"mean_s", "p50_s", "p95_s", "p99_s", "wait_mean_s", "wait_p95_s", "wait_p99_s", "error_rate"}
)
"""Figures that a time without operations does not have: null, and not an excellent 0."""
_number = "%.6g".__mod__
_time = "%.3f".__mod__


def encode_table(pool: str, table: Table, *, start: float | None = None, end: float | None = None) -> bytes:
    """The rows between `start` and `end` (wall-clock seconds) as the page reads them."""
    parts = [
        f'{{"pool":{json.dumps(pool)},"resolution_s":{table.resolution_s:g},',
        points(table, start=start, end=end)[1:],
    ]
    return "".join(parts).encode()


def points(table: Table, *, start: float | None = None, end: float | None = None) -> str:
    """`{"at": [...], "columns": {...}}`."""
    times = table.times()
    rows = _between(times, start, end)
    idle = _idle(table, rows)
    columns = (
        f'"{name}":[{_values(table.column(name)[rows], idle if name in ONLY_WITH_OPERATIONS else None)}]'
        for name in table.columns
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


__all__ = ["ONLY_WITH_OPERATIONS", "encode_table", "points", "rows_of"]
