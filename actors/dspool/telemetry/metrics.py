"""The metrics of one pool: deltas of clients and workers in, snapshots and history out.

`Metrics` is a plain class; an actor holds it. Nobody waits for it: a sender that cannot deliver a delta goes on adding
up and sends it later. Its counters agree with the callers' own count to the last operation, because a client reports
running totals with every delta.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec

from dspool.core.autoscale.inputs import SizingInputs, Window
from dspool.core.metrics.health import HealthInput, HealthScore, health
from dspool.core.metrics.histogram import Histogram
from dspool.core.metrics.measures import (
    Counters,
    ErrorList,
    HistoryView,
    Interval,
    LiveUpdate,
    MetricsSnapshot,
    ProgramSnapshot,
    Table,
    TelemetryLoss,
    point_of,
)
from dspool.core.metrics.metric_store import (
    COLUMNS,
    Checkpoint,
    MetricsOptions,
    MetricStore,
    Series,
    counters_of,
)
from dspool.core.metrics.recorder import ClientDelta, Delta
from dspool.core.metrics.tally import OUTCOMES, REJECTED, TIMEOUT, Tally
from dspool.messages import PoolStatus
from dspool.telemetry.events import emit

_SHIFT_S = 0.1
WORST = 5
"""Kinds of error in a snapshot."""

_AS_IN_POINT = (
    "utilization", "throughput", "mean_s", "p50_s", "p95_s", "p99_s", "wait_mean_s", "wait_p95_s", "wait_p99_s",
    "error_rate",
)  # fmt: skip
"""Figures of the window that a snapshot has under the same name."""


class Metrics:
    """Adds up what one pool's clients, workers and supervisor report. Synchronous; one event loop owns it.

    `now` is monotonic seconds of this process (default: `clock`); only results have wall time.
    """

    def __init__(
        self,
        pool: str,
        options: MetricsOptions | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.pool = pool
        self.options = options or MetricsOptions()
        self._clock = clock
        self._wall = wall
        self._ticked_at = clock()
        self._shift = wall() - clock()
        self._life = f"{wall():.6f}"
        self._store = MetricStore(self.options)
        self._sources = self._store.sources

    # --- in ---

    def report(self, delta: Delta | PoolStatus, now: float | None = None) -> None:
        """Take a delta of a client or worker, or the supervisor's view of the pool (repeated every few seconds).

        Ignores a delta that came before (same source and number): a sender may repeat one whose fate it does not
        know. Ignores and counts one for another pool, or of another version of dspool.
        """
        now = self._clock() if now is None else now
        if isinstance(delta, PoolStatus):
            if delta.name == self.pool:
                self._sources.set_status(delta, now)
            else:
                self._store.foreign += 1
            return
        if delta.pool != self.pool or (isinstance(delta, ClientDelta) and len(delta.totals) != len(OUTCOMES)):
            self._store.foreign += 1
            return
        source, new = self._sources.get(delta.reporter, now)
        if delta.seq <= source.seq:
            self._store.duplicates += 1
            return
        if isinstance(delta, ClientDelta):
            self._store.client(source, delta, now, new=new)
            self._store.errors.take(delta.errors, self._wall())
        else:
            self._store.worker(delta)
        self._sources.update(source, delta, now)

    def report_encoded(self, deltas: Iterable[bytes], now: float | None = None) -> None:
        """`report` for each delta that `encode` made; ignores and counts anything else."""
        for data in deltas:
            try:
                delta = _decode(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self._store.foreign += 1
            else:
                self.report(delta, now)

    # --- time ---

    def tick(self, now: float | None = None) -> None:
        """End an interval: what came in since the last tick becomes a point. Call it at a steady pace."""
        now = self._clock() if now is None else now
        start, seconds = self._ticked_at, now - self._ticked_at
        if seconds <= 0:
            return
        self._ticked_at = now
        levels = self._sources.levels(now)
        window = self._store.gather(start, now)
        levels["health"] = self._health(levels, window, now).score
        interval = self._store.close(start, now, levels)
        emit("queue.depth", {"queued": levels["queue_depth"]}, {"pool": self.pool})
        emit(
            "pool.utilization",
            {
                "utilization": interval.utilization,
                "busy_s": interval.busy_s,
                "capacity_s": interval.capacity_s,
            },
            {"pool": self.pool},
        )

    # --- out ---

    def snapshot(self, now: float | None = None, *, workers: bool = True) -> MetricsSnapshot:
        """The pool now. The window's figures end at the last tick, so a read between two ticks shows no dip.

        Without `workers` it lacks the workers' own figures, which are most of the work in a large pool.
        """
        now = self._clock() if now is None else now
        at = self._wall()
        window, _ = self._store.whole.recent.over(self.options.window_s, now=self._ticked_at)
        point = point_of(window, at)
        levels = self._sources.levels(now)
        clients = self._sources.clients(now)
        return MetricsSnapshot(
            pool=self.pool,
            at=at,
            window_s=window.duration_s,
            size=int(levels["size"]),
            desired=int(levels["desired"]),
            active=int(levels["active"]),
            idle=int(levels["idle"]),
            starting=len(self._sources.starting(now)),
            spare=int(levels["spare"]),
            overflow=int(levels["overflow"]),
            queue_depth=int(levels["queue_depth"]),
            oldest_wait_s=max((client.oldest_wait_s for client in clients), default=0.0),
            running=int(levels["running"]),
            sessions=int(levels["sessions"]),
            **{name: getattr(point, name) for name in _AS_IN_POINT},
            rejected=window.tally.outcomes[REJECTED],
            timeouts=window.tally.outcomes[TIMEOUT],
            retries=window.tally.retries,
            input_tokens=window.tally.input_tokens,
            output_tokens=window.tally.output_tokens,
            cost_usd=window.tally.cost_usd,
            health=self._health(levels, window, now),
            counters=self._totals(),
            programs={
                name: ProgramSnapshot(
                    recent=self._store.recent(series, self._ticked_at, at), counters=series.counters()
                )
                for name, series in self._store.programs.items()
            },
            workers=self._store.worker_snapshots(now, self._ticked_at, at) if workers else {},
            clients=len(clients),
            telemetry=TelemetryLoss(
                dropped=self._store.dropped,
                unattributed=self._store.unattributed,
                duplicates=self._store.duplicates,
                foreign=self._store.foreign,
            ),
            model_calls=dict(self._store.model_calls),
            errors=self._store.errors.worst(at, WORST),
        )

    def errors(self) -> ErrorList:
        """What operations ended with, by kind."""
        return ErrorList(self._store.errors.all(self._wall()), self._store.errors.forgotten)

    def history(
        self,
        duration_s: float,
        *,
        program: str | None = None,
        ordinal: int | None = None,
        now: float | None = None,
    ) -> HistoryView:
        """Points of the last `duration_s` seconds of the pool, of one program, or of the worker with an ordinal.

        One point a second up to an hour, one in ten seconds up to a day, one in five minutes up to a week (as
        configured); a longer duration gives what there is. An unknown program or worker has no points.

        Raises:
            ValueError: `duration_s` is not a positive number.
        """
        now = self._clock() if now is None else now
        series = self._series(program, ordinal)
        resolution, points = series.points(duration_s, now=now, wall=self._wall())
        return HistoryView(pool=self.pool, resolution_s=resolution, points=points)

    def table(
        self,
        duration_s: float,
        *,
        program: str | None = None,
        ordinal: int | None = None,
        worker: str | None = None,
        after: float | None = None,
        resolution_s: float = 0.0,
        now: float | None = None,
    ) -> Table:
        """As `history`, by column and without the open point. `after` is the `last` of an earlier table. `worker` is an
        id: the figures of one life, also of one that ended lately. Points are `resolution_s` apart or more.

        Raises:
            ValueError: `duration_s` is not a positive number.
        """
        if not duration_s > 0:
            raise ValueError(f"a history has a positive duration, got {duration_s}")
        now = self._clock() if now is None else now
        series = self._series(program, ordinal, worker)
        oldest = now - duration_s if after is None else max(after, now - duration_s)
        return series.table(duration_s, after=oldest, shift=self._shift_at(now), resolution_s=resolution_s)

    def _series(self, program: str | None, ordinal: int | None, worker: str | None = None) -> Series:
        """The series of the program, of the worker, or of the whole pool; an empty one if it is unknown."""
        series: Series | None = self._store.whole
        if program is not None:
            series = self._store.programs.get(program)
        elif worker is not None:
            series = self._store.workers.get(worker)
        elif ordinal is not None:
            series = self._store.worker_at(ordinal)
        return series or Series(self.options)

    def _shift_at(self, now: float) -> float:
        """Wall time less our clock; constant unless the wall clock was set: if a row moved between two tables, a
        reader that appends rows would have it twice."""
        shift = self._wall() - now
        if abs(shift - self._shift) > _SHIFT_S:
            self._shift = shift
        return self._shift

    def live_update(
        self, after: float | None, *, workers: bool = False, now: float | None = None
    ) -> LiveUpdate:
        """The changes since `after` (the `last` of the table before; None: only the present)."""
        now = self._clock() if now is None else now
        return LiveUpdate(
            life=self._life,
            snapshot=self.snapshot(now, workers=workers),
            table=self.table(
                self.options.fine_span_s, after=self._ticked_at if after is None else after, now=now
            ),
            status=self.status(now),
        )

    def histograms(self) -> dict[str, tuple[Histogram, Histogram]]:
        """Latency and wait of served operations by program: running totals, as counters are."""
        return {
            name: (series.total.latency, series.total.wait) for name, series in self._store.programs.items()
        }

    def status(self, now: float | None = None) -> PoolStatus | None:
        """The supervisor's last report; None when it is silent."""
        return self._sources.status(self._clock() if now is None else now)

    def sizing_inputs(
        self, short_s: float, long_s: float, *, resized_s_ago: float | None = None, now: float | None = None
    ) -> SizingInputs:
        """The inputs of sizing. With `resized_s_ago`, without what was measured before that long ago.

        Desired, actual, starting and overflow come from the supervisor's last report; the supervisor overrides them
        with its own values of the moment.
        """
        now = self._clock() if now is None else now
        sources, recent = self._sources, self._store.whole.recent
        levels, starting = sources.levels(now), sources.starting(now)
        updated_at = sources.updated_at
        since = None if resized_s_ago is None else now - resized_s_ago
        short = self._window(*recent.over(short_s, now=self._ticked_at, since=since))
        # Sizing must see a burst before the next tick.
        short = msgspec.structs.replace(short, peak_demand=max(short.peak_demand, sources.open_peak()))
        return SizingInputs(
            age_s=None if updated_at is None else max(0.0, now - updated_at),
            slots_per_worker=self.options.slots_per_worker,
            desired=int(levels["desired"]),
            actual=int(levels["size"] - levels["overflow"]),
            starting=sum(not worker.overflow for worker in starting),
            overflow=int(levels["overflow"]) + sum(worker.overflow for worker in starting),
            running=int(levels["running"]),
            queued=int(levels["queue_depth"]),
            oldest_wait_s=max((client.oldest_wait_s for client in sources.clients(now)), default=0.0),
            short=short,
            long=self._window(*recent.over(long_s, now=self._ticked_at, since=since)),
        )

    # --- across restarts ---

    def checkpoint(self) -> bytes:
        """Counters, histories and the state of each source, for `restore` in the next life. No names but programs'."""
        wall = self._wall() - (self._clock() - self._ticked_at)
        return _encoder.encode(self._store.save(self.pool, self._ticked_at, wall))

    def restore(self, checkpoint: bytes, *, history_only: bool = False) -> None:
        """Go on from a checkpoint; call it before the first report. Deltas that it contains do not count again.

        What clients counted since the checkpoint comes with their next deltas: counters stay exact. With `history_only`
        it is that of an earlier pool of this name: charts go on, counters begin at zero.

        Raises:
            ValueError: it is damaged, or of another pool or version of dspool.
        """
        try:
            state = msgspec.msgpack.decode(checkpoint, type=Checkpoint)
        except (msgspec.MsgspecError, UnicodeDecodeError) as damaged:
            raise ValueError(f"not a metrics checkpoint: {damaged}") from damaged
        if state.pool != self.pool:
            raise ValueError(f"a checkpoint of pool {state.pool!r} cannot be restored to {self.pool!r}")
        if state.columns != COLUMNS:
            raise ValueError("the checkpoint was made by another version of dspool and keeps other figures")
        now = self._clock()
        # A checkpoint's rows are relative to its end, whose age only the wall clocks of both lives can tell.
        end = now - max(0.0, self._wall() - state.wall)
        self._store.restore(state, end, now, history_only=history_only)

    # --- parts of the answers ---

    def _health(self, levels: dict[str, float], window: Interval, now: float) -> HealthScore:
        desired, ready = int(levels["desired"]), int(levels["size"] - levels["overflow"])
        status = self.status(now)
        # A supervisor that fell silent cannot say what became of those that are missing.
        is_new = status is None and not self._sources.has_status
        lost = status.lost if status is not None else 0 if is_new else max(0, desired - ready)
        return health(
            HealthInput(
                desired=desired,
                ready=ready,
                lost=lost,
                starting=is_new or (status is not None and status.state == "starting"),
                error_rate=window.tally.error_rate,
                latency_p99_s=window.tally.latency.quantile(0.99),
                latency_objective_s=self.options.latency_objective_s,
                wait_p95_s=window.tally.wait.quantile(0.95),
                max_wait_s=self.options.max_wait_s,
                utilization=window.utilization,
                queue_fill=levels["queue_depth"] / max(1, self.options.max_queue),
                rejected_rate=window.rejected_rate,
            )
        )

    def _window(self, interval: Interval, seconds: float) -> Window:
        tally = interval.tally
        return Window(
            span_s=seconds,
            arrivals=tally.arrivals,
            finished=interval.runs,
            busy_slot_s=interval.busy_s,
            run_s=interval.run_s,
            peak_demand=interval.peak_demand,
            started=tally.wait.count,
            over_wait=tally.wait.above(self.options.max_wait_s),
            wait_p99_s=tally.wait.quantile(0.99),
            model_errors=sum(number for code, number in tally.errors.items() if code.startswith("model_")),
        )

    def _totals(self) -> Counters:
        total = Tally()
        for series in self._store.programs.values():
            total.add(series.total)
        return counters_of(total, self._store.outcomes)


_encoder = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(Delta).decode


def encode(delta: Delta) -> bytes:
    """A delta as bytes, for `Metrics.report_encoded`: smaller and quicker than a pickle."""
    return _encoder.encode(delta)
