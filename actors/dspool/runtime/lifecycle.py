"""The supervisor as an actor; how a pool begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import SizingConfig
from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.config_changes import worker_settings
from dspool.core.lifecycle.placement import ClusterNode, apart
from dspool.errors import PoolError, StoreFailed, UnknownWorker
from dspool.messages import WorkerId
from dspool.runtime.answers import ROLE as ANSWERS
from dspool.runtime.answers import AnswersActor
from dspool.runtime.cluster import (
    MAX_CONCURRENCY,
    NAMESPACE,
    NODE_LABEL,
    actor_name,
    actor_names,
    ask,
    find_supervisor,
    placeable_nodes,
)
from dspool.runtime.forkserver import start_method
from dspool.runtime.installed import StartCommand, code_mark
from dspool.runtime.metrics import MetricsActor, RemoteMetrics
from dspool.runtime.node import forks_by_itself
from dspool.runtime.remote_store import RemoteStore
from dspool.runtime.store import StoreActor
from dspool.runtime.store_place import find_node
from dspool.runtime.unfinished import forget
from dspool.runtime.workers import RayRuntime, life_of
from dspool.store.settings import store_url
from dspool.supervisor import Supervisor
from dspool.telemetry import logs
from dspool.telemetry.event_log import EventBuffer
from dspool.telemetry.log_files import LogPage, LogQuery, search_node

T = TypeVar("T")
P = ParamSpec("P")

COMMON: dict[str, Any] = {
    "namespace": NAMESPACE,
    "lifetime": "detached",
    "num_cpus": 0,
    "max_restarts": -1,
    "max_concurrency": MAX_CONCURRENCY,
    "get_if_exists": True,
}
"""Options of the actors of a pool that stand once."""
_CLOSE_STORE_S = 2.0
_NAMES_FREE_S = 5.0


def _after_start(
    method: Callable[Concatenate[Any, P], Awaitable[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    @functools.wraps(method)
    async def call(self: SupervisorActor, /, *args: P.args, **kwargs: P.kwargs) -> T:
        await self.started()
        return await method(self, *args, **kwargs)

    return call


class SupervisorActor(Supervisor):
    """A supervisor that starts with its actor, also when Ray restarts it. Every call waits for the start."""

    async def __init__(self, config: PoolConfig, secret: bytes, host: str | None) -> None:  # type: ignore[misc]
        self._secret, self._host = secret, host
        self._prepare(config)
        logs.configure(config)
        self._events = EventBuffer(config.name, "supervisor").attach()
        if config.enable_metrics:
            metrics = RemoteMetrics(config.name)
            self._event_task = asyncio.get_running_loop().create_task(self._report_events(metrics))
        self._start_task = asyncio.get_running_loop().create_task(self.start())

    def __repr__(self) -> str:
        return f"dspool supervisor {self.config.name}"

    def _prepare(self, config: PoolConfig) -> None:
        metrics, sizing = RemoteMetrics(config.name), SizingConfig.of(config)
        super().__init__(
            config,
            RayRuntime(config, self._secret, self._host),
            RemoteStore(config.name),
            observe=lambda: metrics.sizing_inputs(sizing.short_window_s, sizing.long_window_s),
            report=metrics.report if config.enable_metrics else None,
            life=life_of(self._secret),
        )
        self._state.gradual.settings = worker_settings(config, life_of(self._secret), code_mark())

    async def _report_events(self, metrics: RemoteMetrics) -> None:
        while True:
            await asyncio.sleep(self.config.metrics_flush_interval_s)
            await self._events.deliver(metrics.report)

    async def connect_info(self) -> tuple[PoolConfig, bytes]:
        """What a client needs: the configuration, and the workers' secret."""
        await self.started()
        return self.config, self._secret

    async def worker_mark(self, config: PoolConfig | None = None) -> str:
        """What `WorkerStatus.settings` is of workers that need not be replaced while the pool has the settings of
        `config`, by default its own."""
        await self.started()
        return worker_settings(config or self.config, life_of(self._secret), code_mark())

    async def roll(self, worker_ids: list[str], why: str) -> None:
        """Replace these workers, one after the other, each once its replacement is warm. Returns at once."""
        await self.started()
        for worker_id in worker_ids:
            with contextlib.suppress(UnknownWorker):  # it has gone by itself
                self._feed(ev.RestartRequested(worker_id, why))

    async def gradual_step(self, settings: str, percent: int | None) -> None:
        """A change to `settings` stands at `percent` from now on, None: it is through. On record when this returns.

        They may be the settings of the supervisor that takes this one's place.

        Raises:
            StoreFailed: it is not on record.
        """
        await self.started()
        self._feed(ev.GradualStep(settings, percent))
        if not await self._records.flush():
            raise StoreFailed(
                f"pool {self.config.name}: the session store takes no record now", retry_after_s=1.0
            )

    async def log_lines(self, query: LogQuery) -> tuple[str, LogPage]:
        """The node of this actor, and lines of all processes of the pool there."""
        return ray.get_runtime_context().get_node_id(), await search_node(self.config, query)

    async def started(self) -> None:
        """Wait for the start. Raises what made it fail; the next call tries again."""
        if self._start_task.done() and (
            self._start_task.cancelled() or self._start_task.exception() is not None
        ):
            self._start_task = asyncio.get_running_loop().create_task(self._start_again())
        await asyncio.shield(self._start_task)

    async def _start_again(self) -> None:
        # From nothing: to this start, workers that the failed one adopted would be strangers in the way.
        await self._workers.close()
        self._prepare(self.config)
        await self.start()

    # A supervisor that Ray restarted knows no worker until it has adopted them. If calls did not wait, a shutdown would
    # find nothing to stop, and the records would overwrite a resize.
    wait_ready = _after_start(Supervisor.wait_ready)
    shutdown = _after_start(Supervisor.shutdown)
    watch = _after_start(Supervisor.watch)
    status = _after_start(Supervisor.status)
    report_dead = _after_start(Supervisor.report_dead)
    wake = _after_start(Supervisor.wake)
    resize = _after_start(Supervisor.resize)
    pause = _after_start(Supervisor.pause)
    resume = _after_start(Supervisor.resume)
    drain = _after_start(Supervisor.drain)
    restart = _after_start(Supervisor.restart)
    deploy = _after_start(Supervisor.deploy)
    rollback = _after_start(Supervisor.rollback)
    recent_rollouts = _after_start(Supervisor.recent_rollouts)
    deployments = _after_start(Supervisor.deployments)
    warm = _after_start(Supervisor.warm)
    warm_progress = _after_start(Supervisor.warm_progress)
    warmup_report = _after_start(Supervisor.warmup_report)
    warm_runs = _after_start(Supervisor.warm_runs)
    decisions = _after_start(Supervisor.decisions)
    observe = _after_start(Supervisor.observe)


