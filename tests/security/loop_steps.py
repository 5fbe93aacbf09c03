"""The longest step of an event loop over the corpus: `python -m tests.security.loop_steps [PART_OF_A_NAME]`.

A worker and a client of it on one loop, with everything real but Ray and the store, get each entry in the way it comes
over HTTP: the body is decoded (as an ingress process does), the command goes over a connection, the worker builds,
checks and runs it. A step is what runs between two turns of the loop. Counted is processor time of the loop's thread,
so that a busy machine does not matter, relative to work of a known size in the same run.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, NamedTuple

import msgspec

from dspool.client.client import Client
from dspool.config import LoadPrograms, PoolConfig, ServiceConfig
from dspool.errors import CallerError, InvalidRequest, PayloadTooLarge, UnknownSession
from dspool.messages import AnyCommand, ConfigureLM, CreateProgram, Deployment, EndSession, ExecuteProgram
from dspool.testing.host import LoopbackPool
from dspool.worker.worker import Worker
from dspool_serve.api.schema import ExecuteRequest, LMRequest, ProgramRequest
from dspool_serve.http.problems import MalformedRequest
from dspool_serve.http.requests import decode
from tests.security.corpus import CORPUS, Hostile, Unsendable, request_of

LIMIT_S: Final = 0.050
"""What no step may take, on the machine below."""
_UNIT_S: Final = 0.010
"""What `_unit` takes on two cores of a Xeon at 2.1 GHz with nothing else running."""

PROGRAMS: Final = {
    "text": "context, question -> answer",
    "typed": "question: Any -> answer: str, names: list[str], number: int, when",
    "xml": "question -> answer: str, number: int",
}


class Step(NamedTuple):
    entry: Hostile
    seconds: float
    """Of the longest step; if that is long, as on the machine above."""

    def __str__(self) -> str:
        return f"{1000 * self.seconds:7.1f} ms  {self.entry.kind}: {self.entry.name}"


def _unit() -> float:
    began = time.thread_time()
    total = 0
    for number in range(_ROUNDS):
        total += number * number % 7
    return time.thread_time() - began


_ROUNDS: Final = 125_000


def speed() -> float:
    """How much slower than the machine above this one is just now; 1 where it is faster, as some bounds are times."""
    return max(1.0, min(_unit() for _ in range(3)) / _UNIT_S)


class Clock:
    """The longest step since it was asked last."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._ours_s = 0.0

    @contextmanager
    def ours(self) -> Iterator[None]:
        """What only the measurement does does not count."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._ours_s += time.thread_time() - began

    @contextmanager
    def step(self) -> Iterator[None]:
        began, self._ours_s = time.thread_time(), 0.0
        try:
            yield
        finally:
            self.longest_s = max(self.longest_s, time.thread_time() - began - self._ours_s)

    @contextmanager
    def watching(self) -> Iterator[None]:
        run = asyncio.Handle._run

        def measured(handle: asyncio.Handle) -> None:
            with self.step():
                run(handle)

        asyncio.Handle._run = measured  # type: ignore[method-assign]
        try:
            yield
        finally:
            asyncio.Handle._run = run  # type: ignore[method-assign]


class _Pool(LoopbackPool):
    """With a worker whose sessions and programs are real."""

    async def start_worker(self, worker_id: str | None = None) -> Worker:
        worker = Worker("w0", 0, self.config, self.secret, self.store)
        self.workers["w0"], self._members["w0"] = worker, await worker.describe()
        deployments = [
            Deployment(name, 1, spec={"signature": text, "adapter": "xml" if name == "xml" else "chat"})
            for name, text in PROGRAMS.items()
        ]
        await worker.warm(LoadPrograms(), deployments)
        self.publish(programs=dict.fromkeys(PROGRAMS, 1))
        return worker


@asynccontextmanager
async def client_of_a_worker() -> AsyncIterator[Client]:
    async with _Pool(PoolConfig(name="steps", operation_timeout_s=120.0, checkout_timeout_s=60.0)) as pool:
        await pool.start_worker()
        yield await pool.start_client()


def commands_of(entry: Hostile, body: bytes) -> Iterator[AnyCommand]:
    """What an ingress process sends for the entry; decoding is part of it. Raises `PoolError` if it refuses it."""
    if len(body) > ServiceConfig().max_body_bytes:
        raise PayloadTooLarge("not read")
    if entry.kind == "overrides":
        chosen = decode(msgspec.json.Decoder(LMRequest), body)
        yield ConfigureLM(chosen.profile, chosen.overrides)
    elif entry.kind in ("signature", "spec", "state"):
        asked = decode(msgspec.json.Decoder(ProgramRequest), body)
        yield CreateProgram("hostile", spec=asked.spec, state=asked.state)
        yield ExecuteProgram("hostile", {"question": "What is it?"})
    else:
        inputs = decode(msgspec.json.Decoder(ExecuteRequest), body).inputs
        question = inputs.get("question")
        yield ExecuteProgram("typed", {"question": question})
        if isinstance(question, str):
            yield ExecuteProgram("xml", {"question": question})
            yield ExecuteProgram(
                "text", {"question": question, "context": "Paris has 2 towers. They are 3 m high."}
            )
            for asks in ("What is it?", "How many are there?", "Who is it?", "Where is it?", "When was it?"):
                yield ExecuteProgram("text", {"question": asks, "context": question})


async def longest_step(entry: Hostile, client: Client, clock: Clock) -> float:
    """Send the entry in all its ways; what fails of it is the caller's fault and nobody else's."""
    try:
        with clock.ours():
            body = request_of(entry)
    except Unsendable:
        return 0.0
    session = f"of {entry.kind} {entry.name}"[:200]
    await asyncio.sleep(0)
    clock.longest_s = 0.0
    with suppress(InvalidRequest, MalformedRequest, PayloadTooLarge):
        for command in commands_of(entry, body):
            try:
                # In a session that is not there nothing would run at all.
                await client.run(command, session=None if entry.kind in ("inputs", "body") else session)
            except UnknownSession:
                raise
            except CallerError:
                if not isinstance(command, ExecuteProgram):
                    break
    with suppress(UnknownSession):
        await client.run(EndSession(), session=session)
    return clock.longest_s


async def _measure(entries: Iterable[Hostile], report: Callable[[Step], Any]) -> list[Step]:
    steps = []
    clock = Clock()
    async with client_of_a_worker() as client:
        with clock.watching():
            for entry in entries:
                seconds = await longest_step(entry, client, clock)
                # A long one may have been the garbage collector's, or the first of its kind: it counts if it stays.
                for _ in range(5):
                    if seconds < LIMIT_S / 2:
                        break
                    with clock.ours():
                        gc.collect()
                        slowness = speed()
                    seconds = min(seconds, await longest_step(entry, client, clock) / slowness)
                steps.append(Step(entry, seconds))
                report(steps[-1])
    return steps


def measure(
    entries: Iterable[Hostile] = CORPUS, report: Callable[[Step], Any] = lambda step: None
) -> list[Step]:
    """The longest step for each entry, the best of six where it is long."""
    loop = asyncio.new_event_loop()  # not uvloop, whose steps nobody can measure
    gc.collect()
    # What is loaded stays: looking through it before each entry would be most of the work.
    gc.freeze()
    try:
        return loop.run_until_complete(_measure(entries, report))
    finally:
        gc.unfreeze()
        loop.close()


if __name__ == "__main__":
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [entry for entry in CORPUS if part in entry.name]
    steps = measure(chosen, lambda step: print(step, flush=True))
    print(f"{len(steps)} entries; the longest step:\n{max(steps, key=lambda step: step.seconds)}")
    if slow := [step for step in steps if step.seconds > LIMIT_S]:
        print(f"{len(slow)} of them longer than {LIMIT_S * 1000:g} ms:", *slow, sep="\n")
    sys.exit(bool(slow))
