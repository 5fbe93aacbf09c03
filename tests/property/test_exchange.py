"""Two clients and two workers over real connections, under whatever callers, networks and deaths do to them."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from dspool.config import PoolConfig
from dspool.errors import Cancelled, TooManySessions, UnknownSession, WorkerLost
from dspool.messages import ExecuteProgram, GetVariable, Result, SetVariable, StreamEvent, StreamProgram
from dspool.testing.host import LoopbackPool, Script

SLOTS = 3
CLIENTS = 2
SESSIONS = [None, "s", "t", "u"]


class Call(NamedTuple):
    id: str
    client: int
    session: str | None
    idempotent: bool
    sets: int | None
    task: asyncio.Future[Any]


class Exchange(RuleBasedStateMachine):
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.numbers = itertools.count(1)
        self.all: list[Call] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.sequence: list[tuple[str, int, int]] = []
        self.running: dict[str, str] = {}
        self.wrong: list[str] = []
        self.drains: list[asyncio.Future[None]] = []

    @initialize(affinity=st.sampled_from(["strict", "prefer"]))
    def start(self, affinity: str) -> None:
        self._do(self._start(affinity))

    async def _start(self, affinity: str) -> None:
        retry = {"backoff_s": 0.001, "backoff_max_s": 0.001}
        self.pool = LoopbackPool(
            PoolConfig(
                name="t", slots_per_worker=SLOTS, affinity=affinity, max_sessions_per_worker=2, retry=retry
            )
        )
        self.pool.programs |= {
            "now": Script("inline", self._now),
            "hold": Script("async", self._hold),
            "stream": Script("async", self._stream),
        }
        for _ in range(2):
            await self.pool.start_worker()
        self.clients = [await self.pool.start_client() for _ in range(CLIENTS)]

    # --- the programs ---

    def _enter(self, inputs: dict[str, Any], session: Any) -> None:
        if session is not None:
            if session.id in self.running:
                self.wrong.append(f"{inputs['id']} ran beside {self.running[session.id]} in {session.id}")
            self.running[session.id] = inputs["id"]
            self.sequence.append((session.id, inputs["client"], inputs["n"]))
            if session.id != inputs["session"]:
                self.wrong.append(f"{inputs['id']} ran in {session.id}")

    def _exit(self, session: Any) -> None:
        if session is not None:
            self.running.pop(session.id, None)

    def _now(self, inputs: dict[str, Any], session: Any, emit: Any) -> dict[str, Any]:
        self._enter(inputs, session)
        self._exit(session)
        return dict(inputs)

    async def _hold(self, inputs: dict[str, Any], session: Any, emit: Any) -> dict[str, Any]:
        self._enter(inputs, session)
        try:
            await self.gates[inputs["id"]].wait()
        finally:
            self._exit(session)
        return dict(inputs)

    async def _stream(self, inputs: dict[str, Any], session: Any, emit: Any) -> dict[str, Any]:
        self._enter(inputs, session)
        try:
            for number in range(100):
                await emit(StreamEvent("token", inputs["id"], number))
        finally:
            self._exit(session)
        return dict(inputs)

    # --- what may happen ---

    @rule(
        target=calls,
        client=st.integers(0, CLIENTS - 1),
        session=st.sampled_from(SESSIONS),
        program=st.sampled_from(["now", "hold", "stream"]),
        idempotent=st.booleans(),
    )
    def submit(self, client: int, session: str | None, program: str, idempotent: bool) -> Call:
        n = next(self.numbers)
        inputs = {"id": f"op{n}", "client": client, "session": session, "n": n}
        self.gates[f"op{n}"] = asyncio.Event()

        async def run() -> Result:
            if session is not None:
                # A program does not bring a session into being.
                await self.clients[client].run(SetVariable("here", 1), session=session, idempotent=True)
            if program == "stream":
                return await self._read(client, inputs, session)
            command = ExecuteProgram(program, inputs)
            return await self.clients[client].run(command, session=session, idempotent=idempotent)

        repeats = idempotent and program != "stream"
        return self._called(Call(f"op{n}", client, session, repeats, None, self._task(run())))

    async def _read(self, client: int, inputs: dict[str, Any], session: str | None) -> Result:
        seen = []
        async for event in self.clients[client].stream(StreamProgram("stream", inputs), session=session):
            if isinstance(event, Result):
                if seen != list(range(100)):
                    self.wrong.append(f"{inputs['id']} streamed {seen}")
                return event
            seen.append(event.value)
            if event.field != inputs["id"]:
                self.wrong.append(f"{inputs['id']} read an event of {event.field}")
        raise AssertionError("a stream ended without its result")

    @rule(
        target=calls,
        client=st.integers(0, CLIENTS - 1),
        session=st.sampled_from(SESSIONS[1:]),
    )
    def set_variable(self, client: int, session: str) -> Call:
        n = next(self.numbers)
        run = self.clients[client].run(SetVariable(f"v{client}", n), session=session)
        return self._called(Call(f"op{n}", client, session, False, n, self._task(run)))

    @rule(call=calls)
    def finish(self, call: Call) -> None:
        self.gates.get(call.id, asyncio.Event()).set()
        self._do(self._settle(60))

    @rule(call=consumes(calls))
    def cancel(self, call: Call) -> None:
        call.task.cancel()
        self._do(self._settle(3))

    @rule(turns=st.integers(1, 80))
    def let_time_pass(self, turns: int) -> None:
        self._do(self._settle(turns))

    @rule(which=st.integers(0, 1))
    def a_worker_dies(self, which: int) -> None:
        async def die() -> None:
            await self.pool.kill(sorted(self.pool.workers)[which])
            await self.pool.start_worker()

        self._do(die())

    @rule(which=st.integers(0, 1), client=st.integers(0, CLIENTS - 1))
    def a_connection_breaks(self, which: int, client: int) -> None:
        link = self.clients[client]._links.get(sorted(self.pool.workers)[which])
        if link is not None:
            link.abort()

    @rule(which=st.integers(0, 1))
    def a_worker_is_replaced(self, which: int) -> None:
        async def replace() -> None:
            worker_id = sorted(self.pool.workers)[which]
            await self.pool.start_worker()
            worker = self.pool.workers.pop(worker_id)
            self.pool.leave(worker_id)
            self.pool._stopped.append(worker)
            self.drains.append(asyncio.ensure_future(worker.drain(60.0)))

        self._do(replace())

    # --- what must hold ---

    @invariant()
    def slots_are_never_exceeded_and_no_session_runs_two_at_once(self) -> None:
        if not hasattr(self, "pool"):
            return
        for worker_id, host in self.pool.hosts.items():
            assert host.most_running <= SLOTS, worker_id
            assert not host.overlaps, worker_id
        assert not self.wrong

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self._do(self._end())
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    async def _end(self) -> None:
        for gate in self.gates.values():
            gate.set()
        async with asyncio.timeout(120):
            ends = await asyncio.gather(*(call.task for call in self.all), return_exceptions=True)
            await asyncio.gather(*self.drains)
        started = sum((host.started for host in self.pool.hosts.values()), start=Counter())
        for call, end in zip(self.all, ends, strict=True):
            self._check_end(call, end, started[call.id])
        self._check_order()
        await self._check_variables(ends)
        await self._check_nothing_is_left()
        await self.pool.__aexit__()
        assert not self.wrong

    def _check_end(self, call: Call, end: Any, started: int) -> None:
        if isinstance(end, Result) and call.sets is None:
            assert end.outputs["id"] == call.id
        elif not isinstance(end, Result):
            assert isinstance(end, (asyncio.CancelledError, WorkerLost, TooManySessions)), (call, end)
            assert not isinstance(end, Cancelled)
        if not call.idempotent:
            assert started <= 1, f"{call.id} is not idempotent and started {started} times"
        # Sent counts as an attempt: one that was lost on its way never started.
        assert started <= 3, f"{call.id} started {started} times with three attempts"

    def _check_order(self) -> None:
        last: dict[tuple[str, int], int] = {}
        for session, client, n in self.sequence:
            assert n >= last.get((session, client), 0), f"{n} ran after a later one of its session"
            last[session, client] = n

    async def _check_variables(self, ends: list[Any]) -> None:
        """An acknowledged change is there at the end, unless a later one took its place."""
        possible: dict[tuple[str, int], set[int | None]] = {}
        for call, end in zip(self.all, ends, strict=True):
            if call.sets is not None and call.session is not None:
                values = possible.setdefault((call.session, call.client), {None})
                if isinstance(end, Result):
                    values.clear()
                values.add(call.sets)
        for (session, client), values in possible.items():
            try:
                got = await self.clients[client].run(
                    GetVariable(f"v{client}"), session=session, timeout_s=10.0
                )
            except UnknownSession:
                assert None in values, f"session {session} is gone with what was acknowledged"
            else:
                assert got.value in values

    async def _check_nothing_is_left(self) -> None:
        await self._settle(200)
        for client in self.clients:
            assert (client.queued, client.running) == (0, 0)
            assert client._recorder.demand == 0
            assert not client._streams
        for worker in [*self.pool.workers.values(), *self.pool._stopped]:
            assert worker._operations.running == 0

    # --- helpers ---

    def _called(self, call: Call) -> Call:
        self.all.append(call)
        self._do(self._settle(2))
        return call

    def _task(self, work: Any) -> asyncio.Future[Any]:
        return self.loop.create_task(work)

    def _do(self, work: Any) -> None:
        self.loop.run_until_complete(work)

    @staticmethod
    async def _settle(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)


TestExchange = Exchange.TestCase
# No shrinking: with real sockets every replay differs a little, so it would search for minutes and find no less.
TestExchange.settings = settings(
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
