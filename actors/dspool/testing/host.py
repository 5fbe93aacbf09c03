"""Public doubles for the data plane: real clients and real workers over loopback, with programs that are scripts.

    async with LoopbackPool(PoolConfig(slots_per_worker=2)) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        pool.programs["slow"] = Script("async", lambda inputs, session, emit: gate.wait())
        await client.run(ExecuteProgram("slow", {}))

No Ray, no model, no database. Hosts count what runs and note any session that runs two operations at once.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, NamedTuple, cast

import msgspec

from dspool.client.client import Client, ControlPlane
from dspool.config import PoolConfig
from dspool.core.admission.access import unknown_session
from dspool.core.admission.quotas import size_of
from dspool.core.lifecycle.source import ImportedSource
from dspool.errors import InternalError, PoolError, StaleLease, UnknownProgram
from dspool.messages import (
    JSON,
    AnyCommand,
    Change,
    DeleteVariable,
    Deployment,
    ExecuteProgram,
    GetVariable,
    Lease,
    Member,
    Membership,
    Ping,
    SetVariable,
    StorageLimits,
    StreamEvent,
    StreamProgram,
)
from dspool.programs.sessions.host import CommandResult, Session, SessionHost
from dspool.worker.worker import Worker

__all__ = ["LoopbackPool", "MemorySessions", "Script", "ScriptedHost"]

Way = Literal["inline", "async", "apart", "thread"]
Emit = Callable[[StreamEvent], Any]


class Script(NamedTuple):
    """A program: how the worker runs it, and what it does. What `do` returns becomes `outputs`."""

    way: Way
    do: Callable[[dict[str, Any], Session | None, Emit | None], Any]


class ScriptedHost:
    """Stands in for `SessionHost`: ping, variables and scripted programs."""

    def __init__(self, programs: dict[str, Script]) -> None:
        self.programs = programs
        self.clock = time.time
        self.running = 0
        self.most_running = 0
        self.started: Counter[str] = Counter()
        """How often each `inputs["id"]` started here."""
        self.overlaps: list[str] = []
        """Sessions that ran two operations at once."""
        self.versions: dict[str, int] = {}
        """The current version by program; 1 for any other."""
        self._sessions: set[str] = set()
        self._lock = threading.Lock()

    def plan(self, command: AnyCommand, session: Session | None) -> Way:
        if isinstance(command, (ExecuteProgram, StreamProgram)) and command.program in self.programs:
            return self.programs[command.program].way
        return "inline"

    def version_for(self, command: ExecuteProgram | StreamProgram, session: Session | None) -> int:
        return command.version or self.versions.get(command.program, 1)

    def run_inline(
        self, command: AnyCommand, session: Session | None, principal: str | None = None
    ) -> CommandResult:
        self._enter(command, session)
        try:
            if isinstance(command, (ExecuteProgram, StreamProgram)):
                return _result(self._script(command).do(command.inputs, session, None))
            return _run(command, session)
        finally:
            self._exit(session)

    async def run_async(
        self,
        command: AnyCommand,
        session: Session | None,
        emit: Callable[[StreamEvent], Awaitable[None]] | None,
        *,
        principal: str | None = None,
    ) -> CommandResult:
        assert isinstance(command, (ExecuteProgram, StreamProgram))
        self._enter(command, session)
        try:
            outputs = self._script(command).do(command.inputs, session, emit)
            return _result(await outputs if inspect.isawaitable(outputs) else outputs)
        finally:
            self._exit(session)

    def run_thread(
        self,
        command: AnyCommand,
        session: Session | None,
        emit_threadsafe: Callable[[StreamEvent], None] | None = None,
        *,
        stop: threading.Event | None = None,
        principal: str | None = None,
    ) -> CommandResult:
        assert isinstance(command, (ExecuteProgram, StreamProgram))
        self._enter(command, session)
        try:
            return _result(
                self._script(command).do(command.inputs | {"stop": stop}, session, emit_threadsafe)
            )
        finally:
            self._exit(session)

    def deploy(self, d: Deployment) -> None:
        raise InternalError("a scripted host has its programs from the start")

    def source(self, paths: Iterable[str]) -> ImportedSource:
        return ImportedSource()

    def _script(self, command: ExecuteProgram | StreamProgram) -> Script:
        try:
            return self.programs[command.program]
        except KeyError:
            raise UnknownProgram(f"no script {command.program!r}") from None

    def _enter(self, command: AnyCommand, session: Session | None) -> None:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            if isinstance(command, (ExecuteProgram, StreamProgram)) and "id" in command.inputs:
                self.started[command.inputs["id"]] += 1
            if session is not None:
                if session.id in self._sessions:
                    self.overlaps.append(session.id)
                self._sessions.add(session.id)

    def _exit(self, session: Session | None) -> None:
        with self._lock:
            self.running -= 1
            if session is not None:
                self._sessions.discard(session.id)


def _result(outputs: Any) -> CommandResult:
    return outputs if isinstance(outputs, CommandResult) else CommandResult({"outputs": outputs})


def _run(command: AnyCommand, session: Session | None) -> CommandResult:
    if isinstance(command, Ping):
        return CommandResult("pong")
    assert session is not None
    session.mark()
    if isinstance(command, SetVariable):
        session.variables[command.name] = command.value
        return CommandResult(None, changes=(Change("variable", command.name, {"value": command.value}),))
    if isinstance(command, DeleteVariable):
        session.variables.pop(command.name, None)
        return CommandResult(None, changes=(Change("variable", command.name),))
    if isinstance(command, GetVariable):
        return CommandResult(session.variables.get(command.name))
    raise InternalError(f"a scripted host does not know {type(command).__name__}")


class _Record:
    def __init__(self, principal: str | None) -> None:
        self.principal = principal
        self.owner: str | None = None
        self.epoch = 0
        self.items: dict[tuple[str, str], Change] = {}

    @property
    def size(self) -> int:
        return sum(size_of(msgspec.json.encode(item.payload).decode()) for item in self.items.values())


class MemorySessions:
    """The part of the session store that workers use, in memory.

    Every call waits for `gate` and raises `down`, if they are set; `calls` counts them by method.
    """

    def __init__(self) -> None:
        self.down: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.calls: Counter[str] = Counter()
        self.sessions: dict[str, _Record] = {}
        self.dead: set[str] = set()

    async def _answer(self, method: str) -> None:
        self.calls[method] += 1
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.down is not None:
            raise self.down

    async def acquire(
        self,
        pool: str,
        session: str,
        worker: str,
        *,
        create: bool,
        principal: str | None = None,
        limits: StorageLimits | None = None,
    ) -> Lease:
        await self._answer("acquire")
        record = self.sessions.get(session)
        if record is None and create:
            record = self.sessions[session] = _Record(principal)
        if record is None or (None not in (record.principal, principal) and record.principal != principal):
            raise unknown_session(pool, session)
        if worker in self.dead:
            raise StaleLease(f"{worker} is dead", worker=worker)
        if record.owner is not None and record.owner != worker:
            return Lease(session, False, record.owner, record.epoch)
        record.owner, record.epoch = worker, record.epoch + 1
        return Lease(
            session,
            True,
            worker,
            record.epoch,
            tuple(record.items.values()),
            record.principal,
            size=record.size,
        )

    async def commit(
        self,
        pool: str,
        session: str,
        worker: str,
        epoch: int,
        changes: list[Change],
        *,
        principal: str | None = None,
        limits: StorageLimits | None = None,
    ) -> int:
        await self._answer("commit")
        record = self.sessions.get(session)
        if record is None or (record.owner, record.epoch) != (worker, epoch):
            raise StaleLease(f"{worker} does not own {session!r} at epoch {epoch}", session=session)
        for change in changes:
            if change.payload is None:
                record.items.pop((change.kind, change.name), None)
            else:
                record.items[change.kind, change.name] = change
        return record.size

    async def release(self, pool: str, worker: str, sessions: list[str]) -> None:
        await self._answer("release")
        for session in sessions:
            record = self.sessions.get(session)
            if record is not None and record.owner == worker:
                record.owner = None

    async def touch(self, pool: str, worker: str, sessions: list[str]) -> None:
        await self._answer("touch")

    async def end(self, pool: str, session: str, *, principal: str | None = None) -> bool:
        await self._answer("end")
        return self.sessions.pop(session, None) is not None

    async def get_record(self, pool: str, key: str) -> JSON | None:
        return None

    def worker_dead(self, worker: str) -> None:
        """Free the leases of this worker; it gets no more."""
        self.dead.add(worker)
        for record in self.sessions.values():
            if record.owner == worker:
                record.owner = None


class LoopbackPool:
    """Workers and clients of one pool in this process and event loop, with real connections between them."""

    def __init__(self, config: PoolConfig | None = None, *, secret: bytes = b"secret") -> None:
        self.config = config or PoolConfig(name="loopback")
        self.secret = secret
        self.programs: dict[str, Script] = {}
        self.store = MemorySessions()
        self.workers: dict[str, Worker] = {}
        self.hosts: dict[str, ScriptedHost] = {}
        self.clients: list[Client] = []
        self.reported_dead: list[str] = []
        self.membership = Membership(0)
        self._members: dict[str, Member] = {}
        self._leaving: dict[str, None] = {}
        self._published = asyncio.Event()
        self._stopped: list[Worker] = []

    async def __aenter__(self) -> LoopbackPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            await client.close()
        for worker in [*self.workers.values(), *self._stopped]:
            await worker.stop()

    async def start_worker(self, worker_id: str | None = None) -> Worker:
        """Start a worker, which listens and is a member."""
        ordinal = len(self.hosts)
        worker_id = worker_id or f"w{ordinal}"
        host = self.hosts[worker_id] = ScriptedHost(self.programs)
        worker = Worker(
            worker_id, ordinal, self.config, self.secret, self.store, session_host=cast(SessionHost, host)
        )
        self.workers[worker_id] = worker
        self._members[worker_id] = await worker.describe()
        self.publish()
        return worker

    async def start_client(self, *, connected: bool = True) -> Client:
        client = Client(self.config, self.secret, ControlPlane(self._watch, self._report_dead))
        self.clients.append(client)
        await client.start()
        if connected and not await client.wait_ready(len(self._members), 10.0):
            raise InternalError("the client did not connect")
        return client

    async def kill(self, worker_id: str) -> None:
        """What SIGKILL looks like from outside: connections end, leases are free, the membership forgets the worker."""
        worker = self.workers[worker_id]
        self._forget(worker_id)
        await worker.stop()
        self.publish()

    def declare_dead(self, worker_id: str) -> None:
        """What a supervisor does with a worker that hangs: it and its connections go on, but nobody waits for it."""
        self._forget(worker_id)
        self.publish()

    def leave(self, worker_id: str) -> None:
        """Let the worker take no more traffic, but live and finish what it runs."""
        self._members.pop(worker_id)
        self._leaving[worker_id] = None
        self.publish()

    def _forget(self, worker_id: str) -> None:
        self._stopped.append(self.workers.pop(worker_id))
        self._members.pop(worker_id, None)
        self._leaving.pop(worker_id, None)
        self.store.worker_dead(worker_id)

    def publish(self, **changes: Any) -> None:
        version = self.membership.version + 1
        finishing = tuple(self._leaving.keys() - self._members.keys())
        facts = {"programs": dict.fromkeys(self.programs, 1), "finishing": finishing, **changes}
        self.membership = Membership(version, tuple(self._members.values()), **facts)
        self._published.set()
        self._published = asyncio.Event()

    async def _watch(self, version: int) -> Membership:
        while self.membership.version <= version:
            await self._published.wait()
        return self.membership

    async def _report_dead(self, worker_id: str, why: str) -> None:
        self.reported_dead.append(worker_id)


def failing(error: PoolError | BaseException) -> Script:
    """An inline program that raises `error`."""

    def fail(inputs: dict[str, Any], session: Session | None, emit: Emit | None) -> Any:
        raise error

    return Script("inline", fail)
