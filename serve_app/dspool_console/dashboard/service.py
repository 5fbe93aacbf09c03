"""The dashboard of one service: what it keeps for each pool, made when somebody first looks."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dspool.core.admission.attempts import Attempts
from dspool_console.alerts.watch import AlertWatch
from dspool_console.dashboard.changes import Changes
from dspool_console.dashboard.hub import Hub
from dspool_console.dashboard.traces import OperationLog
from dspool_serve.access.logins import Logins
from dspool_serve.access.security import Security
from dspool_serve.api.common import measured_pool
from dspool_serve.context import Context
from dspool_serve.fresh import Fresh
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.pools import ClusterPool, Pools

KEEP_S: Final = 1.0
WRONG_AT_ONCE: Final = 20
WRONG_IN_S: Final = 60.0
"""So many wrong tokens of one address in this time; guessing 256 random bits is hopeless all the same."""
REPLAY_KEEP_S: Final = 30.0
REPORT_KEEP_S: Final = 10.0


class PoolWatch:
    """What is kept of one pool for all who look at it."""

    def __init__(self, pool: ClusterPool, wall: Callable[[], float]) -> None:
        self.pool = pool
        self.alerts = AlertWatch(pool.name, pool.snapshot, read_silences=pool.silences, wall=wall)
        self.hub = Hub(Changes(pool, self.alerts, wall=wall), wall=wall)
        self.operations = OperationLog(pool.name, pool.config.state_dir)
        self.answers: Fresh[Any] = Fresh(KEEP_S)
        self.reports: Fresh[Response] = Fresh(REPORT_KEEP_S, limit=4)
        self.replays: Fresh[Any] = Fresh(REPLAY_KEEP_S, limit=16)
        self._alerting: asyncio.Task[None] | None = None

    def start(self) -> None:
        # The alerts' own time runs whether somebody looks or not: one question every 15 s.
        if self._alerting is None and self.pool.config.enable_metrics:
            self._alerting = asyncio.get_running_loop().create_task(self.alerts.run())

    def close(self) -> None:
        self.hub.close()
        if self._alerting is not None:
            self._alerting.cancel()


class Dashboard:
    """All pools of one service. One event loop owns it."""

    def __init__(self, pools: Pools, *, wall: Callable[[], float] = time.time) -> None:
        self._pools, self._wall = pools, wall
        self._watches: dict[str, PoolWatch] = {}
        self._own_key = secrets.token_bytes(32)
        self.wrong_logins = Attempts(WRONG_AT_ONCE, WRONG_IN_S)
        self.logins = Logins(self._key, self._login_store, wall=wall)

    def start(self) -> None:
        """Begin to watch over the alerts of all pools."""
        for name in self._pools.names():
            self.of(name).start()

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()

    def names(self) -> list[str]:
        return self._pools.names()

    def of(self, name: str) -> PoolWatch:
        """Raises: UnknownPool."""
        pool = self._pools.get(name)
        watch = self._watches.get(name)
        if watch is None or watch.pool is not pool:
            if watch is not None:
                watch.close()
            watch = self._watches[name] = PoolWatch(pool, self._wall)
        return watch

    def _login_store(self) -> ClusterPool | None:
        """That of the pool whose key it is."""
        names = sorted(self._pools.names())
        return self._pools.get(names[0]) if names else None

    def _key(self) -> bytes:
        """Derived from a pool's secret, which all ingress processes know; a service without a pool has its own."""
        pool = self._login_store()
        return self._own_key if pool is None else pool.signing_key()


@dataclass(frozen=True, slots=True)
class ConsoleContext(Context):
    """What a handler of the dashboard gets besides its request."""

    dashboard: Dashboard
    security: Security

    def watch(self, request: Request) -> PoolWatch:
        """What is kept of the pool that `request` is about. Raises: UnknownPool."""
        return self.dashboard.of(request.params["pool"])

    def measured_watch(self, request: Request) -> PoolWatch:
        """As `watch`, of a pool that keeps metrics. Raises also: NotAllowed."""
        measured_pool(self, request)
        return self.watch(request)


__all__ = ["ConsoleContext", "Dashboard", "PoolWatch"]
