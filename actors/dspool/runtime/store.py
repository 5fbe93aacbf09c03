"""The session store as an actor, and its callers' side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from dspool.config import PoolConfig
from dspool.errors import PoolError, StoreFailed, WorkerLost
from dspool.runtime.cluster import NAMESPACE, actor_name, ask
from dspool.store.store import SessionStore


class StoreActor:
    """The session store of a pool. It opens its database at the first call, also after a restart."""

    def __init__(self, url: str) -> None:
        self._store = SessionStore(url)
        self._open_task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return "dspool session store"

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of `SessionStore`."""
        if self._open_task is None:
            self._open_task = asyncio.get_running_loop().create_task(self._store.open())
        try:
            await asyncio.shield(self._open_task)
        except PoolError:
            self._open_task = None
            raise
        return await getattr(self._store, method)(*args, **kwargs)

    async def close(self) -> None:
        await self._store.close()


class RemoteStore:
    """The methods of `SessionStore`, over the store actor."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._handle: ActorHandle[Any] | None = None

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            try:
                if self._handle is None:
                    self._handle = ray.get_actor(actor_name(self._pool, "store"), namespace=NAMESPACE)
                return await ask(self._handle, "ask", method, *args, **kwargs)
            except (WorkerLost, ValueError) as gone:
                self._handle = None
                raise StoreFailed(f"the session store is not reachable ({gone}); try again") from gone

        return call


def session_store(pool: str) -> SessionStore:
    """A `RemoteStore`, typed as the store that it stands for."""
    return cast(SessionStore, RemoteStore(pool))


def store_url(config: PoolConfig) -> str:
    return config.store_url or f"sqlite:///{config.state_dir / 'sessions.db'}"
