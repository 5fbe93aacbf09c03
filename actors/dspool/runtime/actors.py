"""The raw actors of a pool, and how the parts of `Pool` ask them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.actor import ActorHandle

from dspool.client.client import Client
from dspool.errors import UnknownWorker, WorkerLost
from dspool.messages import WorkerId
from dspool.runtime.administration import Administration
from dspool.runtime.cluster import (
    NAMESPACE,
    actor_name,
    ask,
    dashboard_url,
    find_actor,
)
from dspool.runtime.inspection import Inspection
from dspool.runtime.metrics import RemoteMetrics
from dspool.runtime.remote_store import RemoteStore
from dspool.runtime.storage import Storage
from dspool.runtime.supervisor_link import SupervisorLink
from dspool.store.store import SessionStore
from dspool.telemetry.log_files import LogPage, LogQuery

if TYPE_CHECKING:
    from dspool.runtime.lifecycle import SupervisorActor
    from dspool.runtime.metrics import MetricsActor
    from dspool.runtime.store import StoreActor
    from dspool.runtime.workers import WorkerActor

_HANDLES = 1024


class PoolActors(Administration, Inspection, Storage):
    """The part of `Pool` that asks its actors on the Ray cluster."""

    name: str
    client: Client

    def __init__(self, pool: str, supervisor: SupervisorLink) -> None:
        Inspection.__init__(self, RemoteMetrics(pool))
        Storage.__init__(self, cast(SessionStore, RemoteStore(pool)))
        self._supervisor = supervisor
        self._handles: dict[str, ActorHandle[WorkerActor]] = {}
        """Of the workers that callers asked about; bounded."""

    @property
    def supervisor(self) -> ActorHandle[SupervisorActor]:
        """The raw supervisor actor: `await pool.supervisor.status.remote()`. What its methods are may change."""
        return self._supervisor.handle

    @property
    def metrics(self) -> ActorHandle[MetricsActor]:
        """The raw metrics actor. Raises: ValueError: there is none now."""
        return ray.get_actor(actor_name(self.name, "metrics"), namespace=NAMESPACE)

    @property
    def store(self) -> ActorHandle[StoreActor]:
        """The raw store actor. Raises: ValueError: there is none now."""
        return ray.get_actor(actor_name(self.name, "store"), namespace=NAMESPACE)

    def workers(self) -> dict[str, ActorHandle[WorkerActor]]:
        """Raw handles of the workers that take traffic, by worker id: `await handle.health.remote()`.

        For looking and for experiments: what is called there goes past the queue, and what its methods are may change.
        """
        handles = {}
        for member in self.client.membership.workers:
            name = actor_name(self.name, WorkerId.parse(member.worker_id).role)
            handles[member.worker_id] = ray.get_actor(name, namespace=NAMESPACE)
        return handles

    @property
    def ray_dashboard(self) -> str | None:
        """The URL of Ray's own dashboard, if it runs."""
        return dashboard_url()

    async def worker_actor_id(self, worker_id: str) -> str:
        """The id of its actor in Ray, in hex. Raises: UnknownWorker."""
        return (await self._handle(worker_id))._actor_id.hex()

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._supervisor.ask(method, *args, **kwargs)

    async def _query(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._supervisor.query(method, *args, **kwargs)

    async def _log_pages(self, query: LogQuery) -> list[LogPage]:
        node, page = await self._query("log_lines", query)
        others = {member.node: member.worker_id for member in self.client.membership.workers}
        others.pop(node, None)
        found = await asyncio.gather(
            *(self._ask_worker(id, "log_lines", query) for id in others.values()), return_exceptions=True
        )
        # A node that is on its way out has to be done without.
        return [page, *(other for other in found if isinstance(other, LogPage))]

    async def _call_worker(self, worker_id: str, method: str, *args: Any) -> Any:
        try:
            return await ask(await self._handle(worker_id), method, *args)
        except WorkerLost:
            self._handles.pop(worker_id, None)
            raise

    async def _handle(self, worker_id: str) -> ActorHandle[Any]:
        if (handle := self._handles.get(worker_id)) is not None:
            return handle
        worker = WorkerId.parse(worker_id)
        unknown = UnknownWorker(f"there is no worker {worker_id[:100]!r}", worker=worker_id[:100])
        if worker.pool != self.name:
            raise unknown
        try:
            handle = await find_actor(self.name, worker.role)
        except ValueError:
            raise unknown from None
        while len(self._handles) >= _HANDLES:
            del self._handles[next(iter(self._handles))]
        self._handles[worker_id] = handle
        return handle
