"""The books of one pool: who ended how many operations, by program and by worker, and when."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

from dspool.core.metrics.measures import GAUGES, KEY_COLUMNS, POOL_COLUMNS, Interval
from dspool.core.metrics.recorder import ClientDelta, WorkerDelta
from dspool.core.metrics.series import MetricsOptions, SavedSeries, Series
from dspool.core.metrics.sources import Source, Sources
from dspool.core.metrics.tally import MAX_PROGRAMS, OTHER, OUTCOMES, REJECTED

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
