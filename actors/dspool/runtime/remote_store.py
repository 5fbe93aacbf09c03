"""The session store as others see it: over its actor, and without what only that loads.

Workers are forked from a process that holds this. SQLAlchemy, which the store itself needs, would be a sixth of it.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ray.actor import ActorHandle

from dspool.errors import StoreFailed, WorkerLost
from dspool.runtime.cluster import ask, find_actor

if TYPE_CHECKING:
    from dspool.store.store import SessionStore
else:

    class _Names:
        """Its methods by name, which is all that asking for them takes."""

        def __getattr__(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(__name__=name)

    SessionStore = _Names()

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
