"""Callers in a process of their own, which may be killed: what they ask and get goes to a file, as it happens.

Started by `benchmarks.chaos`; the process ends when its input is closed and the last answer is there. It is a client
of the pool, or of its service over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.appending import append_line
from tests.simulation.history import Call

PYTHON, HTTP = "python", "http"
CALLERS = 3
SESSIONS = 4
GRACE_S = 20.0
"""How long after its deadline an operation may take to end before it is given up as one that hangs."""
CONNECT_S = 120.0
AGAIN, ONCE = "again", "once"
"""Programs: one may be repeated, the other may not."""


class Callers:
    """`CALLERS` that each wait for one answer before they ask again. Each writes variables of its own and reads all."""

    def __init__(self, pool: Any, name: str, kind: str, history: Path, runs: Path, seed: int) -> None:
        self.pool, self.name, self.kind, self.history, self.runs = pool, name, kind, history, runs
        self._dice = random.Random(seed)
        self._count = 0
        self.stopping = False

    async def run(self) -> None:
        await asyncio.gather(*(self._caller(f"{self.name}-{number}") for number in range(CALLERS)))

    async def _caller(self, key: str) -> None:
        while not self.stopping:
            await self.one(key)
            await asyncio.sleep(self._dice.expovariate(1.0 / 0.03))

    async def one(self, key: str) -> Call:
        dice = self._dice
        what = dice.choices(("again", "once", "set", "get"), (4, 3, 4, 3))[0]
        session = f"s{dice.randrange(SESSIONS)}"
        if what in (AGAIN, ONCE):
            return await self.execute(what, dice.choice((0.0, 0.02, 0.1, 1.0)))
        if what == "set":
            return await self.set(session, key)
        return await self.get(session, dice.choice([f"{self.name}-{number}" for number in range(CALLERS)]))

    async def execute(self, program: str, seconds: float, **facts: Any) -> Call:
        call = self._new("execute", idempotent=program == AGAIN, **facts)
        inputs = {"call": call.id, "path": str(self.runs), "seconds": seconds}

        async def ask() -> Any:
            result = await self.pool.execute(program, timeout_s=call.timeout_s, **inputs)
            return {"outputs": {"call": result.call}}

        return await self._ended(call, ask())

    async def set(self, session: str, key: str, **facts: Any) -> Call:
        call = self._new("set", session=session, key=key, **facts)
        handle = self.pool.session(session)

        async def ask() -> None:
            await handle.run(_set(key, call.id), timeout_s=call.timeout_s)

        return await self._ended(call, ask())

    async def get(self, session: str, key: str, **facts: Any) -> Call:
        call = self._new("get", session=session, key=key, **facts)
        handle = self.pool.session(session)

        async def ask() -> Any:
            from dspool.errors import UnknownName

            try:
                result = await handle.run(_get(key), timeout_s=call.timeout_s)
            except UnknownName as unknown:
                if type(unknown) is not UnknownName:
                    raise  # the session itself is not there
                return None
            return result.value["value"]

        return await self._ended(call, ask())

    def _new(self, what: str, **facts: Any) -> Call:
        self._count += 1
        call = Call(f"{self.name}-{self._count}", self.name, what, time.monotonic(), 10.0, **facts)
        if what == "set":
            call.value = call.id
        if self.kind == HTTP:
            # What is sent again after the service died has tries of its own in the pool.
            call.attempts = 9
        append_line(self.history, {"call": asdict(call)})
        return call

    async def _ended(self, call: Call, ask: Any) -> Call:
        from dspool.errors import PoolError

        try:
            call.answer = await asyncio.wait_for(ask, call.timeout_s + GRACE_S)
            call.outcome = "ok"
        except TimeoutError:
            return call  # no end is written down
        except PoolError as failed:
            # What has no code of its own is declared nowhere.
            call.outcome = failed.code if failed.code != PoolError.code else f"{failed.code}: {failed}"[:300]
        except Exception as failed:
            call.outcome = f"undeclared {type(failed).__name__}: {failed}"[:300]
        call.ends, call.ended_at = 1, time.monotonic()
        ended = {"ended": call.id, "at": call.ended_at, "outcome": call.outcome, "answer": call.answer}
        append_line(self.history, ended)
        return call


def _set(key: str, value: str) -> Any:
    from dspool.messages import SetVariable

    return SetVariable(key, value)


def _get(key: str) -> Any:
    from dspool.messages import GetVariable

    return GetVariable(key)


async def opened(kind: str, pool: str, url: str, address: str, stack: AsyncExitStack) -> Any:
    """The pool as this kind of client has it. The Ray cluster's token is in the environment."""
    if kind == HTTP:
        from dspool.remote.pool import RemotePool

        return await stack.enter_async_context(RemotePool(url, pool=pool))
    from dspool import Pool, PoolError
    from dspool.runtime.cluster import join_cluster

    join_cluster(address)
    until = time.monotonic() + CONNECT_S
    while True:
        try:
            found = await Pool.connect(pool)
            break
        except PoolError:
            # What would let it in is dead just now.
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.1)
    stack.push_async_callback(found.close)
    return found


async def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("kind", "name", "pool", "url", "address"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    async with AsyncExitStack() as stack:
        pool = await opened(options.kind, options.pool, options.url, options.address, stack)
        callers = Callers(pool, options.name, options.kind, options.history, options.runs, options.seed)

        async def until_told() -> None:
            await asyncio.to_thread(sys.stdin.read)
            callers.stopping = True

        await asyncio.gather(callers.run(), until_told())
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
