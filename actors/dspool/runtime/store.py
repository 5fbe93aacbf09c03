"""The session store as an actor. Its callers' side is `remote_store`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from typing import Any

import msgspec
import ray

from dspool import private_files
from dspool.config import PoolConfig
from dspool.core.admission.quotas import Quotas
from dspool.errors import StoreFailed
from dspool.runtime import store_hand_over
from dspool.runtime.cluster import node_address
from dspool.runtime.metrics import RemoteMetrics
from dspool.runtime.store_place import remember
from dspool.store.place import RecordedStore
from dspool.store.settings import quotas_of, store_url
from dspool.telemetry.event_log import EventBuffer
from dspool.telemetry.events import emit
from dspool.telemetry.refusals import Refusals

_LIMITS = "limits"
_GOES_ON_S = 30.0
"""After so long nobody takes over from a store that handed over: it goes on."""
_ANSWERED_S = 10.0
_SENT_S = 0.05
"""Until the process of a store that handed over may end: the last answers have left it by then."""
_LAST_WORDS_S = 1.0
"""Until a store that was replaced ends its process: who asks it now still hears why."""


class StoreActor:
    """The session store of a pool. It opens its database at the first call, also after a restart.

    When another store serves the pool, it ends; Ray starts it again, and it serves once the other one does not.
    """

    def __init__(self, config: PoolConfig) -> None:
        # Here and not above: who has a handle of this actor has this module, and needs nothing of SQL.
        from dspool.store.store import SessionStore

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
        self._accepted = 0
        """Calls without an answer yet."""
        self._answered = asyncio.Event()
        self._handed_over_at: float | None = None

    def __repr__(self) -> str:
        return "dspool session store"

    async def take_settings(self, config: PoolConfig) -> None:
        """Go on with the limits of `config`, also after a restart: Ray repeats that with the first configuration.

        Raises:
            StoreFailed: they are not kept, and nothing has changed.
        """
        quotas = quotas_of(config)
        kept = {"actor": _own_ids()[0], "quotas": msgspec.to_builtins(quotas)}
        await self.ask("put_record", config.name, _LIMITS, kept)
        self._config = config
        self._store.limit(quotas)

    async def hand_over(self) -> None:
        """Take nothing more, answer what was taken, and give the pool back: another store may serve at once.

        Raises:
            StoreFailed: what was taken is not answered in time; this store goes on.
        """
        pool, loop = self._config.name, asyncio.get_running_loop()
        self._handed_over_at = loop.time()
        try:
            async with asyncio.timeout(_ANSWERED_S):
                while self._accepted:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            self._handed_over_at = None
            raise StoreFailed(
                f"the session store of pool {pool!r} is busy: {self._accepted} calls are not answered after "
                f"{_ANSWERED_S:g} s; try again",
                pool=pool,
            ) from None
        await self._store.close()
        await asyncio.sleep(_SENT_S)
        self._open_task = None
        await asyncio.to_thread(store_hand_over.note, pool, _own_ids()[0])

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of `SessionStore`.

        Raises:
            StoreFailed: with the detail `moved`: it was not begun, as another store takes over.
        """
        if self._handed_over_at is not None:
            if asyncio.get_running_loop().time() - self._handed_over_at < _GOES_ON_S:
                raise store_hand_over.refusal(self._config.name)
            self._handed_over_at = None
        self._accepted += 1
        try:
            return await self._ask(method, *args, **kwargs)
        finally:
            self._accepted -= 1
            self._answered.set()

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
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
        from dspool.store.claims import this_server

        await self._store.open()
        actor, node = _own_ids()
        # It handed over, and nobody took over: from here on it takes calls that it may not answer.
        await asyncio.to_thread(store_hand_over.forget, self._config.name, actor)
        server = this_server(actor, node=node)
        server = await self._store.serve(self._config.name, server, on_superseded=self._end)
        kept = await self._store.get_record(self._config.name, _LIMITS)
        # Those of an earlier store are no business of this one: its configuration is younger.
        if isinstance(kept, dict) and kept.get("actor") == actor:
            self._store.limit(msgspec.convert(kept["quotas"], Quotas))
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
