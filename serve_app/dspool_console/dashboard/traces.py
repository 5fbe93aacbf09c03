"""Recent operations, read from the files that traced operations leave: nothing is recorded for the dashboard's sake.

The files are read on from where the last look ended, and only while somebody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field

from dspool.core.metrics.operation_records import KeptOperation
from dspool.errors import UnknownName
from dspool.telemetry import trace_names as names
from dspool.telemetry.pseudonyms import principal_hash
from dspool.telemetry.trace_export import DIRECTORY, newest_files
from dspool.telemetry.trace_tree import MAX_SPANS, DrawnNode, drawn

READ_BYTES: Final = 8 * 2**20
"""Read at one look, of all files; the rest of what is new is left out."""
KEPT: Final = 2000
RECENT: Final = 100
SLOWEST: Final = 50
EXAMPLES: Final = 5
LONGEST_TEXT: Final = 500
_OPERATION: Final = '"name": "operation '

Row = dict[str, Any]


class TracedOperation(Struct, frozen=True):
    """One traced operation."""

    id: str
    trace_id: str
    at: float
    """Wall-clock seconds of its beginning."""
    duration_s: float
    wait_s: float | None
    run_s: float | None
    command: str
    program: str | None
    worker: str | None
    session: str | None
    """The session's hash."""
    outcome: str
    code: str | None
    attempts: int


class FailedOperations(Struct):
    """The operations that ended with one error. `count` is of all, `traced` of those that `examples` are from."""

    code: str
    count: int
    traced: int
    last_at: float | None
    examples: list[TracedOperation]


class OperationList(Struct):
    """Operations that ended: those of the traced that stand out (only without a query; `sampling` is the share that is
    traced), and those of the kept that fit the query."""

    tracing: bool
    sampling: float
    recent: list[TracedOperation]
    slowest: list[TracedOperation]
    errors: list[FailedOperations]
    operations: list[KeptOperation] = field(default_factory=list)
    next_cursor: str | None = None
    """For the page that follows; null: this is the last one."""
    kept: int = 0
    """Operations that the pool keeps now, found or not."""
    oldest_at: float | None = None
    """When the oldest that is kept ended, in wall-clock seconds."""
    left_out: int = 0
    """Operations without a record: too many came at once, or they could not be written."""


class DrawnSpan(Struct):
    """One span; its times are seconds, `start_s` from the beginning of the first one."""

    id: str
    parent: str | None
    depth: int
    name: str
    start_s: float
    duration_s: float
    ok: bool
    process: str
    attributes: Row


class Waterfall(Struct):
    """The spans of one trace in the order in which they are drawn."""

    trace_id: str
    start: float
    """Wall-clock seconds."""
    duration_s: float
    spans: list[DrawnSpan]
    more: int
    """Spans of the trace that are left out: only the first ones are drawn."""


class OperationLog:
    """The newest traced operations of one pool."""

    def __init__(self, pool: str, state_dir: Path) -> None:
        self._pool = pool
        self._state_dir = state_dir
        self._places: dict[Path, tuple[int, int]] = {}
        """File -> its inode and how far it was read."""
        self._kept: deque[TracedOperation] = deque(maxlen=KEPT)
        self._reading = asyncio.Lock()

    async def look(self) -> list[TracedOperation]:
        """All that is kept, newest first."""
        async with self._reading:
            found = await asyncio.to_thread(self._read_on)
            if found:
                together = sorted((*self._kept, *found), key=lambda one: one.at)
                self._kept = deque(together, maxlen=KEPT)
        return list(self._kept)[::-1]

    def _read_on(self) -> list[TracedOperation]:
        """What is new in the files, at most `READ_BYTES` of it, of the files that changed last."""
        found: list[TracedOperation] = []
        places: dict[Path, tuple[int, int]] = {}
        left = READ_BYTES
        for path in newest_files(self._state_dir / DIRECTORY):
            with contextlib.suppress(OSError):
                text, places[path], read = _new_lines(path, self._places.get(path), left)
                left -= read
                found += self._operations(text)
        # Only of files that are there: others come and go with every process.
        self._places = places
        return found

    def _operations(self, text: str) -> Iterator[TracedOperation]:
        known = {(one.id, one.trace_id) for one in self._kept}
        for line in text.splitlines():
            one = operation_of(line, self._pool) if _OPERATION in line else None
            if one is not None and (one.id, one.trace_id) not in known:
                yield one


