"""The Ray Serve deployment: ingress replicas that each hold a `Pool` client."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from ray import serve
from ray.serve import Application as BoundApplication
from starlette.types import ASGIApp

from dspool.config import PoolConfig
from dspool.corrections import serve_replica, serve_requests, uvicorn_connections
from dspool.errors import UnknownPool, suggestion
from dspool.pool import Pool
from dspool.runtime.cluster import node_address
from dspool.runtime.installed import StartCommand
from dspool.telemetry import logs
from dspool.tokens import from_environment
from dspool_serve.access.cors import CrossOrigin
from dspool_serve.access.security import Security
from dspool_serve.api.application import Application
from dspool_serve.http.root_path import UnderRoot
from dspool_serve.ingress import haproxy
from dspool_serve.ingress.configured import security_of, settings_of
from dspool_serve.ingress.service_record import service_ends
from dspool_serve.ingress.spreading import Spread, spread_of
from dspool_serve.pools import Pools, Settings

DEPLOYMENT = "dspool-http"
CONSOLE = "dspool_console"
"""The only mention of the console below it: imports point down, so it is found by name."""
NO_LIMIT = 1_000_000
"""Requests one replica may hold. The pool's own queue is the bound; a second one here would only hide it."""


class RayPools:
    """The pools called `names`, connected to when the server starts."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._pools: dict[str, Pool] = {}

    async def open(self) -> None:
        for name in self._names:
            pool = await Pool.connect(name)
            logs.configure(pool.client.config, events=False)
            self._pools[name] = pool

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()
        self._pools.clear()

    def names(self) -> list[str]:
        return list(self._pools)

    def get(self, name: str) -> Pool:
        pool = self._pools.get(name)
        if pool is None:
            known = ", ".join(self._pools) or "none yet"
            raise UnknownPool(
                f"there is no pool {name!r} here{suggestion(name, self._pools)}; there is: {known}", pool=name
            )
        return pool


@serve.ingress()
class HttpIngress:
    """One ingress process. Serve hands each request straight to the ASGI application."""

    def __init__(
        self,
        pools: Callable[[], Pools],
        settings: dict[str, Any],
        security: Callable[[], Security] = Security,
        console: str | None = CONSOLE,
        is_reachable: bool = False,
        beside: Any = None,
    ) -> None:
        """`beside` is a deployment that is to run with this one; it is not asked."""
        self._pools = pools
        self._console = console
        self._settings = Settings(**settings)
        self._security = security
        # Before Serve starts the servers of this replica.
        uvicorn_connections.install()
        # uvicorn believes `X-Forwarded-For` from loopback, which HAProxy passes on as the client sent it.
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
        replica = import_module("ray.serve._private.replica")
        serve_replica.install(replica, node_address(), is_reachable=is_reachable)
        serve_replica.stay(replica, service_ends)
        serve_requests.install(replica)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        pools, security = self._pools(), self._security()
        console = None if self._console is None else import_module(self._console).Console(pools, security)
        app: ASGIApp = Application(pools, self._settings, security, console)
        if origins := self._settings.cors_origins:
            app = CrossOrigin(app, origins)
        return UnderRoot(app, root) if (root := self._settings.root_path) else app

    def check_health(self) -> None:
        """Being able to run this is the health that Serve has to know; workers are the supervisor's business."""


def build_app(
    config: PoolConfig,
    *,
    pools: Callable[[], Pools] | None = None,
    names: Sequence[str] = (),
    client_header: str | None = None,
    spread: Spread | None = None,
    variables: Mapping[str, str] | None = None,
    beside: Any = None,
    code: StartCommand | None = None,
) -> BoundApplication:
    """The Serve application for `serve.run`.

    `pools` makes, in each replica, the pools to serve; by default those called `names`, else the configured one, which
    must be running. What is in front of the replicas puts the client's address into `client_header`, which nobody else
    can send; without one the client is whoever opened the connection. `spread` says on which nodes it runs; None: on
    the only one. `variables` are what the replicas find in their environment beside that of their node. `beside` is a
    deployment that belongs to the same application. The replicas run `code`, by default what Serve runs.
    """
    spread = spread or spread_of(config, nodes=1, has_tokens=False)
    settings = settings_of(config, client_header=client_header, echo_request_id=False)
    # A change starts the new processes first: with one replica there would be none in between. Where each node has its
    # own number of them there is no room for more, and other nodes serve meanwhile.
    placed: dict[str, Any] = (
        {"max_surge_percent": 100} if spread.per_node is None else {"max_replicas_per_node": spread.per_node}
    )
    options: dict[str, Any] = {"num_cpus": 0}
    if spread.resources:
        options["resources"] = spread.resources
    if variables:
        options["runtime_env"] = {"env_vars": dict(variables)}
    if code is not None:
        chosen = code.exec_env()
        options["runtime_env"] = {**chosen, "env_vars": {**(variables or {}), **chosen["env_vars"]}}
    deployment: serve.Deployment = serve.deployment(  # type: ignore[assignment]
        HttpIngress,
        name=DEPLOYMENT,
        num_replicas=spread.replicas,
        **placed,
        max_ongoing_requests=NO_LIMIT,
        # Placed wherever there is room: a full machine must not keep the door closed.
        ray_actor_options=options,
        health_check_period_s=haproxy.LOOK_S,
        graceful_shutdown_wait_loop_s=0.1,
        # A running operation may take its whole deadline before its replica is stopped.
        graceful_shutdown_timeout_s=serve_replica.STAY_S + config.operation_timeout_s + 5.0,
        # One log line a request is what the access log costs us; operations have their own spans and metrics.
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    security = partial(security_of, config, from_environment(os.environ))
    connect = pools or partial(RayPools, list(names) or [config.name])
    return deployment.bind(
        connect,
        settings,
        security,
        is_reachable=spread.is_reachable,
        beside=beside,
    )


__all__ = ["DEPLOYMENT", "HttpIngress", "RayPools", "build_app"]
