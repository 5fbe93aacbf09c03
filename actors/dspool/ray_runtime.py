"""The parts as Ray actors. With `pool`, the only module that imports Ray.

All actors of a pool are detached and named, in one namespace: an actor that another actor started would die with it.
Nothing but `dismantle` removes them. A call on a handle raises `PoolError`s only; see `ask`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from dspool import forkserver, logs
from dspool.commands import Deployment, Member, PoolStatus, WorkerStatus
from dspool.config import PoolConfig, WarmupStep
from dspool.core.measures import HistoryView, MetricsSnapshot
from dspool.core.recorder import Delta
from dspool.core.sizing import Observed, SizingConfig
from dspool.errors import (
    InternalError,
    PoolClosed,
    PoolError,
    PoolNotReady,
    StoreFailed,
    UnknownPool,
    WorkerLost,
)
from dspool.event_log import EventBatch, EventBuffer, EventPage
from dspool.metric_reading import Limits, Reading
from dspool.metrics import Metrics, MetricsOptions
from dspool.observation import Observation
from dspool.ray_metrics import RayMetrics
from dspool.store import SessionStore
from dspool.supervisor import Supervisor, WorkerHandle
from dspool.worker import Worker

log = logging.getLogger("dspool.runtime")

NAMESPACE = "dspool"
_MANY = 10_000
"""Calls an async actor takes at once: long polls wait in it, and none may hold up another."""
LOOPBACK = "127.0.0.1"
_RESTART_S = 20.0
"""A supervisor that does not come back in this time is not waited for."""
_ASK_AGAIN_S = 0.1
_CLOSE_STORE_S = 2.0
_GONE_S = 5.0


# --- the cluster -----------------------------------------------------------------------------------


def start_cluster(temp_dir: Path | None = None) -> Path:
    """Start a Ray cluster of our own on this machine; its directory.

    Ray turns token authentication on for such a cluster unless `RAY_AUTH_MODE` says otherwise. Socket paths are
    limited to 107 bytes, so the default is a short directory of its own.
    """
    directory = temp_dir or Path(tempfile.mkdtemp(prefix="dsp-", dir="/tmp"))
    # Compiled modules are what makes the next worker start fast.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Ray runs all actors at nice 15. On a busy machine that starves the pool behind its own clients: with it, a pool
    # under load was whole again 162 ms (p50) and 342 ms (max) after a SIGKILL, without it after 67 and 95 ms.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        namespace=NAMESPACE,
        _temp_dir=str(directory),
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    return directory


def join_cluster(address: str) -> None:
    ray.init(address=address, namespace=NAMESPACE, logging_level=logging.WARNING, log_to_driver=False)


async def ask(handle: ActorHandle[Any], method: str, *args: Any, **kwargs: Any) -> Any:
    """Call an actor and wait for its answer.

    Raises:
        PoolError: what the actor raised; `WorkerLost` when it is gone.
    """
    try:
        return await _call(handle, method, *args, **kwargs)
    except RayActorError as died:
        raise WorkerLost(f"the actor that was asked for {method} is gone: {_cause(died)}") from died


async def ask_supervisor(handle: ActorHandle[Any], method: str, *args: Any, **kwargs: Any) -> Any:
    """Ask a question that may be asked twice; while Ray restarts the supervisor, wait for it.

    Raises:
        PoolError: what the supervisor raised.
        PoolClosed: the pool has ended.
        PoolNotReady: the supervisor did not come back in time; traffic goes on meanwhile.
    """
    until = time.monotonic() + _RESTART_S
    while True:
        try:
            return await _call(handle, method, *args, **kwargs)
        except ActorDiedError as died:
            raise PoolClosed(f"this pool has ended ({_cause(died)})") from died
        except RayActorError as away:
            if time.monotonic() > until:
                raise PoolNotReady(
                    f"the pool's supervisor is being restarted: {_cause(away)}", retry_after_s=1.0
                ) from away
            await asyncio.sleep(_ASK_AGAIN_S)


async def _call(handle: ActorHandle[Any], method: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return await getattr(handle, method).remote(*args, **kwargs)
    except RayTaskError as failed:
        cause = failed.cause
        if isinstance(cause, PoolError):
            raise cause from None
        raise InternalError(f"{method} failed: {type(cause).__name__}: {cause}") from failed
    except RayActorError:
        raise
    except RayError as failed:
        raise InternalError(f"{method} could not be asked: {type(failed).__name__}") from failed


def actor_name(pool: str, role: str) -> str:
    return f"dspool:{pool}:{role}"


def find_supervisor(pool: str) -> ActorHandle[Any]:
    """Raises: UnknownPool: no such pool on this cluster."""
    try:
        return ray.get_actor(actor_name(pool, "supervisor"), namespace=NAMESPACE)
    except ValueError:
        known = ", ".join(list_pools()) or "none"
        raise UnknownPool(
            f"there is no pool {pool!r} on this cluster (pools here: {known})", pool=pool
        ) from None


def list_pools() -> list[str]:
    """Names of the pools on this cluster, sorted."""
    return sorted(name.split(":")[1] for name in _actor_names("dspool:") if name.endswith(":supervisor"))


def _actor_names(prefix: str) -> list[str]:
    names = [
        actor["name"] or ""
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE
    ]
    return [name for name in names if name.startswith(prefix)]


# --- store and metrics -----------------------------------------------------------------------------


class StoreActor:
    """The session store of a pool's cluster. It opens its database at the first question, also after a restart."""

    def __init__(self, url: str) -> None:
        self._store = SessionStore(url)
        self._opening: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return "dspool session store"

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of `SessionStore`."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._store.open())
        try:
            await asyncio.shield(self._opening)
        except PoolError:
            self._opening = None
            raise
        return await getattr(self._store, method)(*args, **kwargs)

    async def close(self) -> None:
        await self._store.close()


