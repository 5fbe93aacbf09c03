"""The inputs, the state and the decisions of sizing: plain data. `sizing.py` decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from dspool.messages.versioned_pickle import Message

if TYPE_CHECKING:
    from dspool.config import PoolConfig

STALE_INTERVALS = 3.0


class SizingConfig(Message, Struct, frozen=True, kw_only=True):
    """The bounds and goals of sizing. `SizingConfig.of(pool_config)` takes them from the pool's configuration."""

    min_size: int
    max_size: int
    max_overflow: int = 0
    overflow_idle_s: float = 30.0
    target_utilization: float = 0.7
    max_wait_s: float = 0.1
    grow_cooldown_s: float = 3.0
    shrink_cooldown_s: float = 3.0
    interval_s: float = 0.5
    """How often `decide` is called."""
    stale_after_s: float = 3.0
    """Sizing ignores data older than this."""
    short_window_s: float = 1.0
    """Span of `SizingInputs.short`: at least the interval and two metrics flushes."""
    long_window_s: float = 60.0
    """Span of `SizingInputs.long`."""

    @classmethod
    def of(cls, config: PoolConfig) -> SizingConfig:
        """The sizing part of a pool configuration."""
        interval, flush = config.optimization_interval_s, config.metrics_flush_interval_s
        return cls(
            min_size=config.min_pool_size,
            max_size=config.max_pool_size,
            max_overflow=config.max_overflow,
            overflow_idle_s=config.overflow_idle_s,
            target_utilization=config.target_utilization,
            max_wait_s=config.max_wait_s,
            grow_cooldown_s=config.grow_cooldown_s,
            shrink_cooldown_s=config.shrink_cooldown_s,
            interval_s=interval,
            stale_after_s=STALE_INTERVALS * max(1.0, interval, flush),
            short_window_s=max(1.0, interval, 2 * flush),
        )


class Window(Message, Struct, frozen=True, kw_only=True):
    """What happened in the last `span_s` seconds, over all clients and workers of the pool.

    `span_s` is the measured length (shorter than the nominal one just after a start); 0 means no data.
    Resizing in between does no harm: everything counts in operations and slot-seconds, not relative to
    the size at the time.
    """

    span_s: float = 0.0
    arrivals: int = 0
    """Operations submitted (retries by the pool do not count again)."""
    finished: int = 0
    busy_slot_s: float = 0.0
    """Slot-seconds spent running operations, overflow workers included (integrated, not sampled)."""
    run_s: float = 0.0
    """Sum of the run times of the operations that finished in the window; divided by `finished`: the mean
    service time."""
    peak_demand: int = 0
    """Largest number of operations running plus waiting at any one moment."""
    started: int = 0
    """Operations that left the queue for a slot in the window."""
    over_wait: int = 0
    """Those of `started` whose queue wait (submit to start) was longer than `max_wait_s`."""
    wait_p99_s: float = 0.0
    """99th percentile of the queue wait of `started`; for display."""
    model_errors: int = 0
    """Operations that ended because the model endpoint failed, refused, timed out or limited the rate."""


class SizingInputs(Message, Struct, frozen=True, kw_only=True):
    """What the metrics actor and the supervisor know when a decision is due."""

    age_s: float | None
    """Seconds since the newest delta from any client or worker; None: there never was one."""
    slots_per_worker: int
    desired: int
    """Base size of the last decision or set by hand (without overflow)."""
    actual: int
    """Base workers that take traffic now (neither starting nor draining)."""
    starting: int = 0
    """Base workers that are starting or warming."""
    overflow: int = 0
    """Overflow workers that are up or on their way."""
    running: int = 0
    queued: int = 0
    oldest_wait_s: float = 0.0
    """Age of the oldest queued operation; 0 when the queue is empty."""
    start_delay_s: float = 1.0
    """From ordering a worker until it takes traffic: the 90th percentile of the last starts."""
    short: Window = Window()
    long: Window = Window()


class Peak(Message, Struct, frozen=True, array_like=True):
    """The largest need (in slots) between `start` and `end`."""

    start: float
    end: float
    slots: float


class Score(Message, Struct, frozen=True, array_like=True):
    """What a policy for keeping room (`policies.py`) would have done. Both fade with `policies.MEMORY_S`."""

    late: float = 0.0
    """Operations that would have waited too long."""
    worker_s: float = 0.0


class SizingState(Message, Struct, frozen=True, kw_only=True):
    """Carried from one `decide` to the next. Start with `SizingState()`. Plain data, in the clock of `now`."""

    peaks: tuple[Peak, ...] = ()
    """Oldest first; older ones are merged into longer spans, so that there are never more than a few dozen."""
    scores: tuple[Score, ...] = ()
    """One for each of `policies.POLICIES`."""
    started: float = 0.0
    """Operations started, fading with the time constant `policies.MEMORY_S`."""
    late: float = 0.0
    """Those of `started` that waited too long; fading likewise."""
    recent: float | None = None
    """Busy slots, a mean in which newer ones count more; None before the first data."""
    offered: float = 0.0
    """Slots that would be busy if nothing ever waited."""
    demand: float = 0.0
    """Slots needed at the last call."""
    slots: int = 0
    """Slots that took traffic at the last call."""
    needed_at: tuple[float, ...] = ()
    """For each worker of the base size, as if they came and went in order: when it was last needed."""
    first_at: float | None = None
    called_at: float | None = None
    grew_at: float | None = None
    overflow_needed_at: float | None = None


Action = Literal["grow", "shrink", "hold"]


class Decision(Message, Struct, frozen=True, kw_only=True):
    """The size the pool should have, and why.

    `target` is the base size (min_size..max_size), `overflow` the number of overflow workers
    (0..max_overflow). `action` says what happens to the base size, `reason` why, in a short sentence for
    people; `numbers` holds what led to it.
    """

    target: int
    overflow: int
    action: Action
    reason: str
    numbers: dict[str, float] = {}
    at: float = 0.0
