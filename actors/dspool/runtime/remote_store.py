"""The session store as others see it: over its actor, and without what only that loads.

Workers are forked from a process that holds this. SQLAlchemy, which the store itself needs, would be a sixth of it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from ray.actor import ActorHandle

from dspool.errors import StoreFailed, WorkerLost
from dspool.runtime.cluster import ask, find_actor
from dspool.runtime.store_hand_over import MOVED, SUCCESSOR_S, has_handed_over
from dspool.runtime.unfinished import is_noted
from dspool.worker.session_store import unhurried

if TYPE_CHECKING:
    from dspool.store.store import SessionStore
else:

    class _Names:
        """Its methods by name, which is all that asking for them takes."""

        def __getattr__(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(__name__=name)

    SessionStore = _Names()

_LOOK_S: Final = 0.05
_KNOWN_S: Final = 10.0

T = TypeVar("T")
P = ParamSpec("P")


def _asked(
    method: Callable[Concatenate[SessionStore, P], Awaitable[T]],
) -> Callable[Concatenate[RemoteStore, P], Coroutine[Any, Any, T]]:
    """The method of `RemoteStore` that asks the actor for `method`."""
    name = method.__name__

    @functools.wraps(method, assigned=("__name__",), updated=())
    async def asked(store: RemoteStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await store._ask(name, *args, **kwargs)

    return asked


async def _known(asked: Callable[..., bool], *args: str) -> bool:
    """What Ray's control plane knows; nothing while it is away."""
    try:
        async with asyncio.timeout(_KNOWN_S):
            return await asyncio.to_thread(asked, *args)
    except Exception:
        # Ray raises errors of many kinds here.
        return False


class _NotBegun(Exception):
    """The store did not begin what it was asked."""


class RemoteStore:
    """`SessionStore` as others see it: the same methods, over the store actor.

    Each raises what the store raises, and `StoreFailed` while its actor cannot be reached. While another store takes
    over, each waits for that one: only what certainly did not begin is asked again, so nothing is done twice.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._handle: ActorHandle[Any] | None = None

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._ask_once(method, *args, **kwargs)
        except _NotBegun:
            # Another one takes over: what it takes for that is no failure of it.
            async with unhurried(SUCCESSOR_S):
                return await self._ask_successor(method, *args, **kwargs)

    async def _ask_successor(self, method: str, *args: Any, **kwargs: Any) -> Any:
        until = time.monotonic() + SUCCESSOR_S
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                return await self._ask_once(method, *args, **kwargs)
            except _NotBegun as why:
                if time.monotonic() > until:
                    raise StoreFailed(
                        f"the session store is not reachable: none took over within {SUCCESSOR_S:g} s; try again"
                    ) from why

    async def _ask_once(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Raises: _NotBegun: another store takes over, and this is for that one."""
        handle = self._handle
        try:
            if handle is None:
                handle = self._handle = await find_actor(self._pool, "store")
            return await ask(handle, "ask", method, *args, **kwargs)
        except StoreFailed as refused:
            if not refused.details.get(MOVED):
                raise
            self._handle = None
            raise _NotBegun from refused
        except ValueError as nobody:
            # Its name is free between the one and the other.
            self._handle = None
            if await _known(is_noted, self._pool):
                raise _NotBegun from nobody
            raise StoreFailed(f"the session store is not reachable ({nobody}); try again") from nobody
        except WorkerLost as gone:
            self._handle = None
            if handle is not None and await self._had_handed_over(handle):
                raise _NotBegun from gone
            raise StoreFailed(f"the session store is not reachable ({gone}); try again") from gone

    async def _had_handed_over(self, handle: ActorHandle[Any]) -> bool:
        return await _known(has_handed_over, self._pool, handle._actor_id.hex())

    acquire = _asked(SessionStore.acquire)
    commit = _asked(SessionStore.commit)
    release = _asked(SessionStore.release)
    touch = _asked(SessionStore.touch)
    worker_dead = _asked(SessionStore.worker_dead)
    declared_dead = _asked(SessionStore.declared_dead)
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