class RemoteStore:
    """`SessionStore` as others see it: the same methods, over the store actor."""

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


class MetricsActor:
    """The pool's `Metrics`, ticking once per interval."""

    # A coroutine, so that it runs on the actor's event loop and ticking begins with the actor.
    async def __init__(self, config: PoolConfig) -> None:  # type: ignore[misc]
        self._config = config
        self._metrics = Metrics(config.name, _metrics_options(config))
        self._observation = Observation(config, self._metrics)
        logs.configure(config)
        if ray.get_runtime_context().was_current_actor_reconstructed:
            # Only then: a pool that begins counts from zero, whatever ran here before under its name.
            self._observation.restore()
        self._keeping = asyncio.get_running_loop().create_task(self._observation.keep())
        self._limits = Limits.of(config)
        self._exported = RayMetrics(config.name)
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    def __repr__(self) -> str:
        return f"dspool metrics {self._config.name}"

    async def report(self, told: Delta | PoolStatus | EventBatch) -> None:
        self._observation.report(told)

    async def checkpoint(self) -> None:
        """Write the checkpoint now, not only every 30 s."""
        await self._observation.save()

    async def events(self, since: int = 0, limit: int = 100, timeout_s: float = 0.0) -> EventPage:
        """Events of the whole pool; see `Observation.events`."""
        return await self._observation.events(since, limit, timeout_s)

    async def snapshot(self) -> MetricsSnapshot:
        return self._metrics.snapshot()

    async def history(
        self, duration_s: float, *, program: str | None = None, slot: int | None = None
    ) -> HistoryView:
        return self._metrics.history(duration_s, program=program, slot=slot)

    async def observed(self, short_s: float, long_s: float) -> Observed:
        return self._metrics.observed(short_s, long_s)

    async def reading(self) -> Reading:
        """What exporters make the pool's metrics from."""
        return self._reading()

    def _reading(self) -> Reading:
        return Reading(
            snapshot=self._metrics.snapshot(),
            histograms=self._metrics.histograms(),
            status=self._metrics.status(),
            limits=self._limits,
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._config.metrics_interval_s)
            self._metrics.tick()
            try:
                self._exported.export(self._reading(), time.monotonic())
            except Exception as failed:
                # Ray's export must not end the pool's own metrics; the next tick tries again.
                log.warning("metrics were not given to Ray: %s", type(failed).__name__)


