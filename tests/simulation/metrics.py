"""The metrics of a simulated pool: the engine's own, in a process that may die, and what its callers send there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import SizingInputs
from dspool.errors import PoolError, WorkerLost
from dspool.telemetry import events
from dspool.telemetry.pool_metrics import PoolMetrics
from tests.simulation.actors import Gone
from tests.simulation.loop import Process, current

if TYPE_CHECKING:
    from tests.simulation.system import System


class RemoteMetrics:
    """As `runtime.metrics.RemoteMetrics`."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def ask(self, method: str, *args: Any) -> Any:
        try:
            return await self._system.cluster.ask(self._system.metrics, method, *args)
        except Gone as gone:
            raise WorkerLost(f"there is no metrics actor now: {gone}") from gone

    async def report(self, message: Any) -> None:
        await self.ask("report", message)

    async def sizing_inputs(self, short_s: float, long_s: float) -> SizingInputs | None:
        try:
            inputs: SizingInputs | None = await self.ask("sizing_inputs", short_s, long_s)
        except PoolError:
            return None
        return inputs


class MetricsActor(PoolMetrics):
    """As `runtime.metrics.MetricsActor`, without what it gives to Ray."""

    def __init__(self, config: PoolConfig, *, is_new: bool) -> None:
        super().__init__(config)
        self.observation.restore(history_only=is_new)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self.observation.keep()), loop.create_task(self._tick())]
        self._every_s = config.metrics_interval_s

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            self.metrics.tick()
            self.take_snapshot()


class HandlersByProcess(MutableMapping[str, Any]):
    """Who listens for events: each process has its own, though all of them share one module here."""

    def __init__(self) -> None:
        self._of: dict[Process, dict[str, Any]] = {}

    def _mine(self) -> dict[str, Any]:
        mine = self._of.get(process := current())
        if mine is None:
            mine = self._of[process] = dict.fromkeys(events.EVENTS, ())
        return mine

    def __getitem__(self, name: str) -> Any:
        return self._mine()[name]

    def __setitem__(self, name: str, handlers: Any) -> None:
        self._mine()[name] = handlers

    def __delitem__(self, name: str) -> None:
        del self._mine()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._mine()))

    def __len__(self) -> int:
        return len(self._mine())


def install() -> None:
    """Let nobody listen: for a new simulation."""
    events._handlers = HandlersByProcess()  # type: ignore[assignment]
