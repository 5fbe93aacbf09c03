"""Measured intervals: busy integrals, recent windows, and history in bounded memory.

All times are monotonic seconds from the caller; wall time enters only when points leave, from one reading
for all, so that a step of the wall clock can never reorder them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, Self, TypeVar


class Cell(Protocol):
    """What happened in an interval. `add` makes it what happened in both intervals."""

    def add(self, other: Self, /) -> None: ...


C = TypeVar("C", bound=Cell)


class BusyIntegral:
    """Slot-seconds spent busy, integrated: utilization = `total` / slot-seconds available, never a sample."""

    __slots__ = ("_since", "_total", "peak", "running")

    def __init__(self, now: float) -> None:
        self._since = now
        self._total = 0.0
        self.running = 0
        self.peak = 0
        """The most that ran at once since the last `take_peak`."""

    def change(self, by: int, now: float) -> None:
        """`by` slots more (or fewer) are busy from `now` on."""
        if now > self._since:
            self._total += self.running * (now - self._since)
            self._since = now
        self.running += by
        if self.running > self.peak:
            self.peak = self.running

    def total(self, now: float) -> float:
        """Slot-seconds since the beginning."""
        return self._total + self.running * max(0.0, now - self._since)

    def take_peak(self) -> int:
        peak, self.peak = self.peak, self.running
        return peak


class RecentCells(Generic[C]):
    """Cells of the last `fine_span_s` one by one, and of the last `coarse_span_s` merged into coarser ones.

    `over(duration)` adds up what lies in the last `duration` seconds, and returns how long that really was.
    """

    def __init__(
        self,
        empty: Callable[[], C],
        *,
        fine_span_s: float,
        coarse_interval_s: float = 0.0,
        coarse_span_s: float = 0.0,
    ) -> None:
        self._empty = empty
        self._fine_span = fine_span_s
        self._coarse_interval = coarse_interval_s
        self._coarse_span = coarse_span_s
        # (start, end, measured seconds, cell); a merged cell may span a gap, so its length stands by itself.
        self._fine: deque[tuple[float, float, float, C]] = deque()
        self._coarse: deque[tuple[float, float, float, C]] = deque()

    def add(self, start: float, end: float, cell: C) -> None:
        """Cells come in order of time; neither side changes `cell` afterwards."""
        self._fine.append((start, end, end - start, cell))
        while self._fine[0][1] <= end - self._fine_span:
            self._fine.popleft()
        if not self._coarse_span:
            return
        if self._coarse and end - self._coarse[-1][0] <= self._coarse_interval * 1.001:
            first_start, _, length, merged = self._coarse[-1]
            merged.add(cell)
            self._coarse[-1] = (first_start, end, length + end - start, merged)
        else:
            merged = self._empty()
            merged.add(cell)
            self._coarse.append((start, end, end - start, merged))
            while self._coarse[0][1] <= end - self._coarse_span:
                self._coarse.popleft()

    def over(self, duration_s: float, *, now: float, since: float | None = None) -> tuple[C, float]:
        """The sum of the cells of the last `duration_s` seconds (from `since` on, if that is later), and its length.

        A cell that only partly lies inside counts whole if more than half of it does, and so does its length:
        counts and seconds always belong together. (empty cell, 0.0) when there is nothing.
        """
        oldest = now - duration_s if since is None else max(now - duration_s, since)
        cells = self._fine if duration_s <= self._fine_span or not self._coarse_span else self._coarse
        total, span = self._empty(), 0.0
        for start, end, length, cell in reversed(cells):
            if (start + end) / 2 < oldest:
                break
            total.add(cell)
            span += length
        return total, span


class Columns:
    """The last `capacity` rows of numbers, by column, in compact arrays: 4 bytes a number, 16 for the time."""

    def __init__(self, width: int, capacity: int) -> None:
        if width < 1 or capacity < 1:
            raise ValueError(f"need at least one column and one row, got {width} x {capacity}")
        self._capacity = capacity
        self._next = 0
        """Where the next row goes once all rows are in use."""
        self._end = array("d")
        self._length = array("d")
        self._values = [array("f") for _ in range(width)]

    def __len__(self) -> int:
        return len(self._end)

    def append(self, end: float, length: float, values: Sequence[float]) -> None:
        if len(self._end) < self._capacity:
            self._end.append(end)
            self._length.append(length)
            for column, value in zip(self._values, values, strict=True):
                column.append(value)
            return
        at = self._next
        self._end[at] = end
        self._length[at] = length
        for column, value in zip(self._values, values, strict=True):
            column[at] = value
        self._next = (at + 1) % self._capacity

    def since(self, oldest: float) -> list[tuple[float, float, tuple[float, ...]]]:
        """(end, length, values) of the rows that ended after `oldest`, oldest first."""
        size, first = len(self._end), self._next
        skip = bisect_right(range(size), oldest, key=lambda i: self._end[(first + i) % size])
        rows = ((first + i) % size for i in range(skip, size))
        return [
            (self._end[at], self._length[at], tuple(column[at] for column in self._values)) for at in rows
        ]

    def table(self, oldest: float) -> list[array[float]]:
        """As `since`, but by column: ends, lengths and then each column's values, in order of time."""
        size, first = len(self._end), self._next
        skip = bisect_right(range(size), oldest, key=lambda i: self._end[(first + i) % size])
        # Rows lie in two pieces, the older one behind the place where the next row goes.
        older = slice(first + skip, None)
        newer = slice(max(0, first + skip - size), first)
        return [column[older] + column[newer] for column in (self._end, self._length, *self._values)]

    def dump(self, origin: float) -> list[bytes]:
        """All rows as the bytes of each column, oldest row first, times since `origin`."""
        columns = [
            (column[self._next :] + column[: self._next])
            for column in (self._end, self._length, *self._values)
        ]
        columns[0] = array("d", (end - origin for end in columns[0]))
        return [column.tobytes() for column in columns]

    def load(self, columns: list[bytes], origin: float) -> None:
        """Replace all rows by what `dump` returned; `origin` is the same moment on this process's clock.

        Raises:
            ValueError: it has another number of columns.
        """
        if len(columns) != 2 + len(self._values):
            raise ValueError(f"{len(columns) - 2} columns were dumped, {len(self._values)} are wanted")
        self._end = array("d", (origin + before for before in array("d", columns[0])[-self._capacity :]))
        self._length = array("d", columns[1])[-self._capacity :]
        self._values = [array("f", column)[-self._capacity :] for column in columns[2:]]
        self._next = 0


