"""What the metrics actor publishes, and how to compute it from measured intervals.

An `Interval` is additive: it holds sums, histograms and time integrals, never averages. `point_of` is the one
place that computes rates, shares and quantiles, for a second, a window or a whole day alike.
"""

from __future__ import annotations

from array import array
from typing import Final

from msgspec import Struct, field

from dspool.core.metrics.error_groups import ErrorGroup
from dspool.core.metrics.health import HealthScore
from dspool.core.metrics.tally import ERROR, REJECTED, TIMEOUT, Tally
from dspool.messages import PoolStatus
from dspool.messages.versioned_pickle import Message

GAUGES: Final = (
    "size",
    "desired",
    "active",
    "idle",
    "spare",
    "overflow",
    "queue_depth",
    "running",
    "sessions",
    "health",
)
"""Levels, integrated over time in `Interval.levels`; a point gives their mean over its time."""


def _zeros() -> list[float]:
    return [0.0] * len(GAUGES)


class Interval(Message, Struct):
    """What happened in a measured interval, for a pool, a program or a worker."""

    duration_s: float = 0.0
    tally: Tally = field(default_factory=Tally)
    throughput: float = 0.0
    """Served operations of these seconds. Not `tally.served`: 2/3 of a delta that covers 1.5 s count in an interval of
    1 s, so that the beat between flushes and ticks makes no saw-tooth."""
    busy_s: float = 0.0
    """Slot-seconds used."""
    capacity_s: float = 0.0
    """Slot-seconds available, overflow workers included, from the same deltas as `busy_s`."""
    runs: int = 0
    """Operations that workers finished."""
    run_s: float = 0.0
    peak_demand: int = 0
    levels: list[float] = field(default_factory=_zeros)

    def add(self, other: Interval) -> None:
        self.duration_s += other.duration_s
        self.tally.add(other.tally)
        self.throughput += other.throughput
        self.busy_s += other.busy_s
        self.capacity_s += other.capacity_s
        self.runs += other.runs
        self.run_s += other.run_s
        self.peak_demand = max(self.peak_demand, other.peak_demand)
        for index, level in enumerate(other.levels):
            self.levels[index] += level

    @property
    def utilization(self) -> float:
        return min(1.0, self.busy_s / self.capacity_s) if self.capacity_s > 0 else 0.0

    @property
    def rejected_rate(self) -> float:
        offered = self.tally.served + self.tally.outcomes[REJECTED]
        return self.tally.outcomes[REJECTED] / offered if offered else 0.0


class Point(Message, Struct, frozen=True, kw_only=True):
    """The figures of one stretch of time. Durations are in seconds, rates per second, shares 0..1.

    Latency is submit to end (for a worker slot: start to end) of served operations: ok, error or timeout. Levels
    (`size` ... `sessions`, `health`) are means over the time; for a program or a slot most of them are 0.
    """

    at: float = 0.0
    """Wall-clock end, seconds since the epoch."""
    duration_s: float = 0.0
    operations: float = 0
    """Ended operations, however they ended."""
    throughput: float = 0.0
    """Served operations a second."""
    utilization: float = 0.0
    mean_s: float = 0.0
    p50_s: float = 0.0
    p95_s: float = 0.0
    p99_s: float = 0.0
    wait_mean_s: float = 0.0
    wait_p95_s: float = 0.0
    wait_p99_s: float = 0.0
    error_rate: float = 0.0
    """(errors + timeouts) / served. Client errors, refusals and cancellations are in neither."""
    errors: float = 0
    timeouts: float = 0
    rejected: float = 0
    retries: float = 0
    input_tokens: float = 0
    output_tokens: float = 0
    cached_tokens: float = 0
    """Of the input: what the model's provider had in its prompt cache."""
    reasoning_tokens: float = 0
    """Of the output: what the model thought."""
    cost_usd: float = 0.0
    """What the tokens cost, by `prices`."""
    size: float = 0.0
    desired: float = 0.0
    active: float = 0.0
    idle: float = 0.0
    spare: float = 0.0
    overflow: float = 0.0
    queue_depth: float = 0.0
    running: float = 0.0
    sessions: float = 0.0
    health: float = 0.0


POOL_COLUMNS: Final = tuple(name for name in Point.__struct_fields__ if name not in ("at", "duration_s"))
KEY_COLUMNS: Final = tuple(
    name for name in POOL_COLUMNS if name not in GAUGES or name in ("running", "sessions")
)
"""The columns of a program or a worker."""


