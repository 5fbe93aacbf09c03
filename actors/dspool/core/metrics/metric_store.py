"""The store of one pool's metrics: how many operations ended and when, by program and by worker."""

from __future__ import annotations

from array import array
from functools import partial
from typing import Final

from msgspec import Struct, field

from dspool.core.metrics.error_groups import ErrorGroups, SavedGroup
from dspool.core.metrics.measures import (
    GAUGES,
    KEY_COLUMNS,
    POOL_COLUMNS,
    Counters,
    Interval,
    Point,
    SlotSnapshot,
    Table,
    point_of,
)
from dspool.core.metrics.recorder import ClientDelta, WorkerDelta
from dspool.core.metrics.sources import Source, Sources
from dspool.core.metrics.tally import MAX_PROGRAMS, OTHER, OUTCOMES, REJECTED, Tally
from dspool.core.metrics.window import HistoryWindow, RecentCells

MAX_WORKERS: Final = 256
"""Workers with a series of their own, and ordinals with totals; those beyond share one."""
ENDED_LIVES: Final = 32
"""Workers that report no more, whose series stay for a while."""
COLUMNS: Final = [*POOL_COLUMNS, *KEY_COLUMNS]
"""What histories hold; a checkpoint with different columns comes from another version."""

_RUNNING, _SESSIONS = GAUGES.index("running"), GAUGES.index("sessions")


class Checkpoint(Struct):
    """A store as plain data. `wall` is the wall time of its last tick."""

    pool: str
    columns: list[str]
    wall: float
    outcomes: list[int]
    losses: list[int]
    # Its name in older checkpoints.
    sources: dict[str, tuple[int, list[int]]] = field(name="reporters")
    whole: SavedSeries
    programs: dict[str, SavedSeries]
    workers: dict[str, SavedSeries] = field(name="lives", default_factory=dict)
    ordinals: dict[int, OrdinalTotals] = field(default_factory=dict)
    model_calls: dict[str, int] = {}
    errors: list[SavedGroup] = []


