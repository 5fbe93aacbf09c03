"""The session store as an actor, and its callers' side."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.actor import ActorHandle

from dspool import private_files
from dspool.config import PoolConfig
from dspool.errors import StoreFailed, WorkerLost
from dspool.runtime.cluster import ask, find_actor, node_address
from dspool.runtime.metrics import RemoteMetrics
from dspool.runtime.store_place import remember
from dspool.store.claims import this_server
from dspool.store.place import RecordedStore
from dspool.store.settings import quotas_of, store_url
from dspool.store.store import SessionStore
from dspool.telemetry.event_log import EventBuffer
from dspool.telemetry.events import emit
from dspool.telemetry.refusals import Refusals

_LAST_WORDS_S = 1.0
"""Until a store that was replaced ends its process: who asks it now still hears why."""

T = TypeVar("T")
P = ParamSpec("P")


class StoreActor:
    """The session store of a pool. It opens its database at the first call, also after a restart.

    When another store serves the pool, it ends; Ray starts it again, and it serves once the other one does not.
    """

    def __init__(self, config: PoolConfig) -> None:
        if config.store_url is None:
            private_files.make_directory(config.state_dir)
        self._config = config
        self._store = SessionStore(
            store_url(config),
            quotas=quotas_of(config),
            settings=config.store,
            refused=Refusals(config.name).count,
        )
        self._events: asyncio.Task[None] | None = None
        self._open_task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return "dspool session store"

    async def take_settings(self, config: PoolConfig) -> None:
        """Go on with the limits of `config`."""
        self._config = config
        self._store.limit(quotas_of(config))

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of `SessionStore`."""
        if self._events is None and self._config.enable_metrics:
            self._events = asyncio.get_running_loop().create_task(self._report_events())
        if self._open_task is None:
            self._open_task = asyncio.get_running_loop().create_task(self._open())
        try:
            await asyncio.shield(self._open_task)
        except Exception:
            self._open_task = None
            raise
        return await getattr(self._store, method)(*args, **kwargs)

    async def _open(self) -> None:
        await self._store.open()
        actor, node = _own_ids()
        server = this_server(actor, node=node)
        server = await self._store.serve(self._config.name, server, on_superseded=self._end)
        if node and (url := store_url(self._config)).startswith("sqlite"):
            identity = (await self._store.describe(self._config.name)).identity
            here = RecordedStore(url=url, node=node, address=node_address(), identity=identity)
            with contextlib.suppress(Exception):  # Ray's control plane is away: its memory is no condition
                await asyncio.to_thread(remember, self._config.name, here)
        emit("store.serving", {"epoch": server.epoch}, {"pool": self._config.name, "node": node})

    def _end(self, refused: StoreFailed) -> None:
        emit("store.replaced", {}, {"pool": self._config.name, "reason": refused.message})
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, os._exit, 1)

    async def _report_events(self) -> None:
        events = EventBuffer(self._config.name, "store").attach()
        metrics = RemoteMetrics(self._config.name)
        while True:
            await asyncio.sleep(self._config.metrics_flush_interval_s)
            await events.deliver(metrics.report)

    async def close(self) -> None:
        await self._store.close()


def _own_ids() -> tuple[str, str]:
    """Of this actor, the same after a restart, and of its node."""
    if not ray.is_initialized():
        return uuid.uuid4().hex, ""
    context = ray.get_runtime_context()
    return context.get_actor_id() or uuid.uuid4().hex, context.get_node_id()


def _asked(
    method: Callable[Concatenate[SessionStore, P], Awaitable[T]],
) -> Callable[Concatenate[RemoteStore, P], Coroutine[Any, Any, T]]:
    """The method of `RemoteStore` that asks the actor for `method`."""
    name = method.__name__

    @functools.wraps(method)
    async def asked(store: RemoteStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await store._ask(name, *args, **kwargs)

    return asked


class RemoteStore:
    """`SessionStore` as others see it: the same methods, over the store actor.

    Each raises what the store raises, and `StoreFailed` while its actor cannot be reached.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._handle: ActorHandle[Any] | None = None

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = await find_actor(self._pool, "store")
            return await ask(self._handle, "ask", method, *args, **kwargs)
        except (WorkerLost, ValueError) as gone:
            self._handle = None
            raise StoreFailed(f"the session store is not reachable ({gone}); try again") from gone

    acquire = _asked(SessionStore.acquire)
    commit = _asked(SessionStore.commit)
    release = _asked(SessionStore.release)
    touch = _asked(SessionStore.touch)
    worker_dead = _asked(SessionStore.worker_dead)
    workers_alive = _asked(SessionStore.workers_alive)

    create = _asked(SessionStore.create)
    get = _asked(SessionStore.get)
    list = _asked(SessionStore.list)
    count = _asked(SessionStore.count)
    end = _asked(SessionStore.end)
    usage = _asked(SessionStore.usage)
    describe = _asked(SessionStore.describe)
    expire = _asked(SessionStore.expire)

    put_record = _asked(SessionStore.put_record)
    get_record = _asked(SessionStore.get_record)
    add_deployment = _asked(SessionStore.add_deployment)
    deployments = _asked(SessionStore.deployments)
    set_current = _asked(SessionStore.set_current)
    current_versions = _asked(SessionStore.current_versions)

    claim_key = _asked(SessionStore.claim_key)
    settle_key = _asked(SessionStore.settle_key)
    drop_key = _asked(SessionStore.drop_key)
    end_login = _asked(SessionStore.end_login)
    silence_alert = _asked(SessionStore.silence_alert)
    take_allowance = _asked(SessionStore.take_allowance)
