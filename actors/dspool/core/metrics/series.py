"""What is kept of a program, a worker or a whole pool: running totals, a recent window, history."""

from __future__ import annotations

from array import array

from msgspec import Struct

from dspool.core.metrics.live import Table
from dspool.core.metrics.measures import KEY_COLUMNS, Counters, Interval, Point, point_of
from dspool.core.metrics.tally import OUTCOMES, Tally
from dspool.core.metrics.window import HistoryWindow, RecentCells


class MetricsOptions(Struct, frozen=True, kw_only=True):
    """Spans, limits and goals. Take them from the pool's configuration."""

    window_s: float = 10.0
    """Span of the figures in a snapshot."""
    recent_s: float = 900.0
    """The longest window that `observed` can look back."""
    stale_after_s: float = 5.0
    """A source that was silent for so long no longer counts for levels."""
    fine_interval_s: float = 1.0
    fine_span_s: float = 3600.0
    coarse_interval_s: float = 10.0
    coarse_span_s: float = 86400.0
    latency_objective_s: float | None = None
    max_wait_s: float = 0.1
    max_queue: int = 1000
    slots_per_worker: int = 8
    pool_size: int | None = None
    """Workers that should be there until the supervisor says something else; None: as many as report."""


class SavedSeries(Struct, array_like=True):
    """An series in a checkpoint."""

    total: Tally
    busy_s: float
    rows: tuple[list[bytes], list[bytes]]


class Series:
    """All that is kept of one program, one worker, or the pool."""

    def __init__(
        self, options: MetricsOptions, columns: tuple[str, ...] = KEY_COLUMNS, recent_s: float = 0.0
    ) -> None:
        self.columns = columns
        self.total = Tally()
        self.busy_s = 0.0
        self.now = Interval()
        """What came in since the last tick."""
        self.recent: RecentCells[Interval] = RecentCells(
            Interval,
            fine_span_s=max(options.window_s, 60.0) if recent_s else options.window_s,
            coarse_interval_s=options.coarse_interval_s,
            coarse_span_s=recent_s,
        )
        self.history: HistoryWindow[Interval] = HistoryWindow(
            Interval,
            self._row,
            width=len(columns),
            fine_interval_s=options.fine_interval_s,
            fine_span_s=options.fine_span_s,
            coarse_interval_s=options.coarse_interval_s,
            coarse_span_s=options.coarse_span_s,
        )

    def _row(self, stretch: Interval) -> list[float]:
        point = point_of(stretch)
        return [getattr(point, name) for name in self.columns]

    def close(self, start: float, end: float) -> Interval:
        """End the open stretch at a tick."""
        done, self.now = self.now, Interval()
        done.duration_s = end - start
        self.recent.add(start, end, done)
        self.history.add(start, end, done)
        return done

    def counters(self) -> Counters:
        return counters_of(self.total, self.total.outcomes)

    def points(self, duration_s: float, *, now: float, wall: float) -> tuple[float, tuple[Point, ...]]:
        """(resolution, points) of the last `duration_s`; see `HistoryWindow.points`."""
        resolution, rows = self.history.points(duration_s, now=now)
        return resolution, tuple(
            # All from one wall reading: a step of the wall clock cannot reorder them.
            Point(at=end - now + wall, duration_s=length, **dict(zip(self.columns, values, strict=True)))
            for end, length, values in rows
        )

    def table(self, duration_s: float, *, after: float, shift: float) -> Table:
        """The closed rows that ended after `after`, by column; `shift` turns this clock's times into wall time."""
        resolution, (ends, _, *values) = self.history.table(duration_s, after=after)
        return Table(
            resolution_s=resolution,
            last=ends[-1] if ends else after,
            ends=array("d", (end + shift for end in ends)).tobytes(),
            columns=dict(zip(self.columns, (column.tobytes() for column in values), strict=True)),
        )

    def save(self, origin: float) -> SavedSeries:
        """For a checkpoint; times become seconds since `origin` (so they are negative)."""
        return SavedSeries(self.total, self.busy_s, self.history.dump(origin))

    def restore(self, saved: SavedSeries, origin: float) -> None:
        """Take over what `save` gave; `origin` is the same moment on this process's clock."""
        self.total.add(saved.total)
        self.busy_s += saved.busy_s
        self.history.load(saved.rows, origin)


def counters_of(total: Tally, outcomes: list[int]) -> Counters:
    """Running totals as they are published; `outcomes` may know of more operations than the tally."""
    return Counters(
        by_outcome=dict(zip(OUTCOMES, outcomes, strict=True)),
        arrivals=total.arrivals,
        retries=total.retries,
        input_tokens=total.input_tokens,
        output_tokens=total.output_tokens,
        errors_by_code=dict(total.errors),
        latency_sum_s=total.latency.sum,
        latency_count=total.latency.count,
    )
