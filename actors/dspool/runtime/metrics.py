"""The metrics as an actor, and its callers' side."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from typing import Any

import ray
from ray.actor import ActorHandle

from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import SizingInputs
from dspool.errors import PoolError, WorkerLost
from dspool.runtime.cluster import ask, find_actor
from dspool.runtime.exported import RayMetrics, export_interval_s
from dspool.telemetry import logs
from dspool.telemetry.operation_keeper import operations_file
from dspool.telemetry.pool_metrics import PoolMetrics

log = logging.getLogger("dspool.runtime")


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


class MetricsActor(PoolMetrics):
    """The pool's metrics, ticking once per interval, and given to Ray."""

    # A coroutine, so that it runs on the actor's event loop and ticking begins with the actor.
    async def __init__(self, config: PoolConfig, goes_on: bool = False) -> None:  # type: ignore[misc]
        super().__init__(config, operations_file(config))
        self._config = config
        logs.configure(config)
        # A new pool counts from zero, whatever ran here before under its name; its charts go on from there. One that
        # only has other settings goes on counting.
        is_new = not goes_on and not ray.get_runtime_context().was_current_actor_reconstructed
        self.observation.restore(history_only=is_new)
        self._checkpoint_task = asyncio.get_running_loop().create_task(self.observation.keep())
        self._ray_metrics = RayMetrics(config.name)
        self._tick_task = asyncio.get_running_loop().create_task(self._tick())

    def __repr__(self) -> str:
        return f"dspool metrics {self._config.name}"

    async def save(self) -> None:
        """Write down what there is, for a successor."""
        await self.observation.save()

    async def _tick(self) -> None:
        every_s = export_interval_s(self._config.metrics_interval_s, os.environ)
        exported_at = -math.inf
        while True:
            await asyncio.sleep(self._config.metrics_interval_s)
            self.metrics.tick()
            now = time.monotonic()
            # Half a tick early rather than a whole one late.
            if now - exported_at <= every_s - self._config.metrics_interval_s / 2:
                continue
            exported_at = now
            try:
                self._ray_metrics.export(self.take_snapshot(), now)
            except Exception as failed:
                # Ray's export must not end the pool's own metrics. The next tick tries again.
                log.warning("metrics were not given to Ray: %s", type(failed).__name__)
