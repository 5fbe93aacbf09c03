"""What callers do in a simulation: each waits for one answer before the next call, or leaves early."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from typing import Any

from dspool.errors import PoolError
from dspool.messages import (
    DeleteVariable,
    EndSession,
    ExecuteProgram,
    GetVariable,
    Result,
    SetVariable,
    StreamProgram,
)
from tests.simulation.history import Call, History
from tests.simulation.program import PROGRAM
from tests.simulation.system import System

KEYS = ("a", "b")
_CALM_CALLERS, _CALM_CALLS = 3, 10
_CROWD_S = 6.0
"""For how long a worker has no free slot while one of its sessions is asked for."""
_MOST_SESSIONS = 20


class Callers:
    """`count` callers a client; each has its own dice, so that one more fault does not change what others ask."""

    def __init__(self, system: System, history: History, dice: random.Random, *, pause_s: float) -> None:
        self._system, self._history, self._dice, self._pause_s = system, history, dice, pause_s
        self._count = 0
        self.stopped = False
        self._calm: list[asyncio.Task[None]] = []
        self._sessions = [(f"s{number}", f"p{number % 2}") for number in range(4)]

    def start(self, client: str, count: int) -> None:
        for _ in range(count):
            self._system.client_processes[client].spawn(
                self._caller(client, random.Random(self._dice.getrandbits(64)))
            )

    async def _caller(self, client: str, dice: random.Random) -> None:
        await self._system.client_ready[client].wait()
        while not self.stopped:
            await asyncio.sleep(dice.expovariate(1.0 / self._pause_s))
            if not self.stopped:
                await (self.burst(client, dice) if dice.random() < 0.04 else self.one_call(client, dice))

    async def one_call(self, client: str, dice: random.Random) -> Call:
        what = dice.choices(
            ("execute", "stream", "set", "get", "session execute", "end"), (6, 2, 5, 4, 2, 0.3)
        )[0]
        call = self._new(client, what, dice.choice((30.0, 10.0, 3.0, 1.0)))
        call.idempotent = dice.random() < 0.5
        command = self._command(call, dice, self._inputs(call, dice))
        if what == "set":
            command = self._other_change(call, command, dice)
        return await self._wait(call, command, dice.uniform(0.0, 1.0) if dice.random() < 0.05 else None)

    def _other_change(self, call: Call, command: SetVariable, dice: random.Random) -> Any:
        """The change as it is, or a deletion, or made by a slow program, or one that cannot be stored."""
        kind = dice.choices(("delete", "plain", "slow", "bad"), (1, 5, 3, 0.5))[0]
        if kind == "delete":
            call.value = None
            return DeleteVariable(command.name)
        if kind == "slow":
            call.heeds, call.idempotent = True, False
            seconds = dice.choice((0.05, 0.5, 2.0, 5.0))
            inputs = {"call": call.id, "how": "sleeps", "seconds": seconds, "set": call.key}
            return ExecuteProgram(PROGRAM, inputs)
        if kind == "bad":
            call.what = "bad set"
            return SetVariable(command.name, call.id.encode())
        return command

    async def burst(self, client: str, dice: random.Random) -> None:
        """Several changes of one session at once, sent in an order that must be kept."""
        (session, principal), key = dice.choice(self._sessions), dice.choice(KEYS)
        waiting = []
        for _ in range(dice.randint(2, 5)):
            call = self._new(client, "set", 10.0)
            call.session, call.principal, call.key, call.value = session, principal, key, call.id
            work = self._wait(call, SetVariable(key, call.id))
            waiting.append(asyncio.get_running_loop().create_task(work))
        await asyncio.wait(waiting)

    def _command(self, call: Call, dice: random.Random, inputs: dict[str, Any]) -> Any:
        if call.what == "execute":
            return ExecuteProgram(PROGRAM, inputs)
        if call.what == "stream":
            return StreamProgram(PROGRAM, inputs)
        call.session, call.principal = dice.choice(self._sessions)
        if call.what == "session execute":
            return ExecuteProgram(PROGRAM, inputs)
        if call.what == "end":
            return EndSession()
        call.key = dice.choice(KEYS)
        if call.what == "get":
            return GetVariable(call.key)
        call.value = call.id
        return SetVariable(call.key, call.id)

    def start_calm(self, client: str) -> None:
        """A few callers with short calls, one after the other: nothing but a fault of the pool delays them."""
        for _ in range(_CALM_CALLERS):
            dice = random.Random(self._dice.getrandbits(64))
            self._calm.append(self._system.client_processes[client].spawn(self._calm_caller(client, dice)))

    async def calm(self) -> None:
        """Returns when they have all their answers."""
        await asyncio.gather(*self._calm)

    async def _calm_caller(self, client: str, dice: random.Random) -> None:
        for _ in range(_CALM_CALLS):
            what = dice.choices(("execute", "set", "get", "session execute", "end"), (3, 3, 3, 3, 0.5))[0]
            call = self._new(client, what, 30.0)
            call.calm = call.idempotent = True
            seconds = dice.choice((0.05, 0.4))
            inputs = {
                "call": call.id,
                "how": dice.choice(("sleeps", "inline")),
                "seconds": seconds,
                "events": 0,
            }
            leaves_after_s = dice.uniform(0.0, 0.3) if dice.random() < 0.1 else None
            await self._wait(call, self._command(call, dice, inputs), leaves_after_s)

    def last_calls(self, client: str) -> Iterator[Coroutine[Any, Any, Call]]:
        """A look at every key of every session, and an operation that anybody can do: all must succeed."""
        for session, principal in self._sessions:
            for key in KEYS:
                call = self._new(client, "get", 30.0)
                call.session, call.principal, call.key, call.calm = session, principal, key, True
                yield self._wait(call, GetVariable(key))
        call = self._new(client, "execute", 30.0)
        call.calm = True
        inputs = {"call": call.id, "how": "inline", "seconds": 0.0}
        yield self._wait(call, ExecuteProgram(PROGRAM, inputs))

    async def crowd(self, client: str) -> None:
        """Fill one worker with long operations of its sessions, and ask for another session of it: where affinity is
        `prefer`, that one moves."""
        config = self._system.config
        by_worker: dict[str | None, list[str]] = {}
        full: list[str] = []
        for number in range(_MOST_SESSIONS):
            session = f"crowd{number}"
            call = self._in(session, self._new(client, "set", 30.0))
            call.key, call.value, call.calm = KEYS[0], call.id, True
            await self._wait(call, SetVariable(KEYS[0], call.id))
            sessions = by_worker.setdefault(call.worker, [])
            sessions.append(session)
            full = sessions if len(sessions) > config.slots_per_worker else full
            if call.outcome != "ok" or (full and len(by_worker) > 1):
                break
        if config.affinity != "prefer" or not full or len(by_worker) < 2:
            return
        *long, moving = full[: config.slots_per_worker + 1]
        running = []
        for session in long:
            call = self._in(session, self._new(client, "session execute", 30.0))
            inputs = {"call": call.id, "how": "sleeps", "seconds": _CROWD_S}
            work = self._wait(call, ExecuteProgram(PROGRAM, inputs))
            running.append(asyncio.get_running_loop().create_task(work))
        await asyncio.sleep(0.1)
        call = self._in(moving, self._new(client, "get", 30.0))
        call.key, call.moves = KEYS[0], True
        await self._wait(call, GetVariable(KEYS[0]))
        await asyncio.wait(running)

    def _in(self, session: str, call: Call) -> Call:
        call.session = session
        return call

    def _new(self, client: str, what: str, timeout_s: float) -> Call:
        self._count += 1
        return self._history.call(Call(f"k{self._count}", client, what, self._history.clock(), timeout_s))

    def _inputs(self, call: Call, dice: random.Random) -> dict[str, Any]:
        how = dice.choices(
            ("sleeps", "inline", "fails", "blocks", "ignores cancellation", "kills"),
            (10, 8, 1, 0.3, 0.5, 0.3),
        )[0]
        call.heeds = how == "sleeps"
        seconds = dice.choice((0.001, 0.05, 0.2, 1.0, 5.0)) if how != "blocks" else dice.choice((0.3, 3.0))
        if how == "sleeps" and dice.random() < 0.1:
            seconds = 15.0
        return {"call": call.id, "how": how, "seconds": seconds, "events": 5 if call.what == "stream" else 0}

    async def _wait(self, call: Call, command: Any, leaves_after_s: float | None = None) -> Call:
        """Wait for its end, or leave before."""
        client = self._system.clients[call.client]
        options: dict[str, Any] = {
            "timeout_s": call.timeout_s,
            "session": call.session,
            "principal": call.principal,
        }
        # Of a burst each has a task of its own, and others may go first.
        call.sent_at = self._history.clock()
        try:
            async with asyncio.timeout(leaves_after_s):
                if call.what == "stream":
                    result = await self._read(call, client.stream(command, **options))
                else:
                    if call.what in ("execute", "session execute"):
                        options["idempotent"] = call.idempotent
                    result = await client.run(command, **options)
        except PoolError as failed:
            self._history.ended(call, failed.code)
        except TimeoutError:
            self._history.ended(call, "left")
        else:
            self._history.ended(call, "ok", result.value, result.worker)
        return call

    async def _read(self, call: Call, stream: Any) -> Result:
        number = 0
        try:
            async for event in stream:
                if isinstance(event, Result):
                    return event
                if event.value != f"{call.id}:{number}":
                    self._history.errors.append(f"{call.id} got the event {event.value}")
                number += 1
        finally:
            await stream.aclose()
        raise AssertionError("the stream ended without a result")
