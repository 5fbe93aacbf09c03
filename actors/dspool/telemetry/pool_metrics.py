"""The metrics of one pool as others ask for them, wherever they live: in an actor, or in the process of the pool."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import SizingInputs
from dspool.core.metrics.measures import ErrorList, HistoryView, MetricsSnapshot
from dspool.core.metrics.metric_store import MetricsOptions
from dspool.core.metrics.operation_records import OperationBatch, OperationQuery
from dspool.core.metrics.recorder import Delta
from dspool.messages import PoolStatus
from dspool.telemetry.event_log import EventBatch, EventPage
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.observation import Observation
from dspool.telemetry.operation_keeper import OperationKeeper
from dspool.telemetry.snapshot import PoolLimits, Snapshot

_encode = msgspec.msgpack.Encoder().encode


class PoolMetrics:
    """What a pool's clients, workers and supervisor report, and what can be asked of it. One event loop owns it."""

    def __init__(self, config: PoolConfig, operations: Path | None = None) -> None:
        """`operations` is the file of the kept operations; None: they die with this process."""
        self.metrics = Metrics(config.name, _options_of(config))
        self.operations = OperationKeeper.of(config, operations)
        self.observation = Observation(config, self.metrics)
        self._limits = PoolLimits.of(config)

    async def report(self, message: Delta | PoolStatus | EventBatch | OperationBatch) -> None:
        if isinstance(message, OperationBatch):
            self.operations.take(message)
        else:
            self.observation.report(message)

    async def checkpoint(self) -> None:
        """Write the checkpoint now, not only every 30 s."""
        await self.observation.save()

    async def events(self, since: int = 0, limit: int = 100, timeout_s: float = 0.0) -> EventPage:
        """Events of the whole pool; see `Observation.events`."""
        return await self.observation.events(since, limit, timeout_s)

    async def find_operations(self, query: OperationQuery) -> bytes:
        """Ended operations: `FoundOperations` in msgpack."""
        return _encode(await self.operations.find(query))

    async def metrics_snapshot(self) -> MetricsSnapshot:
        return self.metrics.snapshot()

    async def errors(self) -> ErrorList:
        return self.metrics.errors()

    async def history(
        self, duration_s: float, *, program: str | None = None, ordinal: int | None = None
    ) -> HistoryView:
        return self.metrics.history(duration_s, program=program, ordinal=ordinal)

    async def table(
        self,
        duration_s: float,
        *,
        program: str | None = None,
        ordinal: int | None = None,
        worker: str | None = None,
        resolution_s: float = 0.0,
    ) -> bytes:
        """History by column, for dashboards: a `Table` in msgpack."""
        return _encode(
            self.metrics.table(
                duration_s, program=program, ordinal=ordinal, worker=worker, resolution_s=resolution_s
            )
        )

    async def live_update(self, after: float | None, *, workers: bool = False) -> bytes:
        """The pool now, and the rows since `after`: a `LiveUpdate` in msgpack."""
        return _encode(self.metrics.live_update(after, workers=workers))

    async def sizing_inputs(self, short_s: float, long_s: float) -> SizingInputs:
        return self.metrics.sizing_inputs(short_s, long_s)

    async def snapshot(self) -> Snapshot:
        """The snapshot for exporters."""
        return self.take_snapshot()

    def take_snapshot(self) -> Snapshot:
        """As `snapshot`, for its own process."""
        return Snapshot(
            metrics=self.metrics.snapshot(),
            histograms=self.metrics.histograms(),
            status=self.metrics.status(),
            limits=self._limits,
            events=self.observation.log.counts,
            refusals=self.observation.log.refusals,
            blocked_s=self.observation.log.blocked_s,
        )


def _options_of(config: PoolConfig) -> MetricsOptions:
    history = config.history
    return MetricsOptions(
        fine_interval_s=history.fine_interval_s,
        fine_span_s=history.fine_span_s,
        coarse_interval_s=history.coarse_interval_s,
        coarse_span_s=history.coarse_span_s,
        long_interval_s=history.long_interval_s,
        long_span_s=history.long_span_s,
        max_wait_s=config.max_wait_s,
        max_queue=config.max_queue,
        slots_per_worker=config.slots_per_worker,
        pool_size=config.pool_size,
    )
