"""What the exporters compute the metrics of one pool from."""

from __future__ import annotations

from msgspec import Struct, field

from dspool.config import PoolConfig
from dspool.core.metrics.histogram import Histogram
from dspool.core.metrics.measures import MetricsSnapshot
from dspool.messages import PoolStatus
from dspool.messages.versioned_pickle import Message


class PoolLimits(Message, Struct, frozen=True, kw_only=True):
    """Limits of the configuration: alerts compare with them, so one rule fits every pool."""

    min_pool_size: int
    max_pool_size: int
    spares: int
    max_queue: int
    max_wait_s: float
    operation_timeout_s: float
    sizing: bool

    @classmethod
    def of(cls, config: PoolConfig) -> PoolLimits:
        return cls(
            min_pool_size=config.min_pool_size,
            max_pool_size=config.max_pool_size,
            spares=config.spares,
            max_queue=config.max_queue,
            max_wait_s=config.max_wait_s,
            operation_timeout_s=config.operation_timeout_s,
            sizing=config.enable_optimizer,
        )


class Snapshot(Message, Struct, frozen=True, kw_only=True):
    """One pool at one moment."""

    metrics: MetricsSnapshot
    histograms: dict[str, tuple[Histogram, Histogram]]
    """Latency and wait by program, running totals."""
    status: PoolStatus | None
    """None: the supervisor is silent, and what only it knows is not exported."""
    limits: PoolLimits
    events: dict[str, int] = field(default_factory=dict)
    """How often each event occurred; only those that leave their process."""
    refusals: dict[str, int] = field(default_factory=dict)
    """Requests that a limit refused, by limit."""
    blocked_s: dict[str, float] = field(default_factory=dict)
    """Seconds that programs held event loops of workers, by program."""
