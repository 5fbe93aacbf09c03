"""The dashboard of one service: what it keeps for each pool, made when somebody first looks."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from dspool.errors import PoolError, UnknownWorker
from dspool_console.alerts.watch import AlertWatch
from dspool_console.dashboard import view
from dspool_console.dashboard.changes import Changes
from dspool_console.dashboard.fresh import Fresh
from dspool_console.dashboard.hub import Hub
from dspool_console.dashboard.tables import encode_table
from dspool_console.dashboard.traces import OperationLog
from dspool_serve.access.logins import Logins
from dspool_serve.pools import ClusterPool, Pools

KEEP_S: Final = 1.0
MEMORY_KEEP_S: Final = 10.0
"""Reading it walks all of a process's memory map."""
REPLAY_KEEP_S: Final = 30.0
WORKERS_AT_ONCE: Final = 64


class Watched:
    """One pool, as it is looked at."""

    def __init__(self, pool: ClusterPool, wall: Callable[[], float]) -> None:
        self.pool = pool
        self.alerts = AlertWatch(pool.name, pool.snapshot, wall=wall)
        self.hub = Hub(Changes(pool, self.alerts, wall=wall), wall=wall)
        self.operations = OperationLog(pool.name, pool.config.state_dir)
        self.answers: Fresh[Any] = Fresh(KEEP_S)
        self._busy: Fresh[list[view.Row]] = Fresh(KEEP_S, limit=2048)
        self._memory: Fresh[dict[str, float]] = Fresh(MEMORY_KEEP_S, limit=2048)
        self.replaying = asyncio.Lock()
        self.replays: Fresh[Any] = Fresh(REPLAY_KEEP_S, limit=16)
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        # The alerts' own time runs whether somebody looks or not: one question every 15 s.
        if self._watching is None and self.pool.config.enable_metrics:
            self._watching = asyncio.get_running_loop().create_task(self.alerts.run())

    def close(self) -> None:
        self.hub.close()
        if self._watching is not None:
            self._watching.cancel()

    async def table(self, duration_s: float, program: str | None, ordinal: int | None) -> bytes:
        """History as JSON, made once for all who ask within a second."""

        async def make() -> bytes:
            table = await self.pool.table(duration_s, program=program, ordinal=ordinal)
            return encode_table(self.pool.name, table)

        found: bytes = await self.answers.get(("table", duration_s, program, ordinal), make)
        return found

    async def worker_rows(self) -> list[view.Row]:
        async def make() -> list[view.Row]:
            workers = {}
            status = None
            if self.pool.config.enable_metrics:
                try:
                    look = await self.pool.live_update(None, workers=True)
                    workers, status = look.snapshot.workers, look.status
                except PoolError:
                    status = None
            return view.worker_rows(status or await self.pool.status(), workers, {})

        found: list[view.Row] = await self.answers.get("workers", make)
        return found

    async def worker(self, worker_id: str) -> view.Row:
        """Raises: UnknownWorker."""
        for row in await self.worker_rows():
            if row["id"] == worker_id:
                return row
        raise UnknownWorker(
            f"pool {self.pool.name} has no worker {worker_id[:100]!r}", worker=worker_id[:100]
        )

    async def busy(self, worker_id: str) -> list[view.Row] | None:
        """What runs on the worker; None if it does not answer."""
        try:
            return await self._busy.get(worker_id, lambda: self.pool.worker_operations(worker_id))
        except PoolError:
            return None

    async def memory(self, worker_id: str) -> dict[str, float] | None:
        try:
            return await self._memory.get(worker_id, lambda: self.pool.worker_memory(worker_id))
        except PoolError:
            return None


class Dashboard:
    """All pools of one service. One event loop owns it."""

    def __init__(self, pools: Pools, *, wall: Callable[[], float] = time.time) -> None:
        self._pools, self._wall = pools, wall
        self._watched: dict[str, Watched] = {}
        self._own_key = secrets.token_bytes(32)
        self.wrong_logins: deque[float] = deque()
        """When wrong tokens were presented (monotonic); bounded by who is refused meanwhile."""
        self.logins = Logins(self._key, wall=wall)

    def start(self) -> None:
        """Begin to watch over the alerts of all pools."""
        for name in self._pools.names():
            self.of(name).start()

    def close(self) -> None:
        for watched in self._watched.values():
            watched.close()
        self._watched.clear()

    def names(self) -> list[str]:
        return self._pools.names()

    def of(self, name: str) -> Watched:
        """Raises: UnknownPool."""
        pool = self._pools.get(name)
        known = self._watched.get(name)
        if known is None or known.pool is not pool:
            if known is not None:
                known.close()
            known = self._watched[name] = Watched(pool, self._wall)
        return known

    def _key(self) -> bytes:
        """Derived from a pool's secret, which all ingress processes know; a service without a pool has its own."""
        for name in sorted(self._pools.names()):
            return self._pools.get(name).signing_key()
        return self._own_key


__all__ = ["WORKERS_AT_ONCE", "Dashboard", "Watched"]