class MetricStore:
    """Series of the pool, its programs and its workers; bounded. `outcomes` is exact, whatever was lost."""

    def __init__(self, options: MetricsOptions) -> None:
        self._options = options
        self.sources = Sources(stale_after_s=options.stale_after_s, pool_size=options.pool_size)
        self.whole = Series(options, POOL_COLUMNS, options.recent_s)
        self.programs: dict[str, Series] = {}
        self.workers: dict[str, Series] = {}
        """By worker id: its figures are those of one life. The one that reported longest ago comes first."""
        self.ordinals: dict[int, OrdinalTotals] = {}
        """What exporters count by: a worker that takes over the ordinal of a dead one goes on counting."""
        self.outcomes = [0] * len(OUTCOMES)
        """Ended operations of the pool, from the clients' running totals."""
        self.dropped = self.unattributed = self.duplicates = self.foreign = 0
        self.model_calls: dict[str, int] = {}
        """As `MetricsSnapshot.model_calls`."""
        self.errors = ErrorGroups()

    def client(self, source: Source, delta: ClientDelta, now: float, *, new: bool) -> None:
        """Count a client's delta; `new` if the client was unknown before."""
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
            # Perhaps a dropped source that comes back: its earlier operations are in the counters already.
            counts = detail
        else:
            before = source.totals or [0] * len(OUTCOMES)
            counts = [have - had for have, had in zip(delta.totals, before, strict=True)]
        for index, number in enumerate(counts):
            self.outcomes[index] += number
        # More in the totals than in the details: a delta was lost, or this actor was down when it came.
        self.unattributed += max(0, sum(counts) - sum(detail))
        source.totals = list(delta.totals)
        self.dropped += delta.dropped
        if new or now - delta.interval_s - source.reported_at > delta.interval_s / 2:
            source.was_silent = True
        source.covered_s += delta.interval_s
        source.peak_demand = max(source.peak_demand, delta.peak_demand)

    def worker(self, delta: WorkerDelta) -> None:
        """Count a worker's delta: busy time and runs. Clients count operations."""
        series = self.worker_series(delta.reporter)
        series.total.add(delta.tally)
        series.busy_s += delta.busy_s
        totals = self._totals_of(delta.ordinal)
        totals.worker = delta.reporter
        totals.total.add(delta.tally)
        totals.busy_s += delta.busy_s
        for what, number in delta.model_calls.items():
            self.model_calls[what] = self.model_calls.get(what, 0) + number
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

    def worker_series(self, worker_id: str) -> Series:
        """The series of a worker, or of all beyond the bound."""
        if worker_id not in self.workers and len(self.workers) >= MAX_WORKERS + ENDED_LIVES:
            worker_id = OTHER
        series = self.workers.pop(worker_id, None) or Series(self._options)
        self.workers[worker_id] = series
        return series

    def worker_at(self, ordinal: int) -> Series | None:
        """The series of the worker that has this ordinal, or had it last."""
        totals = self.ordinals.get(ordinal)
        return None if totals is None else self.workers.get(totals.worker)

    def _totals_of(self, ordinal: int) -> OrdinalTotals:
        if ordinal not in self.ordinals and len(self.ordinals) >= MAX_WORKERS:
            ordinal = -1
        totals = self.ordinals.get(ordinal)
        return totals or self.ordinals.setdefault(ordinal, OrdinalTotals())

    def gather(self, start: float, now: float) -> Interval:
        """At a tick: add up what the pool did since `start`. Returns the recent window that ends with it."""
        seconds = now - start
        whole = self.whole.now
        whole.peak_demand, served = self.sources.take_interval(seconds, now)
        for program, number in served:
            self.program(program).now.throughput += number
        for series in self.programs.values():
            whole.tally.add(series.now.tally)
            whole.throughput += series.now.throughput
            series.close(start, now)
        living = {worker.reporter: worker for worker in self.sources.workers(now)}
        ended = [id for id in self.workers if id not in living and id != OTHER]
        for id in ended[: max(0, len(ended) - ENDED_LIVES)]:
            del self.workers[id]
        for id, series in self.workers.items():
            open_ = series.now
            if id not in living and id != OTHER and not open_.capacity_s:
                # Its history ends where it ended.
                continue
            whole.busy_s += open_.busy_s
            whole.capacity_s += open_.capacity_s
            whole.runs += open_.runs
            whole.run_s += open_.run_s
            if id in living:
                open_.levels[_RUNNING] = living[id].running * seconds
                open_.levels[_SESSIONS] = living[id].sessions * seconds
            series.close(start, now)
        window, _ = self.whole.recent.over(self._options.window_s - seconds, now=start)
        window.add(whole)
        return window

    def close(self, start: float, now: float, levels: dict[str, float]) -> Interval:
        """After `gather`: end the interval with the pool's levels, and return it."""
        self.whole.now.levels = [levels[name] * (now - start) for name in GAUGES]
        return self.whole.close(start, now)

    def recent(self, series: Series, ticked_at: float, at: float) -> Point:
        """The figures of the window that ended at the last tick."""
        return point_of(series.recent.over(self._options.window_s, now=ticked_at)[0], at)

    def worker_snapshots(self, now: float, ticked_at: float, at: float) -> dict[int, SlotSnapshot]:
        living = {worker.reporter: worker for worker in self.sources.workers(now)}
        snapshots = {}
        for ordinal, totals in sorted(self.ordinals.items()):
            worker = living.get(totals.worker)
            series = self.workers.get(totals.worker)
            snapshots[ordinal] = SlotSnapshot(
                worker=worker.reporter if worker else None,
                running=worker.running if worker else 0,
                sessions=worker.sessions if worker else 0,
                slots=worker.slots if worker else 0,
                rss_mb=worker.rss_mb if worker else 0.0,
                overflow=worker.overflow if worker else False,
                busy_s=totals.busy_s,
                recent=Point(at=at) if series is None else self.recent(series, ticked_at, at),
                counters=counters_of(totals.total, totals.total.outcomes),
            )
        return snapshots

    def save(self, pool: str, ticked_at: float, wall: float) -> Checkpoint:
        """Everything; `ticked_at` and `wall` are the last tick on both clocks."""
        return Checkpoint(
            pool=pool,
            columns=COLUMNS,
            wall=wall,
            outcomes=self.outcomes,
            losses=[self.dropped, self.unattributed, self.duplicates, self.foreign],
            sources=self.sources.save(),
            whole=self.whole.save(ticked_at),
            programs={name: series.save(ticked_at) for name, series in self.programs.items()},
            workers={id: series.save(ticked_at) for id, series in self.workers.items()},
            ordinals=self.ordinals,
            model_calls=self.model_calls,
            errors=self.errors.save(),
        )

    def restore(self, saved: Checkpoint, ticked_at: float, now: float, *, history_only: bool = False) -> None:
        """Go on from a checkpoint; its last tick was at `ticked_at` on this process's clock.

        With `history_only` take over what charts of the pool and its programs show, and count from zero.
        """
        if history_only:
            self.whole.history.load(saved.whole.rows, ticked_at)
            for name, series in saved.programs.items():
                self.program(name).history.load(series.rows, ticked_at)
            return
        self.whole.restore(saved.whole, ticked_at)
        for name, series in saved.programs.items():
            self.program(name).restore(series, ticked_at)
        for id, series in saved.workers.items():
            self.worker_series(id).restore(series, ticked_at)
        self.ordinals = saved.ordinals
        self.outcomes = saved.outcomes
        self.model_calls = saved.model_calls
        self.errors.restore(saved.errors)
        self.dropped, self.unattributed, self.duplicates, self.foreign = saved.losses
        self.sources.restore(saved.sources, now)