# --- workers ---------------------------------------------------------------------------------------


class WorkerActor(Worker):
    def __init__(
        self, worker_id: str, slot: int, config: PoolConfig, secret: bytes, host: str | None
    ) -> None:
        logs.configure(config, worker=worker_id)
        metrics = RemoteMetrics(config.name).report if config.enable_metrics else None
        super().__init__(
            worker_id,
            slot,
            config,
            secret,
            RemoteStore(config.name),  # type: ignore[arg-type]
            host=host or ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
            node=ray.get_runtime_context().get_node_id(),
            report=metrics,
        )

    def __repr__(self) -> str:
        # Ray reads it once, when the actor is created, and shows it from then on: a state in it would be wrong soon.
        return f"dspool worker {self._config.name}[{self._slot}]"


class RemoteMetrics:
    """The pool's metrics actor as others see it: found by name at the first question, and again after it was lost."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._handle: ActorHandle[Any] | None = None

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Raises: WorkerLost: it is not there (metrics are off) or not there now."""
        try:
            if self._handle is None:
                self._handle = ray.get_actor(actor_name(self._pool, "metrics"), namespace=NAMESPACE)
            return await ask(self._handle, method, *args, **kwargs)
        except (WorkerLost, ValueError) as gone:
            self._handle = None
            raise WorkerLost(f"pool {self._pool!r} has no metrics actor now: {gone}") from gone

    async def report(self, told: Any) -> None:
        """Whatever `MetricsActor.report` takes."""
        await self.ask("report", told)

    async def observed(self, short_s: float, long_s: float) -> Observed | None:
        """What the sizing loop goes by; None when nobody knows."""
        try:
            return await self.ask("observed", short_s, long_s)  # type: ignore[no-any-return]
        except PoolError:
            return None


class RayWorker:
    """A worker as the supervisor holds it: `supervisor.WorkerHandle` over an actor handle."""

    def __init__(self, worker_id: str, slot: int, handle: ActorHandle[Any]) -> None:
        self.worker_id = worker_id
        self.slot = slot
        self.handle = handle

    async def describe(self) -> Member:
        return await self._ask("describe")  # type: ignore[no-any-return]

    async def warm(self, step: WarmupStep, deployments: list[Deployment]) -> None:
        await self._ask("warm", step, deployments)

    async def health(self) -> WorkerStatus:
        return await self._ask("health")  # type: ignore[no-any-return]

    async def drain(self, timeout_s: float) -> None:
        await self._ask("drain", timeout_s)

    async def deploy(self, deployment: Deployment) -> None:
        await self._ask("deploy", deployment)

    async def retire(self, program: str, version: int) -> None:
        await self._ask("retire", program, version)

    async def activate(self, program: str, version: int) -> None:
        await self._ask("activate", program, version)

    async def forget(self, sessions: list[str]) -> None:
        await self._ask("forget", sessions)

    async def stop(self) -> None:
        try:
            await self._ask("stop")
        finally:
            ray.kill(self.handle, no_restart=True)

    async def until_dead(self) -> str:
        """The cause, as soon as the process is gone for certain (10-14 ms after a SIGKILL).

        Raises:
            Exception: it is out of reach for now and may live.
        """
        try:
            await self.handle.until_dead.remote()
        except ActorDiedError as died:
            return _cause(died)
        return "ended"

    async def _ask(self, method: str, *args: Any) -> Any:
        return await ask(self.handle, method, *args)