def _new_lines(path: Path, before: tuple[int, int] | None, most: int) -> tuple[str, tuple[int, int], int]:
    """The whole lines of the last `most` bytes after `before`, the place for the next time, and the bytes read."""
    with path.open("rb") as file:
        about = path.stat()
        inode, place = before or (about.st_ino, 0)
        if inode != about.st_ino or place > about.st_size:
            # Set aside and begun anew; the old one is read under its other name.
            inode, place = about.st_ino, 0
        place = max(place, about.st_size - most)
        file.seek(place)
        data = file.read(about.st_size - place)
    whole = data.rfind(b"\n") + 1
    return data[:whole].decode("utf-8", "replace"), (inode, place + whole), len(data)


def operation_of(line: str, pool: str) -> TracedOperation | None:
    """The operation whose span a line holds; None for other spans, other pools and broken lines."""
    try:
        span: Row = json.loads(line)
        about = span["attributes"]
        if not span["name"].startswith("operation ") or about.get(names.POOL) != pool:
            return None
        return TracedOperation(
            id=str(about.get(names.OPERATION_ID, "")),
            trace_id=span["trace_id"],
            at=span["start_ns"] / 1e9,
            duration_s=(span["end_ns"] - span["start_ns"]) / 1e9,
            wait_s=about.get(names.WAIT_S),
            run_s=about.get(names.RUN_S),
            command=span["name"].removeprefix("operation "),
            program=about.get(names.PROGRAM),
            worker=about.get(names.WORKER),
            session=about.get(names.SESSION),
            outcome=str(about.get(names.OUTCOME, "ok")),
            code=about.get(names.ERROR_TYPE),
            attempts=int(about.get(names.ATTEMPTS, 1)),
        )
    except (ValueError, KeyError, TypeError):
        return None


def listed(operations: list[TracedOperation], totals: dict[str, int], sampling: float) -> OperationList:
    """Recent, slowest and failed ones, from all (newest first). `totals` are the exact counts by error code."""
    slowest = sorted(operations, key=lambda one: -one.duration_s)[:SLOWEST]
    failed: dict[str, list[TracedOperation]] = {code: [] for code in totals}
    for one in operations:
        if one.outcome != "ok":
            failed.setdefault(one.code or one.outcome, []).append(one)
    errors = [
        FailedOperations(
            code,
            count=totals.get(code, len(found)),
            traced=len(found),
            last_at=found[0].at if found else None,
            examples=found[:EXAMPLES],
        )
        for code, found in failed.items()
    ]
    errors.sort(key=lambda row: -row.count)
    return OperationList(sampling > 0, sampling, operations[:RECENT], slowest, errors)


def waterfall(spans: list[Row], *, shows: Callable[[Row], bool]) -> Waterfall:
    """The trace that `spans` are of.

    `shows` decides from a span's attributes whether its content is shown. It is asked of each span: where
    `telemetry.trust_traceparent` is on, whoever sends a `traceparent` puts an operation into any trace.
    """
    if not spans:
        raise UnknownName("there is no span of this operation")
    began = min(span["start_ns"] for span in spans)
    ended = max(span["end_ns"] for span in spans)
    rows = [_drawn(node, began, shows) for node in drawn(spans)]
    duration_s = (ended - began) / 1e9
    return Waterfall(spans[0]["trace_id"], began / 1e9, duration_s, rows, max(0, len(spans) - MAX_SPANS))


def is_of(attributes: Row, principal: str | None, pool: str) -> bool:
    """Whether a span's content is that of `principal`."""
    return principal is not None and attributes.get(names.PRINCIPAL) == principal_hash(principal, pool)


def _drawn(node: DrawnNode, began: int, shows: Callable[[Row], bool]) -> DrawnSpan:
    span = node.span
    return DrawnSpan(
        span["span_id"],
        span["parent_id"],
        node.depth,
        span["name"],
        start_s=(span["start_ns"] - began) / 1e9,
        duration_s=(span["end_ns"] - span["start_ns"]) / 1e9,
        ok=span["ok"],
        process=str(span.get("resource", {}).get("service.instance.id", "")),
        attributes=_shown(span["attributes"], shows(span["attributes"])),
    )


def _shown(attributes: Row, show_content: bool) -> Row:
    return {
        key: value if isinstance(value, int | float | bool) else str(value)[:LONGEST_TEXT]
        for key, value in attributes.items()
        if key in names.OURS or (show_content and key != names.PRINCIPAL)
    }


__all__ = [
    "OperationList",
    "OperationLog",
    "TracedOperation",
    "Waterfall",
    "is_of",
    "listed",
    "operation_of",
    "waterfall",
]
