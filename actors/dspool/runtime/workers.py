"""Workers as actors: starting, finding and asking them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError

from dspool.config import PoolConfig, WorkerStep
from dspool.core.lifecycle.config_changes import worker_settings
from dspool.core.lifecycle.placement import ClusterNode, Wanted
from dspool.errors import WorkerStartFailed
from dspool.messages import Deployment, Member, WorkerId
from dspool.runtime import forkserver
from dspool.runtime.answers import RemoteAnswers
from dspool.runtime.cluster import (
    MAX_CONCURRENCY,
    NAMESPACE,
    NODE_LABEL,
    actor_name,
    actor_names,
    ask,
    cause,
    node_address,
    placeable_nodes,
)
from dspool.runtime.installed import code_mark
from dspool.runtime.loops import keep_running
from dspool.runtime.metrics import RemoteMetrics
from dspool.runtime.remote_store import RemoteStore
from dspool.supervisor import WorkerHandle
from dspool.supervisor.ports import AskedWorker, Sleep, within
from dspool.telemetry import logs
from dspool.telemetry.printed import log_prints, set_print_level
from dspool.worker.worker import Worker

log = logging.getLogger("dspool.runtime")


class WorkerActor(Worker):
    def __init__(
        self, worker_id: str, ordinal: int, config: PoolConfig, secret: bytes, host: str | None
    ) -> None:
        handler = logs.configure(config, worker=worker_id)
        log_prints(handler, logging.getLevelName(config.telemetry.log_level.upper()))
        metrics = RemoteMetrics(config.name).report if config.enable_metrics else None
        super().__init__(
            worker_id,
            ordinal,
            config,
            secret,
            RemoteStore(config.name),
            host=host or node_address(),
            node=ray.get_runtime_context().get_node_id(),
            report=metrics,
            start=forkserver.how_started(),
            answers=RemoteAnswers(config.name) if config.cache else None,
        )
        self.settings = worker_settings(config, life_of(secret), code_mark())
        self._loop_is_ours = False

    async def take_settings(self, config: PoolConfig) -> None:
        """Go on with those settings of `config` that need no new worker, `setting_rules` says which."""
        logs.set_level(config, self._config)
        set_print_level(logging.getLevelName(config.telemetry.log_level.upper()))
        self._config = config
        self._ownership.ttl_s = config.session_ttl_s
        self._host.lms.timeout_s = config.operation_timeout_s

    async def describe(self) -> Member:
        if not self._loop_is_ours:
            # Not in the constructor: that does not run on the loop.
            self._loop_is_ours = True
            keep_running(lambda: self._state == "stopped")
        return await super().describe()

    async def warm(self, step: WorkerStep, deployments: list[Deployment]) -> None:
        await super().warm(step, deployments)
        # What is loaded by now stays: the garbage collector need not scan it again and again.
        gc.freeze()

    def __repr__(self) -> str:
        # Ray reads it once, at the actor's creation, and shows it from then on: a state in it would soon be wrong.
        return f"dspool worker {self._config.name}[{self._ordinal}]"


class RayWorker(AskedWorker):
    """A worker as the supervisor has it, over an actor handle."""

    def __init__(
        self, worker_id: str, ordinal: int, handle: ActorHandle[Any], forks: ForkStarts | None = None
    ) -> None:
        """With `forks` the worker is forked, and they learn how its start ends."""
        super().__init__(worker_id, ordinal)
        self.handle = handle
        self.unwanted = False
        self._forks = forks

    async def describe(self) -> Member:
        answer = self._ask("describe")
        if self._forks is None:
            return await answer
        return await self._forks.answer_of(self.worker_id, answer, unwanted=lambda: self.unwanted)

    async def stop(self) -> None:
        self.unwanted = True
        try:
            await self._ask("stop")
        finally:
            ray.kill(self.handle, no_restart=True)

    async def until_dead(self) -> str:
        """The cause, as soon as the process is certainly gone (10-14 ms after a SIGKILL).

        Raises:
            Exception: it is out of reach for now, but may live.
        """
        try:
            await self.handle.until_dead.remote()
        except ActorDiedError as died:
            return cause(died)
        return "ended"

    async def _ask(self, method: str, *args: Any) -> Any:
        return await ask(self.handle, method, *args)


class RayRuntime:
    """Starts and finds worker actors: `supervisor.Runtime` on Ray."""

    def __init__(self, config: PoolConfig, secret: bytes, host: str | None = None) -> None:
        """`host` is where workers listen; None: the address of their node."""
        self._config, self._secret, self._host = config, secret, host
        self._actor: Any = ray.remote(WorkerActor)
        self._needs = Wanted.of(config).resources
        self._looking: asyncio.Future[list[ClusterNode]] | None = None
        self._start_method: forkserver.StartMethod | None = None
        self._forks = ForkStarts(config.init_timeout_s)

    async def nodes(self) -> list[ClusterNode]:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(asyncio.to_thread(placeable_nodes, bool(self._needs)))
            # Whoever asked may have given up by then.
            self._looking.add_done_callback(lambda done: done.cancelled() or done.exception())
        # While the control plane is away each look would keep a thread for a minute: all wait for the same one.
        return await asyncio.shield(self._looking)

    async def start_worker(self, worker_id: str, ordinal: int, node: str | None = None) -> WorkerHandle:
        how = self._how_to_start()
        forked = how.py_executable is not None
        environment: dict[str, Any] = {}
        if not forked:
            # Also without a reason: with an environment of its own it is not forked by the node either.
            said = f"exec: {how.why_not}" if how.why_not else "exec"
            environment = {"env_vars": {forkserver.HOW_VARIABLE: said}}
            if ray.get_runtime_context().runtime_env.get("py_executable"):
                # Else it would have this actor's, which forks.
                environment["py_executable"] = shlex.join([sys.executable])
        elif not how.by_node:
            environment = {"py_executable": how.py_executable}
        handle = self._actor.options(
            name=actor_name(self._config.name, WorkerId.parse(worker_id).role),
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=MAX_CONCURRENCY,
            **self._needs_of(node),
            **({"runtime_env": environment} if environment else {}),
        ).remote(worker_id, ordinal, self._config, self._secret, self._host)
        return RayWorker(worker_id, ordinal, handle, self._forks if forked else None)

    def _needs_of(self, node: str | None) -> dict[str, Any]:
        """The options of an actor for what the configuration says that a worker needs."""
        needs = dict(self._needs)
        options: dict[str, Any] = {"num_cpus": needs.pop("CPU", 0)}
        if gpus := needs.pop("GPU", 0):
            options["num_gpus"] = gpus
        if memory := needs.pop("memory", 0):
            options["memory"] = memory
        if needs:
            options["resources"] = needs
        labels = dict(self._config.placement.node_labels)
        if node is not None:
            # Elsewhere if it is gone by now. Ray does not look at a soft affinity of actors that need no resources.
            options["label_selector"] = {NODE_LABEL: node}
            options["fallback_strategy"] = [{"label_selector": labels}]
        elif labels:
            options["label_selector"] = labels
        return options

    def _how_to_start(self) -> forkserver.StartMethod:
        if self._start_method is None:
            self._start_method = forkserver.start_method(self._config, ray.get_runtime_context().runtime_env)
            if self._start_method.why_not:
                log.warning("workers are started by exec: %s", self._start_method.why_not)
        if self._start_method.py_executable is not None and (why := self._forks.why_not()):
            return forkserver.StartMethod(None, why)
        return self._start_method

    async def running_workers(self) -> list[WorkerHandle]:
        """The living workers of this pool, found by their actors' names."""
        handles: list[WorkerHandle] = []
        pool = self._config.name
        for name in actor_names(actor_name(pool, "worker:")):
            worker = WorkerId.of_role(pool, name.removeprefix(actor_name(pool, "")))
            try:
                handle: Any = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                continue
            handles.append(RayWorker(str(worker), worker.ordinal, handle))
        return handles

    def kill(self, handle: WorkerHandle) -> None:
        assert isinstance(handle, RayWorker)
        handle.unwanted = True
        ray.kill(handle.handle, no_restart=True)


