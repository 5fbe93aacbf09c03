"""Load from one process: closed loops, in which callers wait for answers, and open ones, which keep to a schedule.

Latencies of an open loop count from the moment an operation was to be sent, not from when a busy sender got round to
it (coordinated omission: a system that stalls must not be measured less often while it does).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_REFUSED_S = 0.001
"""A refusal costs nothing: without a pause a refused caller would ask millions of times."""

Call = Callable[[int], Awaitable[Any]]
"""Called with the running number of the operation."""


@dataclass
class Taken:
    """What one stretch of load gave. `latencies` are seconds, by number of the operation."""

    seconds: float = 0.0
    latencies: dict[int, float] = field(default_factory=dict)
    failed: int = 0

    @property
    def ops_per_s(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0


async def closed_loop(call: Call, concurrency: int, seconds: float) -> Taken:
    """`concurrency` callers that ask again at once, for `seconds`."""
    taken = Taken()
    began = time.perf_counter()
    await _callers(call, concurrency, began + seconds, taken, lambda ended: True)
    taken.seconds = time.perf_counter() - began
    return taken


async def steady_state(call: Call, concurrency: int, seconds: float, *, ramp_s: float) -> Taken:
    """A closed loop, of which only what ends within `seconds` after `ramp_s` counts: with operations that take long,
    the ramp and the end, when callers stop one after the other, would be a good part of the whole."""
    taken = Taken(seconds)
    since = time.perf_counter() + ramp_s
    until = since + seconds
    await _callers(call, concurrency, until, taken, lambda ended: since <= ended < until)
    return taken


async def _callers(
    call: Call, concurrency: int, until: float, taken: Taken, counts: Callable[[float], bool]
) -> None:
    """Ask until the clock says `until`; `counts` tells by the time of its end whether an operation is taken."""
    numbers = iter(range(10**12))

    async def caller() -> None:
        while (asked := time.perf_counter()) < until:
            number = next(numbers)
            try:
                await call(number)
            except Exception:
                taken.failed += 1
                await asyncio.sleep(_REFUSED_S)
            else:
                ended = time.perf_counter()
                if counts(ended):
                    taken.latencies[number] = ended - asked

    await asyncio.gather(*(caller() for _ in range(concurrency)))


async def batch(call: Call, operations: int, concurrency: int) -> None:
    """So many operations by so many callers, however long it takes. Any failure is raised."""
    numbers = iter(range(operations))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(caller() for _ in range(concurrency)))


async def open_loop(call: Call, rate: float, seconds: float, *, most: int = 4096, seed: int = 1) -> Taken:
    """Poisson arrivals at `rate` a second for `seconds`, then until all have ended. What would be more than `most`
    under way at once counts as failed: it has nowhere to wait any more."""
    taken = Taken()
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    for number, at in enumerate(schedule(rate, seconds, seed)):
        due = began + at
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        elif number % 64 == 0:
            await asyncio.sleep(0)  # behind schedule: answers must get in all the same
        if len(tasks) >= most:
            taken.failed += 1
            continue
        task = asyncio.create_task(_one(call, number, due, taken))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    taken.seconds = time.perf_counter() - began
    return taken


def schedule(rate: float, seconds: float, seed: int = 1) -> Iterator[float]:
    """Times of Poisson arrivals, from 0; the same for each system."""
    chance = random.Random(seed)
    at = 0.0
    while (at := at - math.log(1.0 - chance.random()) / rate) < seconds:
        yield at


async def _one(call: Call, number: int, since: float, taken: Taken) -> None:
    try:
        await call(number)
    except Exception:
        taken.failed += 1
    else:
        taken.latencies[number] = time.perf_counter() - since
