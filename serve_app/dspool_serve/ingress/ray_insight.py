"""`dspool_serve.insight.Insight` over a running pool: its metrics, its supervisor, its store and single workers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import ray
from ray.actor import ActorHandle

from dspool.config import PoolConfig
from dspool.core.lifecycle.warmup import StepRun, Strategy, WarmupReport
from dspool.core.metrics.measures import LiveUpdate, Table
from dspool.errors import UnknownWorker, WorkerLost
from dspool.messages import SessionInfo, WorkerId
from dspool.pool import Pool
from dspool.runtime.cluster import NAMESPACE, actor_name, ask, ask_supervisor, dashboard_url
from dspool.runtime.metrics import RemoteMetrics
from dspool.runtime.store import RemoteStore
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.event_log import EventPage
from dspool.telemetry.logs import LogTail
from dspool.telemetry.snapshot import Snapshot
from dspool_serve.insight import CurrentRollouts

WORKER_S = 2.0
"""How long one worker is waited for: one that hangs must not keep the page from showing the others."""
_REFUSED_S = 0.25
"""A warm-up that cannot begin says so in this time."""
_HANDLES = 1024

_look = msgspec.msgpack.Decoder(LiveUpdate).decode
_table = msgspec.msgpack.Decoder(Table).decode


class RayInsight:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._metrics = RemoteMetrics(pool.name)
        self._store = RemoteStore(pool.name)
        self._handles: dict[str, ActorHandle[Any]] = {}
        self._warming: asyncio.Future[Any] | None = None
        self._actor_ids: dict[str, str] = {}

    @property
    def config(self) -> PoolConfig:
        return self._pool.client.config

    @property
    def ray_dashboard(self) -> str | None:
        return dashboard_url()

    def signing_key(self) -> bytes:
        return self._pool.client.derived_key("dashboard")

    # --- figures ---

    async def look(self, after: float | None, *, workers: bool) -> LiveUpdate:
        return _look(await self._metrics.ask("look", after, workers=workers))

    async def table(
        self, duration_s: float, *, program: str | None = None, ordinal: int | None = None
    ) -> Table:
        return _table(await self._metrics.ask("table", duration_s, program=program, ordinal=ordinal))

    async def reading(self) -> Snapshot:
        return await self._metrics.ask("reading")

    async def events(self, since: int, limit: int) -> EventPage:
        return await self._pool.events(since, limit)

    # --- workers ---

    async def busy(self, worker_id: str) -> list[dict[str, Any]]:
        return await self._ask_worker(worker_id, "running")

    async def memory(self, worker_id: str) -> dict[str, float]:
        return await self._ask_worker(worker_id, "memory")

    async def log_tail(self, worker_id: str, lines: int) -> LogTail:
        return await self._ask_worker(worker_id, "log_tail", lines)

    async def actor_id(self, worker_id: str) -> str | None:
        known = self._actor_ids.get(worker_id)
        if known is None:
            known = self._handle(worker_id)._actor_id.hex()
            if len(self._actor_ids) < _HANDLES:
                self._actor_ids[worker_id] = known
        return known

    async def warm_runs(self, worker_id: str) -> list[StepRun]:
        return await self._ask_supervisor("warm_runs", worker_id)

    async def _ask_worker(self, worker_id: str, method: str, *args: Any) -> Any:
        try:
            return await asyncio.wait_for(ask(self._handle(worker_id), method, *args), WORKER_S)
        except TimeoutError:
            raise WorkerLost(f"worker {worker_id} did not answer within {WORKER_S:g} s") from None
        except WorkerLost:
            self._handles.pop(worker_id, None)
            raise

    def _handle(self, worker_id: str) -> ActorHandle[Any]:
        known = self._handles.get(worker_id)
        if known is not None:
            return known
        worker = WorkerId.parse(worker_id)
        if worker.pool != self._pool.name:
            raise UnknownWorker(f"there is no worker {worker_id[:100]!r}", worker=worker_id[:100])
        try:
            handle = ray.get_actor(actor_name(worker.pool, worker.role), namespace=NAMESPACE)
        except ValueError:
            raise UnknownWorker(f"there is no worker {worker_id[:100]!r}", worker=worker_id[:100]) from None
        while len(self._handles) >= _HANDLES:
            del self._handles[next(iter(self._handles))]
        self._handles[worker_id] = handle
        return handle

    # --- the supervisor ---

    async def decisions(self, limit: int) -> list[DecisionRecord]:
        return await self._ask_supervisor("decisions", limit)

    async def warmup(self) -> WarmupReport:
        return await self._ask_supervisor("warmup_report")

    async def warm_progress(self, since: int) -> list[WarmProgress]:
        return await self._ask_supervisor("warm_progress", since, 0.0)

    async def start_warm(self, strategy: Strategy | None) -> None:
        warming = asyncio.ensure_future(ask(self._pool.supervisor, "warm", strategy))
        # It goes on whoever looks. Kept, or it could be collected; and what it raises later is in its progress.
        warming.add_done_callback(lambda done: done.cancelled() or done.exception())
        done, _ = await asyncio.wait((warming,), timeout=_REFUSED_S)
        if done:
            warming.result()
        self._warming = warming

    async def rollouts(self) -> CurrentRollouts:
        return CurrentRollouts(*await self._ask_supervisor("rollouts"))

    async def _ask_supervisor(self, method: str, *args: Any) -> Any:
        return await ask_supervisor(self._pool.supervisor, method, *args)

    # --- sessions ---

    async def sessions(
        self, *, limit: int, after: str | None, owner: str | None = None, containing: str = ""
    ) -> tuple[list[SessionInfo], str | None]:
        return await self._store.list(
            self._pool.name, limit=limit, after=after, owner=owner, containing=containing
        )

    async def count_sessions(self) -> int:
        return await self._store.count(self._pool.name)


__all__ = ["RayInsight"]