def launch(
    config: PoolConfig,
    secret: bytes,
    *,
    host: str | None = None,
    goes_on: bool = False,
    code: StartCommand | None = None,
) -> ActorHandle[Any]:
    """Create the actors of a pool, or find the existing ones; returns the supervisor's handle.

    With `goes_on` it is the same pool with other settings: what it counted counts on. Workers listen on `host`; by
    default on their node's address, which a cluster of several machines needs. They run `code`, and workers with them;
    by default what the cluster's processes run.

    Raises:
        ConfigError: the session store does not fit the cluster; nothing was started.
    """
    name, url = config.name, store_url(config)
    if not goes_on:
        # A pool of another life: nothing of the one before is to be finished.
        forget(name)
    # The store stays on that node, even if Ray restarts it after other nodes joined. When the node is gone, so is the
    # store: without its file, an empty one in its place would be worse.
    nodes = placeable_nodes(with_resources=False)
    node = find_node(name, url)
    places = apart(nodes, ("supervisor", "store", "metrics", ANSWERS), name)

    def place(role: str) -> dict[str, Any]:
        if role == "store" and node is not None:
            return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
        return _preferred(places[role], nodes)

    environment = None
    if code is not None:
        environment = code.runtime_env()
    elif len(nodes) > 1 or not forks_by_itself():
        # From the parent of the workers, whose memory they share. And when the machine of one of them is lost, what it
        # did waits for its start on another: a fork is the soonest.
        how = start_method(config, ray.get_runtime_context().runtime_env)
        environment = {"py_executable": how.py_executable} if how.py_executable else None
    common = COMMON if environment is None else {**COMMON, "runtime_env": environment}
    store: Any = ray.remote(StoreActor)
    store.options(
        name=actor_name(name, "store"),
        max_task_retries=-1,
        **place("store"),
        **common,
    ).remote(config)
    if config.enable_metrics:
        metrics: Any = ray.remote(MetricsActor)
        metrics.options(name=actor_name(name, "metrics"), **place("metrics"), **common).remote(
            config, goes_on
        )
    if config.cache:
        answers: Any = ray.remote(AnswersActor)
        answers.options(name=actor_name(name, ANSWERS), **place(ANSWERS), **common).remote(config)
    supervisor: Any = ray.remote(SupervisorActor)
    handle: ActorHandle[Any] = supervisor.options(
        name=actor_name(name, "supervisor"), **place("supervisor"), **common
    ).remote(config, secret, host)
    return handle


def _preferred(chosen: str | None, nodes: Sequence[ClusterNode]) -> dict[str, Any]:
    """Options of an actor that stands on the node `chosen`. Once that is gone Ray starts it on one that is not the
    head, whose loss would take the control plane and this actor at once; on the head if there is no other.
    """
    if chosen is None:
        return {}
    fallback = [{"label_selector": {NODE_LABEL: f"!{node.id}"}} for node in nodes if node.is_head]
    return {
        "label_selector": {NODE_LABEL: chosen},
        "fallback_strategy": [*fallback, {"label_selector": {}}],
    }


async def dismantle(config: PoolConfig, *, timeout_s: float) -> None:
    """End a pool: drain and stop its workers, then remove its other actors. Returns when no actor is left."""
    with contextlib.suppress(PoolError, TimeoutError):
        supervisor = find_supervisor(config.name)
        await asyncio.wait_for(ask(supervisor, "shutdown", timeout_s), timeout_s + 15.0)
    # First the supervisor: it would replace the workers that are killed next.
    remove(config.name, "supervisor")
    for worker in await RayRuntime(config, b"").running_workers():
        remove(config.name, WorkerId.parse(worker.worker_id).role)
    with contextlib.suppress(ValueError, PoolError, TimeoutError):
        store = ray.get_actor(actor_name(config.name, "store"), namespace=NAMESPACE)
        await asyncio.wait_for(ask(store, "close"), _CLOSE_STORE_S)
    for role in ("store", "metrics", ANSWERS):
        remove(config.name, role)
    forget(config.name)
    deadline = time.monotonic() + _NAMES_FREE_S
    # Ray does not notify anybody of a free name.
    while actor_names(actor_name(config.name, "")) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def remove(pool: str, role: str) -> None:
    """End an actor of a pool for good; none is fine too."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(actor_name(pool, role), namespace=NAMESPACE), no_restart=True)
