"""The metrics as an actor, and its callers' side."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from typing import Any

import msgspec
import ray
from ray.actor import ActorHandle

from dspool.config import PoolConfig
from dspool.core.autoscale.sizing import SizingInputs
from dspool.core.metrics.measures import HistoryView, MetricsSnapshot
from dspool.core.metrics.metric_store import MetricsOptions
from dspool.core.metrics.recorder import Delta
from dspool.errors import PoolError, WorkerLost
from dspool.messages import PoolStatus
from dspool.runtime.cluster import ask, find_actor
from dspool.runtime.exported import RayMetrics, export_interval_s
from dspool.telemetry import logs
from dspool.telemetry.event_log import EventBatch, EventPage
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.observation import Observation
from dspool.telemetry.snapshot import PoolLimits, Snapshot

log = logging.getLogger("dspool.runtime")
_encode = msgspec.msgpack.Encoder().encode


class RemoteMetrics:
    """The callers' side of the pool's metrics actor: finds it by name at the first call, and again after a loss."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._handle: ActorHandle[Any] | None = None

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the actor. Raises `WorkerLost` if there is none: metrics are off, or it just died."""
        try:
            if self._handle is None:
                self._handle = await find_actor(self._pool, "metrics")
            return await ask(self._handle, method, *args, **kwargs)
        except (WorkerLost, ValueError) as gone:
            self._handle = None
            raise WorkerLost(f"pool {self._pool!r} has no metrics actor now: {gone}") from gone

    async def report(self, message: Any) -> None:
        """Send what `MetricsActor.report` takes."""
        await self.ask("report", message)

    async def sizing_inputs(self, short_s: float, long_s: float) -> SizingInputs | None:
        """The inputs of the sizing loop; None when there are none."""
        try:
            return await self.ask("sizing_inputs", short_s, long_s)
        except PoolError:
            return None


class MetricsActor:
    """The pool's `Metrics`, ticking once per interval."""

    # A coroutine, so that it runs on the actor's event loop and ticking begins with the actor.
    async def __init__(self, config: PoolConfig) -> None:  # type: ignore[misc]
        self._config = config
        self._metrics = Metrics(config.name, _metrics_options(config))
        self._observation = Observation(config, self._metrics)
        logs.configure(config)
        if ray.get_runtime_context().was_current_actor_reconstructed:
            # Only then: a new pool counts from zero, whatever ran here before under its name.
            self._observation.restore()
        self._checkpoint_task = asyncio.get_running_loop().create_task(self._observation.keep())
        self._limits = PoolLimits.of(config)
        self._ray_metrics = RayMetrics(config.name)
        self._tick_task = asyncio.get_running_loop().create_task(self._tick())

    def __repr__(self) -> str:
        return f"dspool metrics {self._config.name}"

    async def report(self, message: Delta | PoolStatus | EventBatch) -> None:
        self._observation.report(message)

    async def checkpoint(self) -> None:
        """Write the checkpoint now, not only every 30 s."""
        await self._observation.save()

    async def events(self, since: int = 0, limit: int = 100, timeout_s: float = 0.0) -> EventPage:
        """Events of the whole pool; see `Observation.events`."""
        return await self._observation.events(since, limit, timeout_s)

    async def metrics_snapshot(self) -> MetricsSnapshot:
        return self._metrics.snapshot()

    async def history(
        self, duration_s: float, *, program: str | None = None, ordinal: int | None = None
    ) -> HistoryView:
        return self._metrics.history(duration_s, program=program, ordinal=ordinal)

    async def table(
        self, duration_s: float, *, program: str | None = None, ordinal: int | None = None
    ) -> bytes:
        """History by column, for dashboards: a `Table` in msgpack."""
        return _encode(self._metrics.table(duration_s, program=program, ordinal=ordinal))

    async def live_update(self, after: float | None, *, workers: bool = False) -> bytes:
        """The pool now, and the rows since `after`: a `LiveUpdate` in msgpack."""
        return _encode(self._metrics.live_update(after, workers=workers))

    async def sizing_inputs(self, short_s: float, long_s: float) -> SizingInputs:
        return self._metrics.sizing_inputs(short_s, long_s)

    async def snapshot(self) -> Snapshot:
        """The snapshot for exporters."""
        return self._take_snapshot()

    def _take_snapshot(self) -> Snapshot:
        return Snapshot(
            metrics=self._metrics.snapshot(),
            histograms=self._metrics.histograms(),
            status=self._metrics.status(),
            limits=self._limits,
            events=self._observation.log.counts,
            refusals=self._observation.log.refusals,
        )

    async def _tick(self) -> None:
        every_s = export_interval_s(self._config.metrics_interval_s, os.environ)
        exported_at = -math.inf
        while True:
            await asyncio.sleep(self._config.metrics_interval_s)
            self._metrics.tick()
            now = time.monotonic()
            # Half a tick early rather than a whole one late.
            if now - exported_at < every_s - self._config.metrics_interval_s / 2:
                continue
            exported_at = now
            try:
                self._ray_metrics.export(self._take_snapshot(), now)
            except Exception as failed:
                # Ray's export must not end the pool's own metrics. The next tick tries again.
                log.warning("metrics were not given to Ray: %s", type(failed).__name__)


def _metrics_options(config: PoolConfig) -> MetricsOptions:
    history = config.history
    return MetricsOptions(
        fine_interval_s=history.fine_interval_s,
        fine_span_s=history.fine_span_s,
        coarse_interval_s=history.coarse_interval_s,
        coarse_span_s=history.coarse_span_s,
        max_wait_s=config.max_wait_s,
        max_queue=config.max_queue,
        slots_per_worker=config.slots_per_worker,
        pool_size=config.pool_size,
    )
