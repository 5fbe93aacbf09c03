"""The Ray Serve deployment: ingress replicas that each hold a `Pool` client."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray import serve
from ray.serve import Application as BoundApplication

from dspool.commands import PoolStatus, SessionInfo
from dspool.config import PoolConfig
from dspool.errors import UnknownPool
from dspool.pool import Pool
from dspool.ray_runtime import RemoteStore
from dspool_serve.app import Application
from dspool_serve.pools import Pools, ServedPool, Settings

DEPLOYMENT = "dspool-http"
NO_LIMIT = 1_000_000
"""Requests one replica may hold. The pool's own queue is the bound; a second one here would only hide it."""


class RayPool:
    """A `dspool.Pool` as the routes see it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.name = pool.name
        self.run = pool.run

    async def status(self) -> PoolStatus:
        return await self._pool.status()

    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]:
        return await self._pool.sessions(limit=limit, after=after)

    async def session_info(self, id: str) -> SessionInfo:
        info: SessionInfo = await RemoteStore(self.name).get(self.name, id)
        return info

    async def end_session(self, id: str) -> None:
        await self._pool.end_session(id)

    async def close(self) -> None:
        await self._pool.close()


class RayPools:
    """The pools called `names`, connected to when the server starts."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._pools: dict[str, RayPool] = {}

    async def open(self) -> None:
        for name in self._names:
            self._pools[name] = RayPool(await Pool.connect(name))

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()
        self._pools.clear()

    def names(self) -> list[str]:
        return list(self._pools)

    def get(self, name: str) -> ServedPool:
        pool = self._pools.get(name)
        if pool is None:
            known = ", ".join(self._pools) or "none yet"
            raise UnknownPool(f"there is no pool {name!r} here; there is: {known}", pool=name)
        return pool


@serve.ingress()
class HttpIngress:
    """One ingress process. Serve hands each request straight to the ASGI application."""

    def __init__(self, pools: Callable[[], Pools], settings: dict[str, Any]) -> None:
        self._pools = pools
        self._settings = Settings(**settings)

    def __serve_build_asgi_app__(self) -> Application:
        return Application(self._pools(), self._settings)

    def check_health(self) -> None:
        """Being able to run this is the health that Serve has to know; workers are the supervisor's business."""


def build_app(config: PoolConfig, *, pools: Callable[[], Pools] | None = None) -> BoundApplication:
    """The Serve application for `serve.run`. `pools` makes, in each replica, the pools to serve;
    by default the configured one, which must be running.
    """
    settings = {
        "max_body_bytes": config.service.max_body_bytes,
        "operation_timeout_s": config.operation_timeout_s,
        "echo_request_id": False,
    }
    deployment: serve.Deployment = serve.deployment(  # type: ignore[assignment]
        HttpIngress,
        name=DEPLOYMENT,
        num_replicas=config.service.replicas,
        max_ongoing_requests=NO_LIMIT,
        # Placed wherever there is room: a full machine must not keep the door closed.
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=5.0,
        graceful_shutdown_wait_loop_s=0.1,
        # A running operation may take its whole deadline before its replica is stopped.
        graceful_shutdown_timeout_s=config.operation_timeout_s + 5.0,
        # One log line a request is what the access log costs us; operations have their own spans and metrics.
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return deployment.bind(pools or partial(RayPools, [config.name]), settings)


__all__ = ["DEPLOYMENT", "HttpIngress", "RayPools", "build_app"]