class RayRuntime:
    """Starts and finds worker actors: `supervisor.Runtime` on Ray."""

    def __init__(self, config: PoolConfig, secret: bytes, host: str | None = None) -> None:
        """`host` is where workers listen; None: the address of their node."""
        self._config, self._secret, self._host = config, secret, host
        self._actor: Any = ray.remote(WorkerActor)
        self._start: dict[str, Any] | None = None

    async def start_worker(self, worker_id: str, slot: int) -> WorkerHandle:
        suffix = worker_id.rsplit("-", 1)[-1]
        handle = self._actor.options(
            name=actor_name(self._config.name, f"worker:{slot}:{suffix}"),
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=0,
            max_concurrency=_MANY,
            **self._how_to_start(),
        ).remote(worker_id, slot, self._config, self._secret, self._host)
        return RayWorker(worker_id, slot, handle)

    def _how_to_start(self) -> dict[str, Any]:
        """The options that have a worker forked, if it can be."""
        if self._start is None:
            how = forkserver.forking(self._config, ray.get_runtime_context().runtime_env)
            if how.why_not:
                log.warning("workers are started by exec: %s", how.why_not)
            self._start = {"runtime_env": {"py_executable": how.py_executable}} if how.py_executable else {}
        return self._start

    async def running_workers(self) -> list[WorkerHandle]:
        """The workers of this pool that are alive, by the names they carry."""
        found: list[WorkerHandle] = []
        prefix = actor_name(self._config.name, "worker:")
        for name in _actor_names(prefix):
            slot, suffix = name[len(prefix) :].split(":")
            try:
                handle: Any = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                continue
            found.append(RayWorker(f"{self._config.name}-w{slot}-{suffix}", int(slot), handle))
        return found

    def kill(self, handle: WorkerHandle) -> None:
        assert isinstance(handle, RayWorker)
        ray.kill(handle.handle, no_restart=True)


# --- the supervisor, and a pool as a whole ---------------------------------------------------------


def _once_started(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def asked(self: SupervisorActor, *args: Any, **kwargs: Any) -> Any:
        await self.started()
        return await method(self, *args, **kwargs)

    return asked


class SupervisorActor(Supervisor):
    """A supervisor that starts with its actor, also when Ray restarts it. Every question waits for that."""

    async def __init__(self, config: PoolConfig, secret: bytes, host: str | None) -> None:  # type: ignore[misc]
        self._secret, self._host = secret, host
        self._prepare(config)
        logs.configure(config)
        self._events = EventBuffer(config.name, "supervisor").attach()
        if config.enable_metrics:
            told = RemoteMetrics(config.name)
            self._telling = asyncio.get_running_loop().create_task(self._tell_events(told))
        self._starting = asyncio.get_running_loop().create_task(self.start())

    def __repr__(self) -> str:
        return f"dspool supervisor {self.config.name}"

    def _prepare(self, config: PoolConfig) -> None:
        metrics, sizing = RemoteMetrics(config.name), SizingConfig.of(config)
        super().__init__(
            config,
            RayRuntime(config, self._secret, self._host),
            RemoteStore(config.name),  # type: ignore[arg-type]
            observe=lambda: metrics.observed(sizing.short_window_s, sizing.long_window_s),
            report=metrics.report if config.enable_metrics else None,
        )

    async def _tell_events(self, metrics: RemoteMetrics) -> None:
        while True:
            await asyncio.sleep(self.config.metrics_flush_interval_s)
            await self._events.deliver(metrics.report)

    async def connect_info(self) -> tuple[PoolConfig, bytes]:
        """What a client needs: the configuration, and the secret that workers ask for."""
        await self.started()
        return self.config, self._secret

    async def started(self) -> None:
        """Raises what made the start fail; the next question tries again."""
        if self._starting.done() and (self._starting.cancelled() or self._starting.exception() is not None):
            self._starting = asyncio.get_running_loop().create_task(self._start_again())
        await asyncio.shield(self._starting)

    async def _start_again(self) -> None:
        # From nothing: what a start that failed halfway had adopted would look to this one like strangers in the way.
        await self._crew.close()
        self._prepare(self.config)
        await self.start()


# A supervisor that Ray has just restarted knows no worker until it has adopted them: whoever asks then must wait, or
# a shutdown would find nothing to stop and a resize be overwritten by what was written down.
for _name, _method in inspect.getmembers(Supervisor, inspect.iscoroutinefunction):
    if not _name.startswith("_") and _name not in ("start", "detach"):
        setattr(SupervisorActor, _name, _once_started(_method))


def launch(config: PoolConfig, secret: bytes, *, host: str | None = None) -> ActorHandle[Any]:
    """Create the actors of a pool, or find those that are there; the supervisor's handle.

    Workers listen on `host`; by default on their node's address, which a cluster of several machines needs.
    """
    name = config.name
    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": _MANY,
        "get_if_exists": True,
    }
    store: Any = ray.remote(StoreActor)
    store.options(name=actor_name(name, "store"), max_task_retries=-1, **common).remote(store_url(config))
    if config.enable_metrics:
        metrics: Any = ray.remote(MetricsActor)
        metrics.options(name=actor_name(name, "metrics"), **common).remote(config)
    supervisor: Any = ray.remote(SupervisorActor)
    handle: ActorHandle[Any] = supervisor.options(name=actor_name(name, "supervisor"), **common).remote(
        config, secret, host
    )
    return handle