def point_of(interval: Interval, at: float = 0.0) -> Point:
    """The figures of an interval that ended at wall time `at`."""
    tally, seconds = interval.tally, interval.duration_s
    if tally.latency.counts:
        p50, p95, p99 = tally.latency.quantiles((0.5, 0.95, 0.99))
    else:
        p50 = p95 = p99 = 0.0
    wait_p95, wait_p99 = tally.wait.quantiles((0.95, 0.99)) if tally.wait.counts else (0.0, 0.0)
    levels = {
        name: level / seconds if seconds > 0 else 0.0
        for name, level in zip(GAUGES, interval.levels, strict=True)
    }
    return Point(
        at=at,
        duration_s=seconds,
        operations=tally.ended,
        throughput=interval.throughput / seconds if seconds > 0 else 0.0,
        utilization=interval.utilization,
        mean_s=tally.latency.mean,
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        wait_mean_s=tally.wait.mean,
        wait_p95_s=wait_p95,
        wait_p99_s=wait_p99,
        error_rate=tally.error_rate,
        errors=tally.outcomes[ERROR],
        timeouts=tally.outcomes[TIMEOUT],
        rejected=tally.outcomes[REJECTED],
        retries=tally.retries,
        input_tokens=tally.input_tokens,
        output_tokens=tally.output_tokens,
        cached_tokens=tally.cached_tokens,
        reasoning_tokens=tally.reasoning_tokens,
        cost_usd=tally.cost_usd,
        **levels,
    )


class Counters(Message, Struct, frozen=True, kw_only=True):
    """Running totals; they never go down. `by_outcome` counts each ended operation exactly once."""

    by_outcome: dict[str, int]
    arrivals: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0
    cost_usd_by_model: dict[str, float] = {}
    errors_by_code: dict[str, int] = {}
    latency_sum_s: float = 0.0
    latency_count: int = 0


class ProgramSnapshot(Message, Struct, frozen=True, kw_only=True):
    recent: Point
    counters: Counters


# Name and text are part of the OpenAPI document.
class SlotSnapshot(Message, Struct, frozen=True, kw_only=True):
    """One worker slot. Counters go on when another worker takes the slot over; all else is of the worker's own life."""

    worker: str | None
    """The worker that reports under this ordinal now; None when it fell silent."""
    running: int
    sessions: int
    slots: int
    rss_mb: float
    overflow: bool
    busy_s: float
    """Slot-seconds used, a running total."""
    recent: Point
    counters: Counters


class TelemetryLoss(Message, Struct, frozen=True, kw_only=True):
    """What the figures do not show."""

    dropped: int = 0
    """Samples (spans, events) that clients could not keep."""
    unattributed: int = 0
    """Operations that are in the pool's counters, but whose program, latency and time never arrived."""
    duplicates: int = 0
    """Deltas that came twice and count once."""
    foreign: int = 0
    """Reports for another pool or in another format, ignored."""


class MetricsSnapshot(Message, Struct, frozen=True, kw_only=True):
    """The pool now: levels of this moment, figures of the last `window_s` measured seconds, running totals."""

    pool: str
    at: float
    """Wall-clock seconds since the epoch."""
    window_s: float
    size: int
    desired: int
    active: int
    """Workers that run at least one operation."""
    idle: int
    starting: int
    spare: int
    overflow: int
    queue_depth: int
    oldest_wait_s: float
    running: int
    sessions: int
    utilization: float
    throughput: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    wait_mean_s: float
    wait_p95_s: float
    wait_p99_s: float
    error_rate: float
    rejected: int
    """In the window; the running totals are in `counters`, as for timeouts, retries and tokens."""
    timeouts: int
    retries: int
    input_tokens: int
    output_tokens: int
    cost_usd: float = 0.0
    health: HealthScore
    counters: Counters
    programs: dict[str, ProgramSnapshot]
    workers: dict[int, SlotSnapshot] = field(name="slots")
    """By ordinal."""
    clients: int
    """Clients that reported lately."""
    telemetry: TelemetryLoss
    model_calls: dict[str, int] = {}
    """What became of calls of models, besides answers, since the pool began: `retries`, and of the answer cache `hits`,
    `misses`, `waits` (for the same question under way) and `failures`."""
    errors: tuple[ErrorGroup, ...] = ()
    """What fails operations now: up to 5 kinds of the last 5 minutes, those that came most often in the last one first;
    `GET /v1/pools/{pool}/errors` has all."""


class ErrorList(Message, Struct, frozen=True):
    """What operations ended with, by kind: the one whose last error is the newest first."""

    errors: tuple[ErrorGroup, ...]
    forgotten: int
    """Kinds that went for newer ones, since the pool began: it keeps 200."""


class HistoryView(Message, Struct, frozen=True, kw_only=True):
    """Points, oldest first. A gap between two of them is a time in which nothing was measured."""

    pool: str
    resolution_s: float
    points: tuple[Point, ...]


class Table(Message, Struct, frozen=True, array_like=True):
    """Rows of one series, oldest first. Values are 4-byte floats; times are wall-clock seconds (8 bytes)."""

    resolution_s: float
    last: float
    """End of the newest row on the sender's clock: the next request asks for what comes after it."""
    ends: bytes
    columns: dict[str, bytes]

    def times(self) -> array[float]:
        return array("d", self.ends)

    def column(self, name: str) -> array[float]:
        return array("f", self.columns[name])


class LiveUpdate(Message, Struct, frozen=True, array_like=True):
    """The pool now, and the rows since the last update."""

    life: str
    """Changes when the sender restarts: then its clock and its rows may be others."""
    snapshot: MetricsSnapshot
    """Without its workers if nobody asked for them."""
    table: Table
    status: PoolStatus | None
    """The supervisor's last report; None when it fell silent."""


__all__ = ["LiveUpdate", "Table"]
