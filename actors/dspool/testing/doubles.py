"""Public doubles: a clock that only a test moves, and workers, a runtime and a store in memory.

    clock = FakeClock()
    runtime = FakeRuntime(clock, script=lambda worker: ...)   # make the next worker fail as you like
    supervisor = Supervisor(config, runtime, FakeStore(), **clock.as_arguments())
    await supervisor.start()
    await clock.advance(1.0)
    runtime.worker(ordinal=0).die("SIGKILL")

Nothing here sleeps for real: time passes only in `FakeClock.advance`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from dspool.config import LoadPrograms, WorkerStep
from dspool.core.lifecycle.placement import ClusterNode
from dspool.core.lifecycle.source import ImportedSource, check_source, import_paths
from dspool.errors import PoolError, ProgramError, UnknownProgram, WorkerLost
from dspool.messages import JSON, Deployment, Member, VersionNumbers, WorkerState, WorkerStatus

__all__ = ["FakeClock", "FakeRuntime", "FakeStore", "FakeWorker", "settle"]

SETTLE_ROUNDS = 60
"""Turns of the event loop after which code that waits only for other tasks is at rest."""


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(SETTLE_ROUNDS):
        await asyncio.sleep(0)


class FakeClock:
    """Monotonic seconds that only `advance` moves. One event loop, no threads."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        """As `asyncio.sleep`, in this clock's time."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), wake))
        await wake

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: each sleeper wakes at its own time, in order, and its effects happen then."""
        end = self._now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)
                await settle()
        self._now = end
        await settle()

    def as_arguments(self) -> dict[str, Any]:
        """`clock`, `wall` and `sleep`, as `Supervisor` takes them."""
        return {"clock": self.now, "wall": self.now, "sleep": self.sleep}


Fault = Literal["raise", "hang", "die"] | PoolError


class FakeWorker:
    """A worker process that is only a record of its calls.

    Faults to set before or while it runs: `start_fault`, `step_faults` by step index, `drain_fault`,
    `deploy_faults` by program, `healthy` (False: its health checks hang, as if its event loop were blocked),
    `unreachable` (True: they raise), `obedient` (False: it changes no version), `stubborn` (True: it ignores a request
    to stop), `immortal` (True: it survives a kill).
    """

    node = ""

    def __init__(self, worker_id: str, ordinal: int, clock: FakeClock) -> None:
        self.worker_id = worker_id
        self.ordinal = ordinal
        self._clock = clock
        self._dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.started_at = clock.now()
        self.start_fault: Fault | None = None
        self.start_s = 0.0
        self.step_faults: dict[int, Fault] = {}
        self.step_s = 0.0
        self.drain_fault: Fault | None = None
        self.drain_s = 0.0
        self.deploy_faults: dict[str, Fault] = {}
        self.healthy = True
        self.unreachable = False
        self.immortal = False
        self.stubborn = False
        self.obedient = True
        self.steps: list[str] = []
        self.loaded: dict[str, set[int]] = {}
        self.active: dict[str, int] = {}
        self.measured: dict[str, dict[int, VersionNumbers]] = {}
        """By program: the numbers of each version here."""
        self.imported = ImportedSource()
        """Its answer to `source`, whatever the paths."""
        self.forgotten: list[str] = []
        self.killed = False
        self.state: WorkerState = "starting"
        self.operations = 0
        self.errors = 0
        self.busy_s = 0.0
        self.sessions = 0
        self.own_mb = 100.0
        self.settings = ""

    def __repr__(self) -> str:
        return f"FakeWorker({self.worker_id}, {'alive' if self.alive else 'dead'})"

    @property
    def alive(self) -> bool:
        return not self._dead.done()

    def die(self, cause: str = "SIGKILL") -> None:
        """End the process, and wake everybody who waits for that."""
        if not self._dead.done():
            self._dead.set_result(cause)

    async def until_dead(self) -> str:
        return await asyncio.shield(self._dead)

    async def _do(self, fault: Fault | None, what: str, seconds: float = 0.0) -> None:
        if not self.alive:
            raise WorkerLost(f"worker {self.worker_id} is dead", worker=self.worker_id)
        if seconds:
            work = asyncio.ensure_future(self._clock.sleep(seconds))
            await asyncio.wait(
                [asyncio.ensure_future(self.until_dead()), work], return_when=asyncio.FIRST_COMPLETED
            )
            work.cancel()
        if fault == "die":
            self.die(f"died while it should {what}")
        if fault == "hang":
            await asyncio.wait({self._dead})
        if not self.alive:
            raise WorkerLost(f"worker {self.worker_id} died", worker=self.worker_id)
        if fault == "raise":
            raise ProgramError(f"scripted fault: cannot {what}")
        if isinstance(fault, PoolError):
            raise fault

    async def describe(self) -> Member:
        await self._do(self.start_fault, "start listening", self.start_s)
        return Member(
            self.worker_id,
            self.ordinal,
            "127.0.0.1",
            10_000 + self.ordinal,
            8,
            pid=4000 + self.ordinal,
            node=self.node,
        )

    async def warm(self, step: WorkerStep, deployments: list[Deployment]) -> None:
        await self._do(self.step_faults.get(len(self.steps)), f"run warm-up step {step.step}", self.step_s)
        self.steps.append(step.step)
        if isinstance(step, LoadPrograms):
            for deployment in deployments:
                await self.deploy(deployment)

    async def health(self) -> WorkerStatus:
        await self._do("raise" if self.unreachable else None if self.healthy else "hang", "answer")
        return WorkerStatus(
            id=self.worker_id,
            ordinal=self.ordinal,
            state=self.state,
            started_at=self.started_at,
            operations=self.operations,
            errors=self.errors,
            busy_s=self.busy_s,
            sessions=self.sessions,
            rss_mb=self.own_mb,
            own_mb=self.own_mb,
            settings=self.settings,
        )

    async def drain(self, timeout_s: float) -> None:
        self.state = "draining"
        await self._do(self.drain_fault, "drain", self.drain_s)
        self.sessions = 0

    async def deploy(self, d: Deployment) -> None:
        await self._do(self.deploy_faults.get(d.program), f"load {d.program}")
        if import_paths(d):
            check_source(d, self.imported.modules)
        self.loaded.setdefault(d.program, set()).add(d.version)
        self.active[d.program] = max(d.version, self.active.get(d.program, 0))

    async def retire(self, program: str, version: int) -> None:
        await self._do(None, "retire")
        self.loaded.get(program, set()).discard(version)

    async def activate(self, program: str, version: int) -> None:
        await self._do(None if self.obedient else "hang", "activate")
        if version not in self.loaded.get(program, set()):
            raise UnknownProgram(f"version {version} of {program} is not loaded", program=program)
        self.active[program] = version

    async def versions(self, program: str) -> dict[int, VersionNumbers]:
        await self._do(None if self.healthy else "hang", "answer")
        return dict(self.measured.get(program, {}))

    async def source(self, paths: tuple[str, ...]) -> ImportedSource:
        await self._do(None if self.healthy else "hang", "answer")
        return self.imported

    async def forget(self, sessions: list[str]) -> None:
        await self._do(None, "forget")
        self.forgotten += sessions

    async def stop(self) -> None:
        await self._do(None, "stop")
        if not self.stubborn:
            self.die("stopped")


class FakeRuntime:
    """Starts `FakeWorker`s. `script(worker)` may set faults on each new one, or raise to make its start fail."""

    def __init__(self, clock: FakeClock, script: Callable[[FakeWorker], None] | None = None) -> None:
        self._clock = clock
        self.script = script
        self.workers: list[FakeWorker] = []
        """All it ever started, oldest first."""
        self.cluster: list[ClusterNode] = []
        """The living nodes."""

    @property
    def alive(self) -> list[FakeWorker]:
        return [worker for worker in self.workers if worker.alive]

    def worker(self, ordinal: int) -> FakeWorker:
        """The living worker with this ordinal."""
        return next(worker for worker in self.alive if worker.ordinal == ordinal)

    def named(self, worker_id: str) -> FakeWorker:
        return next(worker for worker in self.workers if worker.worker_id == worker_id)

    async def nodes(self) -> list[ClusterNode]:
        return self.cluster

    async def start_worker(self, worker_id: str, ordinal: int, node: str | None = None) -> FakeWorker:
        worker = FakeWorker(worker_id, ordinal, self._clock)
        worker.node = node or ""
        if self.script is not None:
            self.script(worker)
        twins = [twin for twin in self.alive if twin.ordinal == ordinal]
        assert not twins, f"two living workers with ordinal {ordinal}: {worker_id} and {twins[0].worker_id}"
        self.workers.append(worker)
        return worker

    async def running_workers(self) -> list[FakeWorker]:
        return self.alive

    def kill(self, handle: FakeWorker) -> None:
        handle.killed = True
        if not handle.immortal:
            handle.die("killed")


class FakeStore:
    """The part of the session store that a supervisor uses, in memory. Every call raises `down`, if set."""

    def __init__(self) -> None:
        self.down: PoolError | None = None
        self.records: dict[tuple[str, str], JSON] = {}
        self.versions: list[tuple[str, Deployment]] = []
        self.current: dict[tuple[str, str], int] = {}
        self.dead: list[str] = []
        """Workers declared dead, in order."""
        self.alive: list[list[str]] = []
        self.expiring: list[tuple[str, str | None]] = []
        """What the next `expire` removes."""

    def _answer(self) -> None:
        if self.down is not None:
            raise self.down

    async def worker_dead(self, pool: str, worker: str) -> int:
        self._answer()
        self.dead.append(worker)
        return 0

    async def declared_dead(self, pool: str) -> list[str]:
        self._answer()
        return list(self.dead)

    async def workers_alive(self, pool: str, workers: Sequence[str]) -> int:
        self._answer()
        self.alive.append(list(workers))
        return 0

    async def expire(self, pool: str, idle_s: float) -> list[tuple[str, str | None]]:
        self._answer()
        expired, self.expiring = self.expiring, []
        return expired

    async def put_record(self, pool: str, key: str, value: JSON) -> None:
        self._answer()
        self.records[pool, key] = msgspec.json.decode(msgspec.json.encode(value))

    async def get_record(self, pool: str, key: str) -> JSON | None:
        self._answer()
        return self.records.get((pool, key))

    async def add_deployment(self, pool: str, deployment: Deployment, at_least: int = 0) -> Deployment:
        self._answer()
        versions = [
            d.version for name, d in self.versions if name == pool and d.program == deployment.program
        ]
        number = max(max(versions, default=0) + 1, at_least)
        deployment = msgspec.structs.replace(deployment, version=number)
        self.versions.append((pool, msgspec.structs.replace(deployment, source=None)))
        return deployment

    async def deployments(self, pool: str) -> list[Deployment]:
        self._answer()
        return [deployment for name, deployment in self.versions if name == pool]

    async def set_current(self, pool: str, program: str, version: int | None) -> None:
        self._answer()
        if version is None:
            self.current.pop((pool, program), None)
        else:
            self.current[pool, program] = version

    async def current_versions(self, pool: str) -> dict[str, int]:
        self._answer()
        return {program: version for (name, program), version in self.current.items() if name == pool}
