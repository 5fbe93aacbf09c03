"""The HTTP service of `dspool dev`: one uvicorn in the process of the pool, on loopback. No Ray Serve, no HAProxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from importlib import import_module
from typing import Any

import uvicorn

from dspool.config import PoolConfig
from dspool.corrections import uvicorn_connections
from dspool.errors import PoolNotReady, UnknownPool
from dspool_serve.api.application import Application
from dspool_serve.ingress.configured import security_of, settings_of
from dspool_serve.pools import ClusterPool, Settings

CONSOLE = "dspool_console"
"""Found by name, as in a deployment: imports point down."""


class OnePool:
    """The pool that is under work. It may be replaced, and be away for a moment."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pool: ClusterPool | None = None
        self.why_not = "it is starting"

    async def open(self) -> None:
        """It is opened by others."""

    async def close(self) -> None:
        """It is closed by others."""

    def names(self) -> list[str]:
        return [self.name] if self.pool is not None else []

    def get(self, name: str) -> ClusterPool:
        if name != self.name:
            raise UnknownPool(f"there is no pool {name!r} here; there is: {self.name}", pool=name)
        if self.pool is None:
            raise PoolNotReady(f"pool {name!r} is not there: {self.why_not}", retry_after_s=1.0)
        return self.pool


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        # Ctrl-C belongs to the command.
        return nullcontext()


@asynccontextmanager
async def serving(pools: OnePool, config: PoolConfig, listener: socket.socket) -> AsyncIterator[None]:
    """Serve on `listener` for the length of the block."""
    uvicorn_connections.install()
    security = security_of(config, None)
    app = Application(
        pools, Settings(**settings_of(config)), security, import_module(CONSOLE).Console(pools, security)
    )
    server = _Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    )
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not running.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await running


__all__ = ["OnePool", "serving"]
