"""A whole pool in one process: the engine's own client, workers, supervisor and store on simulated actors.

What stands here in the place of `dspool.runtime` does what that does on Ray, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, cast

from dspool.client.client import Client, ControlPlane
from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import SizingConfig
from dspool.core.lifecycle.placement import ClusterNode
from dspool.errors import PoolError, StoreFailed, WorkerLost
from dspool.messages import WorkerId
from dspool.programs.sessions.host import SessionHost
from dspool.store import serving
from dspool.store.claims import this_server
from dspool.store.store import SessionStore
from dspool.supervisor import Supervisor
from dspool.supervisor.ports import AskedWorker
from dspool.worker.loop_watch import LoopWatch
from dspool.worker.worker import Worker
from tests.simulation import metrics
from tests.simulation.actors import Actor, Cluster, Gone
from tests.simulation.disk import Disk, mount
from tests.simulation.history import History
from tests.simulation.loop import Process, SimulatedLoop, current
from tests.simulation.network import Network
from tests.simulation.power import files
from tests.simulation.program import SimulatedHost

POOL = "sim"
SECRET = b"of the simulation"
HEAD = "head"
FORCED_S = 5.0
"""What does not react to Ray's order to end gets SIGKILL then."""
_REACTS_S = 0.05


class StoreActor:
    """As `runtime.store.StoreActor`."""

    def __init__(self, url: str, wall: Any) -> None:
        self._store = SessionStore(url, clock=wall)
        self._open: asyncio.Task[None] | None = None

    async def _start(self) -> None:
        await self._store.open()
        beats = {"heartbeat_s": serving.HEARTBEAT_S, "take_over_s": serving.TAKE_OVER_S}
        await self._store.serve(POOL, this_server("store"), **beats)

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._open is None:
            self._open = asyncio.get_running_loop().create_task(self._start())
        try:
            await asyncio.shield(self._open)
        except PoolError:
            self._open = None
            raise
        return await getattr(self._store, method)(*args, **kwargs)


class RemoteStore:
    """As `runtime.remote_store.RemoteStore`: Ray repeats what the store's death cut off, as often as it takes."""

    def __init__(self, system: System) -> None:
        self._system = system

    def __getattr__(self, method: str) -> Any:
        async def ask(*args: Any, **kwargs: Any) -> Any:
            cluster = self._system.cluster
            while True:
                try:
                    return await cluster.ask(self._system.store, "ask", method, *args, **kwargs)
                except Gone as gone:
                    if self._system.store.ended:
                        raise StoreFailed(f"the session store is not reachable ({gone})") from gone
                    await asyncio.sleep(0.1)

        return ask


