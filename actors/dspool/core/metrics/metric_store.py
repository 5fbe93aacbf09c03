"""The books of one pool: who ended how many operations, by program and by worker, and when."""

from __future__ import annotations

from array import array
from typing import Final

from msgspec import Struct, field

from dspool.core.metrics.measures import (
    GAUGES,
    KEY_COLUMNS,
    POOL_COLUMNS,
    Counters,
    Interval,
    Point,
    Table,
    point_of,
)
from dspool.core.metrics.recorder import ClientDelta, WorkerDelta
from dspool.core.metrics.sources import Source, Sources
from dspool.core.metrics.tally import MAX_PROGRAMS, OTHER, OUTCOMES, REJECTED, Tally
from dspool.core.metrics.window import HistoryWindow, RecentCells

MAX_WORKERS: Final = 256
"""Workers followed one by one; those beyond are counted together as ordinal -1."""
COLUMNS: Final = [*POOL_COLUMNS, *KEY_COLUMNS]
"""What histories hold; a checkpoint with other columns is of another version."""

_RUNNING, _SESSIONS = GAUGES.index("running"), GAUGES.index("sessions")


class Checkpoint(Struct):
    """A store as plain data. `wall` is the wall time of its last tick."""

    pool: str
    columns: list[str]
    wall: float
    outcomes: list[int]
    losses: list[int]
    # Its name in the checkpoints that were written before.
    sources: dict[str, tuple[int, list[int]]] = field(name="reporters")
    whole: SavedSeries
    programs: dict[str, SavedSeries]
    workers: dict[int, SavedSeries] = field(name="slots")


class MetricStore:
    """Series of the pool, its programs and its workers; bounded. `outcomes` is exact, whatever was lost."""

    def __init__(self, options: MetricsOptions) -> None:
        self._options = options
        self.sources = Sources(stale_after_s=options.stale_after_s, pool_size=options.pool_size)
        self.whole = Series(options, POOL_COLUMNS, options.recent_s)
        self.programs: dict[str, Series] = {}
        self.workers: dict[int, Series] = {}
        """By ordinal: a worker that takes over the ordinal of a dead one goes on counting."""
        self.outcomes = [0] * len(OUTCOMES)
        """Ended operations of the pool, from the clients' running totals."""
        self.dropped = self.unattributed = self.duplicates = self.foreign = 0

    def client(self, source: Source, delta: ClientDelta, now: float, *, new: bool) -> None:
        """Count what a client tells; `new` if it was not known before."""
        detail = [0] * len(OUTCOMES)
        for program, tally in delta.programs.items():
            series = self.program(program)
            series.now.tally.add(tally)
            series.total.add(tally)
            for index, number in enumerate(tally.outcomes):
                detail[index] += number
            served = tally.served
            if served:
                source.served[program] = source.served.get(program, 0) + served
        if new and self.sources.forgot:
            # Perhaps one that was forgotten and comes back: its earlier operations are in the counters already.
            ended = detail
        else:
            before = source.totals or [0] * len(OUTCOMES)
            ended = [have - had for have, had in zip(delta.totals, before, strict=True)]
        for index, number in enumerate(ended):
            self.outcomes[index] += number
        # More in the totals than in the details: a delta was lost, or came while this actor was not there.
        self.unattributed += max(0, sum(ended) - sum(detail))
        source.totals = list(delta.totals)
        self.dropped += delta.dropped
        if new or now - delta.interval_s - source.seen_at > delta.interval_s / 2:
            source.was_silent = True
        source.covered_s += delta.interval_s
        source.peak_demand = max(source.peak_demand, delta.peak_demand)

    def worker(self, delta: WorkerDelta) -> None:
        """Count what a worker tells: busy time and runs. Operations are the clients' to count."""
        series = self.worker_series(delta.ordinal)
        series.total.add(delta.tally)
        series.busy_s += delta.busy_s
        self.dropped += delta.dropped
        open_ = series.now
        open_.tally.add(delta.tally)
        open_.throughput += delta.tally.served
        open_.busy_s += delta.busy_s
        open_.capacity_s += delta.interval_s * delta.slots
        # What a worker refused (a session that lives elsewhere) did not run.
        open_.runs += delta.tally.ended - delta.tally.outcomes[REJECTED]
        open_.run_s += delta.tally.run_s

    def program(self, name: str) -> Series:
        """The series of a program, or of all beyond the bound."""
        if name not in self.programs and len(self.programs) >= MAX_PROGRAMS:
            name = OTHER
        series = self.programs.get(name)
        return series or self.programs.setdefault(name, Series(self._options))

    def worker_series(self, ordinal: int) -> Series:
        """The series of a worker, or of all beyond the bound."""
        if ordinal not in self.workers and len(self.workers) >= MAX_WORKERS:
            ordinal = -1
        series = self.workers.get(ordinal)
        return series or self.workers.setdefault(ordinal, Series(self._options))

    def gather(self, start: float, now: float) -> Interval:
        """At a tick: put together what the pool did since `start`. Returns the recent window that ends with it."""
        seconds = now - start
        whole = self.whole.now
        whole.peak_demand, served = self.sources.take_interval(seconds, now)
        for program, number in served:
            self.program(program).now.throughput += number
        for series in self.programs.values():
            whole.tally.add(series.now.tally)
            whole.throughput += series.now.throughput
            series.close(start, now)
        by_ordinal = {worker.ordinal: worker for worker in self.sources.workers(now)}
        for ordinal, series in self.workers.items():
            open_ = series.now
            whole.busy_s += open_.busy_s
            whole.capacity_s += open_.capacity_s
            whole.runs += open_.runs
            whole.run_s += open_.run_s
            if ordinal in by_ordinal:
                open_.levels[_RUNNING] = by_ordinal[ordinal].running * seconds
                open_.levels[_SESSIONS] = by_ordinal[ordinal].sessions * seconds
            series.close(start, now)
        window, _ = self.whole.recent.over(self._options.window_s - seconds, now=start)
        window.add(whole)
        return window

    def close(self, start: float, now: float, levels: dict[str, float]) -> Interval:
        """After `gather`: end the interval with the levels that the pool had, and return what happened in it."""
        self.whole.now.levels = [levels[name] * (now - start) for name in GAUGES]
        return self.whole.close(start, now)

    def save(self, pool: str, ticked_at: float, wall: float) -> Checkpoint:
        """All of it; `ticked_at` and `wall` are the last tick on both clocks."""
        return Checkpoint(
            pool=pool,
            columns=COLUMNS,
            wall=wall,
            outcomes=self.outcomes,
            losses=[self.dropped, self.unattributed, self.duplicates, self.foreign],
            sources=self.sources.save(),
            whole=self.whole.save(ticked_at),
            programs={name: series.save(ticked_at) for name, series in self.programs.items()},
            workers={ordinal: series.save(ticked_at) for ordinal, series in self.workers.items()},
        )

    def restore(self, saved: Checkpoint, ended: float, now: float) -> None:
        """Go on from a checkpoint; its last tick was at `ended` on this process's clock."""
        self.whole.restore(saved.whole, ended)
        for name, series in saved.programs.items():
            self.program(name).restore(series, ended)
        for ordinal, series in saved.workers.items():
            self.worker_series(ordinal).restore(series, ended)
        self.outcomes = saved.outcomes
        self.dropped, self.unattributed, self.duplicates, self.foreign = saved.losses
        self.sources.restore(saved.sources, now)


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