class MetricsOptions(Struct, frozen=True, kw_only=True):
    """Spans, limits and goals. Take them from the pool's configuration."""

    window_s: float = 10.0
    """Span of the figures in a snapshot."""
    recent_s: float = 900.0
    """The longest window that `sizing_inputs` can look back."""
    stale_after_s: float = 5.0
    """A source that is silent for longer counts for no level."""
    fine_interval_s: float = 1.0
    fine_span_s: float = 3600.0
    coarse_interval_s: float = 10.0
    coarse_span_s: float = 86400.0
    long_interval_s: float = 300.0
    long_span_s: float = 604800.0
    latency_objective_s: float | None = None
    max_wait_s: float = 0.1
    max_queue: int = 1000
    slots_per_worker: int = 8
    pool_size: int | None = None
    """Workers that should be there until the supervisor reports; None: as many as report."""


class OrdinalTotals(Struct, array_like=True):
    """What the workers that ever had an ordinal have done together."""

    worker: str = ""
    """The one that reported last."""
    total: Tally = field(default_factory=Tally)
    busy_s: float = 0.0


class SavedSeries(Struct, array_like=True):
    """A series in a checkpoint."""

    total: Tally
    busy_s: float
    rows: list[list[bytes]]


class Series:
    """The metrics of one program, one worker, or the pool."""

    def __init__(
        self, options: MetricsOptions, columns: tuple[str, ...] = KEY_COLUMNS, recent_s: float = 0.0
    ) -> None:
        self.columns = columns
        self.total = Tally()
        self.busy_s = 0.0
        self.now = Interval()
        """What came since the last tick."""
        self.recent: RecentCells[Interval] = RecentCells(
            Interval,
            fine_span_s=max(options.window_s, 60.0) if recent_s else options.window_s,
            coarse_interval_s=options.coarse_interval_s,
            coarse_span_s=recent_s,
        )
        self.history: HistoryWindow[Interval] = HistoryWindow(
            Interval,
            # Not a method of ours: a worker's series is gone with the worker, not with the next search for cycles.
            partial(_row, columns),
            width=len(columns),
            fine_interval_s=options.fine_interval_s,
            fine_span_s=options.fine_span_s,
            coarse_interval_s=options.coarse_interval_s,
            coarse_span_s=options.coarse_span_s,
            long_interval_s=options.long_interval_s,
            long_span_s=options.long_span_s,
        )

    def close(self, start: float, end: float) -> Interval:
        """End the open interval at a tick."""
        interval, self.now = self.now, Interval()
        interval.duration_s = end - start
        self.recent.add(start, end, interval)
        self.history.add(start, end, interval)
        return interval

    def counters(self) -> Counters:
        return counters_of(self.total, self.total.outcomes)

    def points(self, duration_s: float, *, now: float, wall: float) -> tuple[float, tuple[Point, ...]]:
        """(resolution, points) of the last `duration_s`; see `HistoryWindow.points`."""
        resolution, rows = self.history.points(duration_s, now=now)
        return resolution, tuple(
            # All from one reading of the wall clock: a step of it cannot reorder them.
            Point(at=end - now + wall, duration_s=length, **dict(zip(self.columns, values, strict=True)))
            for end, length, values in rows
        )

    def table(self, duration_s: float, *, after: float, shift: float, resolution_s: float = 0.0) -> Table:
        """The closed rows that ended after `after`, by column; `shift` turns this clock's times into wall time."""
        resolution, (ends, _, *values) = self.history.table(
            duration_s, after=after, resolution_s=resolution_s
        )
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
        """Take over what `save` returned; `origin` is the same moment on this process's clock."""
        self.total.add(saved.total)
        self.busy_s += saved.busy_s
        self.history.load(saved.rows, origin)


def _row(columns: tuple[str, ...], interval: Interval) -> list[float]:
    point = point_of(interval)
    return [getattr(point, name) for name in columns]


def counters_of(total: Tally, outcomes: list[int]) -> Counters:
    """Running totals for publication; `outcomes` may count more operations than the tally."""
    return Counters(
        by_outcome=dict(zip(OUTCOMES, outcomes, strict=True)),
        arrivals=total.arrivals,
        retries=total.retries,
        input_tokens=total.input_tokens,
        output_tokens=total.output_tokens,
        cached_tokens=total.cached_tokens,
        reasoning_tokens=total.reasoning_tokens,
        cost_usd=total.cost_usd,
        cost_usd_by_model=dict(total.costs_usd),
        errors_by_code=dict(total.errors),
        latency_sum_s=total.latency.sum,
        latency_count=total.latency.count,
    )
