"""The faults of a simulation. Each seed has a random subset of kinds (a swarm): together they hide what few show."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import NamedTuple

from dspool.errors import PoolError
from dspool.messages import Deployment
from tests.simulation.actors import NOTICE_S
from tests.simulation.history import History
from tests.simulation.loop import Process
from tests.simulation.program import PROGRAM
from tests.simulation.system import HEAD, System

NODE_DEATH_S = (8.0, 14.0)
"""How long Ray needs to notice that a node is gone."""


class PlannedFault(NamedTuple):
    """One fault: when, what, and the dice that decide the rest, so that it is the same without those before it."""

    after_s: float
    kind: str
    seed: int


def plan(dice: random.Random, busy_s: float, every_s: float) -> list[PlannedFault]:
    """Faults for `busy_s` seconds, one in `every_s` on average, of a random subset of kinds."""
    chosen = dice.sample(KINDS, dice.randint(1, min(8, len(KINDS))))
    faults = []
    after_s = dice.expovariate(1.0 / every_s)
    while after_s < busy_s:
        faults.append(PlannedFault(after_s, dice.choice(chosen), dice.getrandbits(32)))
        after_s += dice.expovariate(1.0 / every_s)
    return faults


class Faults:
    """Injects what is planned, then undoes what can be undone."""

    def __init__(self, system: System, history: History) -> None:
        self._system, self._history = system, history
        self._dice = random.Random(0)
        self._frozen: dict[Process, float] = {}

    async def run(self, faults: Sequence[PlannedFault], busy_s: float) -> None:
        began = self._history.clock()
        for fault in faults:
            await asyncio.sleep(max(0.0, began + fault.after_s - self._history.clock()))
            self._dice = random.Random(fault.seed)
            await getattr(self, f"_fault_{fault.kind}")()
        await asyncio.sleep(max(0.0, began + busy_s - self._history.clock()))
        self.undo()

    def undo(self) -> None:
        system = self._system
        for process in list(self._frozen):
            self._thaw(process)
        system.network.heal()
        system.network.slow_s = 0.0
        for node in list(system.network.off):
            system.network.power(node, on=True)
        system.disk.repair()
        system.cluster.notice_s, system.cluster.lost_share = NOTICE_S, 0.0
        system.cluster.orders_lost = False
        system.start_s = (0.2, 1.0)

    # --- kills ---

    def _kill(self, process: Process | None) -> None:
        if process is not None and process.alive:
            self._history.fault("kill", process=process.name)
            self._thaw(process)
            process.kill()

    def _worker(self) -> Process | None:
        living = self._system.living_workers()
        return self._system.worker_actors[self._dice.choice(living)].process if living else None

    async def _fault_kill_worker(self) -> None:
        self._kill(self._worker())

    async def _fault_kill_all_workers(self) -> None:
        if self._dice.random() < 0.2:
            for worker_id in self._system.living_workers():
                self._kill(self._system.worker_actors[worker_id].process)

    async def _fault_kill_supervisor(self) -> None:
        self._kill(self._system.supervisor.process)

    async def _fault_kill_store(self) -> None:
        self._kill(self._system.store.process)

    async def _fault_kill_metrics(self) -> None:
        if self._system.metrics is not None:
            self._kill(self._system.metrics.process)

    async def _fault_kill_client(self) -> None:
        living = [name for name, process in self._system.client_processes.items() if process.alive]
        if len(living) > 1:
            self._kill(self._system.client_processes[self._dice.choice(living)])

    # --- pauses ---

    async def _freeze(self, process: Process | None, seconds: float | None = None) -> None:
        if process is None or not process.alive or process.paused:
            return
        if seconds is None:
            seconds = self._dice.choice((0.05, 0.5, 2.0, 10.0, 40.0))
        self._history.fault("freeze", process=process.name, seconds=seconds)
        self._frozen[process] = self._history.clock()
        process.pause()
        process.loop.outside.soon(self._thaw, process, after_s=seconds)

    def _thaw(self, process: Process) -> None:
        since = self._frozen.pop(process, None)
        if since is not None:
            self._history.frozen.append((process.name, since, self._history.clock()))
            process.resume()

    async def _fault_freeze_worker(self) -> None:
        await self._freeze(self._worker())

    async def _fault_freeze_supervisor(self) -> None:
        await self._freeze(self._system.supervisor.process)

    async def _fault_freeze_store(self) -> None:
        await self._freeze(self._system.store.process)

    async def _fault_freeze_metrics(self) -> None:
        if self._system.metrics is not None:
            await self._freeze(self._system.metrics.process)

    async def _fault_freeze_node(self) -> None:
        """A virtual machine that is moved."""
        node = self._dice.choice(self._system.nodes)
        seconds = self._dice.choice((0.5, 3.0, 15.0, 40.0))
        for process in self._system.cluster.processes:
            if process.node == node:
                await self._freeze(process, seconds)

    async def _fault_freeze_client(self) -> None:
        name = self._dice.choice(sorted(self._system.client_processes))
        await self._freeze(self._system.client_processes[name])

    # --- nodes and network ---

    async def _fault_partition(self) -> None:
        network, nodes = self._system.network, self._system.nodes
        if len(nodes) == 1 or network.cut:
            return
        one = set(self._dice.sample(nodes, self._dice.randint(1, len(nodes) - 1)))
        seconds = self._dice.choice((0.2, 3.0, 8.0))
        one_way = self._dice.random() < 0.3
        self._history.fault("partition", nodes=sorted(one), seconds=seconds, one_way=one_way)
        network.partition(one, set(nodes) - one, one_way=one_way)
        self._system.loop.outside.soon(network.heal, after_s=seconds)

    async def _fault_slow_network(self) -> None:
        network = self._system.network
        network.slow_s = self._dice.choice((0.0, 0.02, 0.3))
        self._history.fault("slow network", seconds=network.slow_s)

    async def _fault_reset(self) -> None:
        self.reset(self._dice)

    def reset(self, dice: random.Random) -> None:
        """Something on the way ends a connection between two that live."""
        if pipes := list(self._system.network.pipes):
            pipe = dice.choice(pipes)
            self._history.fault("reset", processes=[pipe.sender.name, pipe.receiver.name])
            for end in (pipe.source, pipe.target):
                end.process.soon(end.broken, "reset")

    async def _fault_power_off(self) -> None:
        system = self._system
        others = [node for node in system.nodes if node != HEAD and node not in system.network.off]
        if not others:
            return
        node = self._dice.choice(others)
        self._history.fault("power off", node=node)
        self._lose_power(node)
        system.loop.outside.soon(
            lambda: system.network.power(node, on=True), after_s=self._dice.uniform(15.0, 60.0)
        )

    def _lose_power(self, node: str) -> None:
        system = self._system
        before, system.cluster.notice_s = system.cluster.notice_s, NODE_DEATH_S
        system.network.power(node, on=False)
        for process in system.cluster.processes:
            if process.node == node and process.alive:
                self._thaw(process)
                self._history.lost_clients.add(process.name)
                process.kill()
        system.cluster.notice_s = before

    async def _fault_power_off_head(self) -> None:
        """With the store's disk, which has what was synced when it comes back."""
        system = self._system
        if HEAD in system.network.off:
            return
        self._history.fault("power off", node=HEAD)
        system.disk.lose_power(lambda: self._lose_power(HEAD), self._dice)
        system.loop.outside.soon(
            lambda: system.network.power(HEAD, on=True), after_s=self._dice.uniform(1.0, 20.0)
        )

    # --- Ray ---

    async def _fault_late_notices(self) -> None:
        self._system.cluster.notice_s = self._dice.choice((NOTICE_S, (0.5, 3.0), (5.0, 30.0)))
        self._history.fault("late notices", seconds=self._system.cluster.notice_s)

    async def _fault_lost_notices(self) -> None:
        self._system.cluster.lost_share = self._dice.choice((0.0, 0.5, 1.0))
        self._history.fault("lost notices", share=self._system.cluster.lost_share)

    async def _fault_false_notices(self) -> None:
        """News of a death that is old, comes twice, or is not true."""
        workers = sorted(self._system.worker_actors)
        if workers:
            worker_id = self._dice.choice(workers[-6:])
            for _ in range(self._dice.randint(1, 3)):
                self._operate("report_dead", worker_id, "a rumour")

    async def _fault_restarted_head(self) -> None:
        """Ray's head starts anew: orders to end get lost, the supervisor dies with it, and a worker hangs a while."""
        system = self._system
        await self._freeze(self._worker(), 10.0)
        self._history.fault("lost orders")
        system.cluster.orders_lost = True
        outside = system.loop.outside
        outside.soon(lambda: self._kill(system.supervisor.process), after_s=self._dice.uniform(8.0, 20.0))
        outside.soon(lambda: setattr(system.cluster, "orders_lost", False), after_s=25.0)

    async def _fault_slow_starts(self) -> None:
        self._system.start_s = self._dice.choice(((0.2, 1.0), (5.0, 20.0)))
        self._history.fault("slow starts", seconds=self._system.start_s)

    # --- the store's disk ---

    async def _fault_disk(self) -> None:
        disk = self._system.disk
        what = self._dice.choice(("full", "broken", "slow", "unclear"))
        seconds = self._dice.choice((0.5, 5.0, 15.0))
        self._history.fault("disk", what=what, seconds=seconds)
        disk.repair()
        disk.full, disk.broken, disk.unclear = what == "full", what == "broken", what == "unclear"
        disk.slow_s = 0.2 if what == "slow" else 0.0
        self._system.loop.outside.soon(disk.repair, after_s=seconds)

    async def _fault_clock_jump(self) -> None:
        jump_s = self._dice.choice((-3600.0, -5.0, 5.0, 1800.0))
        nodes = self._dice.choice((self._system.nodes, [self._dice.choice(self._system.nodes)]))
        self._history.fault("clock jump", seconds=jump_s, nodes=nodes)
        jumped_s = self._system.loop.world.jumped_s
        for node in nodes:
            jumped_s[node] = jumped_s.get(node, 0.0) + jump_s

    # --- operators ---

    def _operate(self, method: str, *args: object, **kwargs: object) -> None:
        self._history.fault(method, args=[str(arg) for arg in args])
        living = [name for name, process in self._system.client_processes.items() if process.alive]
        if living:
            client = self._dice.choice(living)
            work = self._quietly(client, method, *args, **kwargs)
            self._system.client_processes[client].spawn(work)

    async def _quietly(self, client: str, method: str, *args: object, **kwargs: object) -> None:
        """As a pool's administration does it: the client whose it is knows at once of what it changed."""
        with contextlib.suppress(PoolError):
            await self._system.ask_supervisor(method, *args, **kwargs)
            if method in ("pause", "resume", "deploy") and client in self._system.clients:
                await self._system.clients[client].catch_up()

    async def _fault_resize(self) -> None:
        config = self._system.config
        self._operate("resize", self._dice.randint(config.min_pool_size, config.max_pool_size))

    async def _fault_drain(self) -> None:
        if living := self._system.living_workers():
            self._operate(self._dice.choice(("drain", "restart")), self._dice.choice(living))

    async def _fault_pause(self) -> None:
        self._operate("pause")
        self._system.loop.outside.soon(lambda: self._operate("resume"), after_s=self._dice.uniform(0.1, 3.0))

    async def _fault_deploy(self) -> None:
        code = self._dice.choice(("broken", f"code{self._dice.randrange(1000)}"))
        self._operate("deploy", Deployment(PROGRAM, 0, spec={"code": code}), canary_s=2.0)

    async def _fault_rollback(self) -> None:
        self._operate("rollback", PROGRAM)


KINDS = sorted(name.removeprefix("_fault_") for name in vars(Faults) if name.startswith("_fault_"))