class SupervisorActor(Supervisor):
    """As `runtime.lifecycle.SupervisorActor`: it starts with its actor, and every call waits for that."""

    def begin(self, system: System) -> None:
        self._system = system
        self._start_task = asyncio.get_running_loop().create_task(self.start())

    async def after_start(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._start_task.done() and self._start_task.exception() is not None:
            self._start_task = asyncio.get_running_loop().create_task(self._start_again())
        await asyncio.shield(self._start_task)
        return await getattr(self, method)(*args, **kwargs)

    async def _start_again(self) -> None:
        await self._workers.close()
        observing = self._system._observing()
        self.__init__(self.config, self._runtime, self._store, life="life", **observing)  # type: ignore[misc]
        await self.start()


class WorkerProxy(AskedWorker):
    """As `runtime.workers.RayWorker`."""

    def __init__(self, cluster: Cluster, actor: Actor, worker_id: str, history: History) -> None:
        super().__init__(worker_id, WorkerId.parse(worker_id).ordinal)
        self.cluster, self.actor, self._history = cluster, actor, history

    async def _ask(self, method: str, *args: Any) -> Any:
        try:
            return await self.cluster.ask(self.actor, method, *args)
        except Gone as gone:
            raise WorkerLost(f"the actor that was asked for {method} is gone: {gone}") from gone

    async def stop(self) -> None:
        self._history.stopped[self.worker_id] = self._history.clock()
        try:
            await self._ask("stop")
        finally:
            self.kill()

    def kill(self) -> None:
        """Ray's order to end it arrives when the network lets it; what stands still has a while to react to it."""
        process, cluster = self.actor.process, self.cluster
        assert process is not None
        self._history.ordered.setdefault(self.worker_id, self._history.clock())
        if cluster.orders_lost:
            return
        sender = current()
        forced_at = cluster.loop.time() + FORCED_S

        def arrive() -> None:
            if self.actor.unheard is not None:
                self.actor.unheard()  # whom it is told to end, it looks at
            elif process.alive and process.paused and cluster.loop.time() < forced_at:
                cluster.loop.outside.soon(arrive, after_s=_REACTS_S)
            elif cluster.network.reaches(sender.node, process.node):
                process.kill()
            elif process.alive:
                cluster.loop.outside.soon(arrive, after_s=0.5)

        cluster.loop.outside.soon(arrive, after_s=cluster.loop.world.dice.uniform(0.001, 0.01))

    async def until_dead(self) -> str:
        try:
            await self.cluster.ask(self.actor, "until_dead")
        except Gone as gone:
            return str(gone)
        return "ended"


class Runtime:
    """As `runtime.workers.RayRuntime`."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def nodes(self) -> list[ClusterNode]:
        # As Ray: a node that has lost its power is a living one for some time.
        return [ClusterNode(node) for node in self._system.nodes]

    async def start_worker(self, worker_id: str, ordinal: int, node: str | None = None) -> WorkerProxy:
        return self._proxy(worker_id, self._system.start_worker(worker_id, ordinal, node))

    async def running_workers(self) -> list[WorkerProxy]:
        await asyncio.sleep(0.005)
        return [
            self._proxy(worker_id, actor)
            for worker_id, actor in self._system.worker_actors.items()
            if not actor.ended or worker_id in self._system.unnoticed
        ]

    def kill(self, handle: WorkerProxy) -> None:
        handle.kill()

    def _proxy(self, worker_id: str, actor: Actor) -> WorkerProxy:
        return WorkerProxy(self._system.cluster, actor, worker_id, self._system.history)


class System:
    """One pool on `nodes` nodes. Everything that faults act on is an attribute."""

    def __init__(
        self,
        loop: SimulatedLoop,
        config: PoolConfig,
        history: History,
        directory: Path,
        *,
        nodes: int,
        loses_power: bool,
    ) -> None:
        """`loses_power`: the head will; what is synced is noted, which costs time."""
        self.loop, self.config, self.history = loop, config, history
        self.network = Network(loop)
        loop.network = self.network
        self.cluster = Cluster(loop, self.network)
        self.nodes = [HEAD, *(f"node{number}" for number in range(1, nodes))]
        self.disk = Disk()
        mount(self.disk)
        self.directory = directory
        # It looks at threads, by real time. Here, and not when this is imported: tests that do have workers too.
        LoopWatch.start = lambda self: None
        metrics.install()
        self.worker_actors: dict[str, Actor] = {}
        self.unnoticed: set[str] = set()
        """Dead workers that Ray still lists."""
        self.clients: dict[str, Client] = {}
        self.client_ready: dict[str, asyncio.Event] = {}
        self.client_processes: dict[str, Process] = {}
        self.start_s = (0.2, 1.0)
        """How long a new worker's process takes to come up."""
        url = f"sqlite:///{directory / 'db' / 'store.db'}"
        (directory / "db").mkdir(mode=0o700)
        files.watch(str(directory / "db") if loses_power else None)
        self.is_new = True

        async def store() -> StoreActor:
            return StoreActor(url, loop.world.wall)

        async def build_metrics() -> metrics.MetricsActor:
            is_new, self.is_new = self.is_new, False
            return metrics.MetricsActor(config, is_new=is_new)

        async def supervisor() -> SupervisorActor:
            one = SupervisorActor(
                config,
                cast(Any, Runtime(self)),
                cast(Any, RemoteStore(self)),
                life="life",
                random=loop.world.dice.random,
                **self._observing(),
            )
            one.begin(self)
            return one

        self.store = self.cluster.start("store", HEAD, store, after_s=0.0, restarts=True)
        self.metrics: Actor | None = None
        if config.enable_metrics:
            self.metrics = self.cluster.start("metrics", HEAD, build_metrics, after_s=0.0, restarts=True)
        self.supervisor = self.cluster.start("supervisor", HEAD, supervisor, after_s=0.0, restarts=True)

    def _observing(self) -> dict[str, Any]:
        """What a supervisor with metrics gets besides."""
        if not self.config.enable_metrics:
            return {}
        remote, sizing = metrics.RemoteMetrics(self), SizingConfig.of(self.config)
        return {
            "observe": lambda: remote.sizing_inputs(sizing.short_window_s, sizing.long_window_s),
            "report": remote.report,
        }

    # --- workers ---

    def start_worker(self, worker_id: str, ordinal: int, wanted: str | None = None) -> Actor:
        dice = self.loop.world.dice
        up = [node for node in self.nodes if node not in self.network.off]
        node = wanted if wanted in up else dice.choice(up)

        async def build() -> Worker:
            host = SimulatedHost(worker_id, self.history, dice)
            return Worker(
                worker_id,
                ordinal,
                self.config,
                SECRET,
                cast(Any, RemoteStore(self)),
                host=node,
                node=node,
                session_host=cast(SessionHost, host),
                report=metrics.RemoteMetrics(self).report if self.config.enable_metrics else None,
            )

        def died(actor: Actor) -> None:
            self.unnoticed.discard(worker_id)

        actor = self.cluster.start(worker_id, node, build, after_s=dice.uniform(*self.start_s), died=died)
        self.worker_actors[worker_id] = actor
        assert actor.process is not None

        def killed() -> None:
            self.unnoticed.add(worker_id)
            if not self.history.over:
                self.history.deaths[worker_id] = self.loop.time()

        actor.process.on_kill.append(killed)
        return actor

    def living_workers(self) -> list[str]:
        return [
            worker_id
            for worker_id, actor in self.worker_actors.items()
            if actor.process is not None and actor.process.alive
        ]

    # --- clients ---

    async def ask_supervisor(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As a pool's administration does it."""
        try:
            return await self.cluster.ask(self.supervisor, "after_start", method, *args, **kwargs)
        except Gone as gone:
            raise WorkerLost(f"the supervisor is gone: {gone}") from gone

    def start_client(self, name: str, node: str) -> Process:
        self.client_ready[name] = asyncio.Event()
        process = self.client_processes[name] = self.cluster.process(name, node)

        async def begin() -> None:
            client = Client(
                self.config,
                SECRET,
                ControlPlane(
                    watch=lambda version: self.ask_supervisor("watch", version),
                    report_dead=lambda worker_id, why: self.ask_supervisor("report_dead", worker_id, why),
                    report=metrics.RemoteMetrics(self).report if self.config.enable_metrics else None,
                ),
            )
            while True:
                with contextlib.suppress(PoolError):
                    await client.start()
                    break
                await asyncio.sleep(0.2)
            self.clients[name] = client
            self.client_ready[name].set()

        process.spawn(begin())
        return process

    def close(self) -> None:
        for process in self.cluster.processes:
            process.kill()