async def dismantle(config: PoolConfig, *, timeout_s: float) -> None:
    """End a pool: drain and stop its workers, then remove its other actors. Returns when no actor of it is left."""
    with contextlib.suppress(PoolError, TimeoutError):
        supervisor = find_supervisor(config.name)
        await asyncio.wait_for(ask(supervisor, "shutdown", timeout_s), timeout_s + 15.0)
    # First the supervisor, or it would replace the workers that are killed next.
    _remove(config.name, "supervisor")
    for worker in await RayRuntime(config, b"").running_workers():
        _remove(config.name, f"worker:{worker.slot}:{worker.worker_id.rsplit('-', 1)[-1]}")
    with contextlib.suppress(ValueError, PoolError, TimeoutError):
        store = ray.get_actor(actor_name(config.name, "store"), namespace=NAMESPACE)
        await asyncio.wait_for(ask(store, "close"), _CLOSE_STORE_S)
    for role in ("store", "metrics"):
        _remove(config.name, role)
    until = time.monotonic() + _GONE_S
    # Ray tells nobody when a name is free again.
    while _actor_names(actor_name(config.name, "")) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def _remove(pool: str, role: str) -> None:
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(actor_name(pool, role), namespace=NAMESPACE), no_restart=True)


def store_url(config: PoolConfig) -> str:
    return config.store_url or f"sqlite:///{config.state_dir / 'sessions.db'}"


def _metrics_options(config: PoolConfig) -> MetricsOptions:
    history = config.history
    return MetricsOptions(
        fine_interval_s=history.fine_interval_s,
        fine_span_s=history.fine_span_s,
        coarse_interval_s=history.coarse_interval_s,
        coarse_span_s=history.coarse_span_s,
        max_wait_s=config.max_wait_s,
        max_queue=config.max_queue,
        slots_per_worker=config.slots_per_worker,
        pool_size=config.pool_size,
    )


def _cause(died: RayActorError) -> str:
    """One line of Ray's report that says why, without its many lines of context."""
    lines = [line.strip() for line in str(died).splitlines() if line.strip()]
    if "creation task" in lines[0]:
        return lines[-1][:300]
    told = [line for line in lines[1:] if "exit" in line.lower() or "died" in line.lower()]
    return f"{type(died).__name__}: {(told or lines)[0]}"[:300]