def life_of(secret: bytes) -> str:
    """The name of one start of a pool, of which each makes a secret: its supervisors and workers share both."""
    return hashlib.sha256(secret).hexdigest()


T = TypeVar("T")

EXEC_FOR_S = 60.0


class ForkStarts:
    """The forked starts of one pool. After one that fails, workers start by exec for a while."""

    def __init__(
        self,
        init_timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        # Less than the pool's own limit, or nobody would learn that forking was to blame.
        self._limit_s = init_timeout_s * 2 / 3
        self._clock, self._sleep = clock, sleep
        self._last_start_at = clock()
        self._exec_until = clock()
        self._why = ""

    def why_not(self) -> str | None:
        """Why workers start by exec for now; None: they need not."""
        return self._why if self._clock() < self._exec_until else None

    async def answer_of(
        self, worker_id: str, answer: Awaitable[T], *, unwanted: Callable[[], bool] = lambda: False
    ) -> T:
        """Wait for a forked worker's first `answer`. A failure counts against forking unless the worker is `unwanted`.

        Raises:
            WorkerStartFailed: neither this worker nor another one came for too long.
        """
        task = asyncio.ensure_future(answer)
        began = self._clock()
        try:
            while not task.done():
                # Ray starts only so many at once: a worker that waits for its turn is not late while others come.
                left_s = max(began, self._last_start_at) + self._limit_s - self._clock()
                if left_s <= 0:
                    raise WorkerStartFailed(f"it did not come in {self._limit_s:g} s", worker=worker_id)
                with contextlib.suppress(TimeoutError):
                    await within(left_s, asyncio.shield(task), self._sleep)
            result = task.result()
        except Exception as failed:
            if not unwanted():
                self._give_up(f"the forked worker {worker_id} failed to start: {failed}")
            raise
        finally:
            task.cancel()
        self._last_start_at = self._clock()
        return result

    def _give_up(self, why: str) -> None:
        self._why, self._exec_until = why, self._clock() + EXEC_FOR_S