class HistoryWindow(Generic[C]):
    """Rows of numbers for charts: fine for a short span, coarse for longer ones, bounded memory for each.

    `view(cell)` makes the row. Coarse rows come from merged cells, never from averages of fine rows.
    """

    def __init__(
        self,
        empty: Callable[[], C],
        view: Callable[[C], Sequence[float]],
        *,
        width: int,
        fine_interval_s: float = 1.0,
        fine_span_s: float = 3600.0,
        coarse_interval_s: float = 10.0,
        coarse_span_s: float = 86400.0,
        long_interval_s: float = 300.0,
        long_span_s: float = 604800.0,
    ) -> None:
        self._levels = [
            _Level(empty, view, width, fine_interval_s, fine_span_s),
            _Level(empty, view, width, coarse_interval_s, coarse_span_s),
            _Level(empty, view, width, long_interval_s, long_span_s),
        ]

    def add(self, start: float, end: float, cell: C) -> None:
        for level in self._levels:
            level.add(start, end, cell)

    def points(
        self, duration_s: float, *, now: float
    ) -> tuple[float, list[tuple[float, float, tuple[float, ...]]]]:
        """(interval, rows) of the last `duration_s`: (end, length, values) each, oldest first.

        The finest rows whose span reaches back that far; more than the longest span gives all
        there is. A time without measurements is a gap: `end - length` is after the row before.

        Raises:
            ValueError: `duration_s` is not a positive number.
        """
        if not duration_s > 0:
            raise ValueError(f"a history has a positive duration, got {duration_s}")
        level = self._level(duration_s)
        return level.interval, level.since(now - duration_s)

    def table(
        self, duration_s: float, *, after: float, resolution_s: float = 0.0
    ) -> tuple[float, list[array[float]]]:
        """(interval, ends, lengths and values by column) of the closed rows that ended after `after`.

        `duration_s` chooses the rows, as in `points`; they are at least `resolution_s` apart, as far as there are such.
        """
        level = self._level(duration_s, resolution_s)
        return level.interval, level.rows.table(after)

    def _level(self, duration_s: float, resolution_s: float = 0.0) -> _Level[C]:
        fit = (one for one in self._levels if one.span >= duration_s and one.interval >= resolution_s)
        return next(fit, self._levels[-1])

    def dump(self, origin: float) -> list[list[bytes]]:
        """All closed rows as plain bytes, the finest first, times since `origin`; for a checkpoint."""
        return [level.rows.dump(origin) for level in self._levels]

    def load(self, levels: list[list[bytes]], origin: float) -> None:
        """Put back what `dump` returned, before any `add`; `origin` is the same moment on this process's clock.

        What an earlier version dumped has fewer levels.
        """
        for level, rows in zip(self._levels, levels, strict=False):
            level.rows.load(rows, origin)


class _Level(Generic[C]):
    """One resolution: an open cell, and the rows of the closed ones."""

    def __init__(
        self,
        empty: Callable[[], C],
        view: Callable[[C], Sequence[float]],
        width: int,
        interval: float,
        span: float,
    ) -> None:
        self._empty = empty
        self._view = view
        self.interval, self.span = interval, span
        self.rows = Columns(width, max(1, round(span / interval)))
        self._open: tuple[float, float, C] | None = None
        """(end, measured seconds, cell)"""

    def add(self, start: float, end: float, cell: C) -> None:
        if self._open is not None and start - self._open[0] > 0.001 * self.interval:
            self._close()  # a gap: no row spans it
        length, merged = (0.0, self._empty()) if self._open is None else self._open[1:]
        merged.add(cell)
        length += end - start
        self._open = (end, length, merged)
        # A row closes at the tick nearest to the interval: ticks jitter, and a row must not wait for the next one and
        # double its length because a tick came a little early.
        if length + (end - start) / 2 >= self.interval:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            end, length, cell = self._open
            self.rows.append(end, length, self._view(cell))
            self._open = None

    def since(self, oldest: float) -> list[tuple[float, float, tuple[float, ...]]]:
        rows = self.rows.since(oldest)
        if self._open is not None and self._open[0] > oldest:
            end, length, cell = self._open
            rows.append((end, length, tuple(self._view(cell))))
        return rows
