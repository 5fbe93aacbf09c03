"""A pool whose supervisor, store and metrics live in this process, on the event loop that opened it. No Ray."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import msgspec

from dspool.client.client import Client, ControlPlane
from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import SizingConfig
from dspool.direct import DirectPool
from dspool.errors import InternalError, NotAllowed, PoolError, UnknownWorker
from dspool.messages import PoolStatus
from dspool.runtime.administration import Administration
from dspool.runtime.inspection import Inspection
from dspool.runtime.storage import Storage
from dspool.store.claims import this_server
from dspool.store.settings import quotas_of, store_url
from dspool.store.store import SessionStore
from dspool.supervisor import Runtime, Supervisor
from dspool.telemetry.event_log import EventBatch, EventBuffer
from dspool.telemetry.pool_metrics import PoolMetrics

_DRAIN_S = 5.0

Report = Callable[[Any], Coroutine[Any, Any, None]]
MakeRuntime = Callable[[PoolConfig, bytes, SessionStore, Report | None], "LocalRuntime"]


class LocalWorker(Protocol):
    async def call(self, method: str, *args: Any) -> Any: ...


class LocalRuntime(Runtime, Protocol):
    """Starts workers in this process or as its children."""

    def worker(self, worker_id: str) -> LocalWorker | None: ...
    def close(self) -> None: ...


class LocalMetrics:
    """The pool's metrics in this process, ticking while the pool is open."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._metrics = PoolMetrics(config)
        self.note = ""
        """What is wrong with a pool that serves all the same; its status says so."""
        # What is sent in this process would be logged twice: once here, once from the buffer below.
        self._metrics.observation.close()
        self._events = EventBuffer(config.name, "pool").attach()
        self._task = asyncio.create_task(self._tick())

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What the method of this name of `PoolMetrics` answers."""
        await self._events.deliver(self._metrics.report)
        return await getattr(self._metrics, method)(*args, **kwargs)

    async def report(self, message: Any) -> None:
        # Clients and workers of this process have the same events as the buffer here.
        if not isinstance(message, EventBatch):
            await self._metrics.report(noted(message, self.note))

    async def _tick(self) -> None:
        due_s = 0.0
        while True:
            await asyncio.sleep(self._config.metrics_flush_interval_s)
            await self._events.deliver(self._metrics.report)
            due_s += self._config.metrics_flush_interval_s
            if due_s >= self._config.metrics_interval_s:
                due_s = 0.0
                self._metrics.metrics.tick()

    async def close(self) -> None:
        self._events.detach()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._metrics.operations.close()


class LocalPool(Administration, Inspection, Storage, DirectPool):
    """A pool in this process: the methods of `Pool`, and its checks and errors. Belongs to the loop that opened it."""

    def __init__(
        self,
        client: Client,
        supervisor: Supervisor,
        runtime: LocalRuntime,
        store: SessionStore,
        metrics: LocalMetrics | None,
    ) -> None:
        DirectPool.__init__(self, client.config.name, client)
        Storage.__init__(self, store)
        Inspection.__init__(self, metrics or _NoMetrics())
        self._supervisor, self._runtime, self._local_metrics = supervisor, runtime, metrics
        self._note = ""

    @classmethod
    @asynccontextmanager
    async def start(
        cls, config: PoolConfig, make_runtime: MakeRuntime, *, own_store: bool = False
    ) -> AsyncIterator[LocalPool]:
        """Run a pool for the length of the block. `own_store`: no other pool can know of its database.

        Raises:
            ConfigError: the configuration was refused.
            WorkerStartFailed: not enough workers were warm after `init_timeout_s`; says why.
        """
        async with AsyncExitStack() as stack:
            store = SessionStore(store_url(config), quotas=quotas_of(config), settings=config.store)
            stack.push_async_callback(store.close)
            await store.open()
            if not own_store:
                await store.serve(config.name, this_server(uuid.uuid4().hex))
            metrics = LocalMetrics(config) if config.enable_metrics else None
            if metrics is not None:
                stack.push_async_callback(metrics.close)
            report = metrics.report if metrics is not None else None
            secret = secrets.token_bytes(32)
            runtime = make_runtime(config, secret, store, report)
            stack.callback(runtime.close)
            sizing = SizingConfig.of(config)
            supervisor = Supervisor(
                config,
                runtime,
                store,
                observe=None
                if metrics is None
                else lambda: metrics.ask("sizing_inputs", sizing.short_window_s, sizing.long_window_s),
                report=report,
            )
            stack.push_async_callback(_shut_down, supervisor)
            await supervisor.start()
            client = Client(
                config,
                secret,
                ControlPlane(
                    watch=supervisor.watch,
                    report_dead=supervisor.report_dead,
                    wake=supervisor.wake if config.lazy else None,
                    report=report,
                ),
            )
            stack.push_async_callback(client.close)
            await client.start()
            pool = cls(client, supervisor, runtime, store, metrics)
            await pool.wait_ready()
            yield pool

    def note(self, text: str) -> None:
        """From here on the pool's status says that it is degraded, and why; `""` ends that."""
        self._note = text
        if self._local_metrics is not None:
            self._local_metrics.note = text

    async def status(self) -> PoolStatus:
        status: PoolStatus = noted(await super().status(), self._note)
        return status

    # --- what its service needs ---

    @property
    def ray_dashboard(self) -> None:
        return None

    async def worker_actor_id(self, worker_id: str) -> str:
        """Raises: UnknownWorker: no worker of this pool is an actor."""
        raise UnknownWorker(f"worker {worker_id[:100]!r} is no actor: this pool runs without Ray")

    # --- how the parts ask ---

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await getattr(self._supervisor, method)(*args, **kwargs)
        except PoolError:
            raise
        except Exception as failed:
            raise InternalError(f"{method} failed: {type(failed).__name__}: {failed}") from failed

    _query = _ask

    async def _call_worker(self, worker_id: str, method: str, *args: Any) -> Any:
        worker = self._runtime.worker(worker_id)
        if worker is None:
            raise UnknownWorker(f"there is no worker {worker_id[:100]!r}", worker=worker_id[:100])
        return await worker.call(method, *args)


class _NoMetrics:
    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotAllowed("this pool keeps no metrics: enable_metrics is off")


def noted(message: Any, note: str) -> Any:
    """`message`, and if it is the status of a pool, with `note` in it."""
    if note and isinstance(message, PoolStatus):
        return msgspec.structs.replace(message, state="degraded", reason=note)
    return message


async def _shut_down(supervisor: Supervisor) -> None:
    with contextlib.suppress(PoolError):
        await supervisor.shutdown(_DRAIN_S)


__all__ = ["LocalPool", "LocalRuntime", "LocalWorker", "MakeRuntime", "Report"]
