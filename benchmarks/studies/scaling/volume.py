"""More sessions, larger payloads, a longer queue."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path

import psutil

from benchmarks.common import percentile
from benchmarks.load import batch, closed_loop
from benchmarks.pools import INPUTS, PROGRAM, ask, classes, pids_of, pool_of
from benchmarks.studies.scaling.curves import Busy, Curve

CALLERS = 32
IDEAL_CALLERS = 128
SHORTEST = 2000
"""Operations: a shorter queue is filled and drained several times, one after the other."""


async def sessions(directory: Path, quick: bool) -> list[Curve]:
    """Sessions with a program each: operations in turn over all of them, and what each adds to a worker."""
    numbers = (1, 100) if quick else (1, 10, 100, 1000, 10_000)
    seconds = 0.5 if quick else 3.0
    speed = Curve(
        "sessions",
        f"Sessions in use in turn, {CALLERS} callers",
        "sessions",
        "operations/s",
        "One session runs its operations one at a time, so few sessions are the slow end.",
    )
    memory = Curve("sessions_memory", "Memory of both workers", "sessions", "MB PSS")
    creation = Curve("sessions_created", "Sessions created", "sessions", "sessions/s")
    async with pool_of(
        directory, "c-sessions", pool_size=2, slots_per_worker=64, max_sessions_per_worker=10_000
    ) as pool:
        pids = pids_of(pool)
        made = 0
        for number in numbers:
            began = time.perf_counter()

            def create(index: int, made=made):
                return pool.session(f"s{made + index}").create_program("p", "question -> answer")

            await batch(create, number - made, CALLERS)
            creation.add(number, (number - made) / (time.perf_counter() - began))
            made = number
            handles = [pool.session(f"s{one}") for one in range(number)]
            busy = Busy()

            def call(index: int, handles=handles):
                return handles[index % len(handles)].execute("p", **INPUTS)

            taken = await closed_loop(call, CALLERS, seconds)
            speed.add(
                number,
                taken.ops_per_s,
                cpu_percent=busy.percent(),
                p99_ms=1e3 * percentile(list(taken.latencies.values()), 0.99),
            )
            memory.add(number, sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / 2**20)
    return [speed, creation, memory]


async def payloads(directory: Path, quick: bool) -> list[Curve]:
    """Text that goes to a worker and back."""
    sizes = (100, 100_000) if quick else (100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)
    seconds = 0.5 if quick else 3.0
    rates = Curve("payloads", "Payload there and back, 8 callers", "bytes", "operations/s")
    moved = Curve(
        "payloads_mb",
        "Payload there and back, 8 callers",
        "bytes",
        "MB/s, one way",
        "Small ones cost what an operation costs; large ones are copied, encoded and checked, which goes by the byte.",
    )
    async with pool_of(
        directory, "c-payload", pool_size=2, slots_per_worker=64, **classes(echo="Echo")
    ) as pool:
        for number in sizes:
            text = "x" * number

            def call(_: int, text: str = text):
                return pool.execute("echo", text=text)

            await closed_loop(call, 8, 0.2)
            busy = Busy()
            taken = await closed_loop(call, 8, seconds)
            percent = busy.percent()
            latencies = list(taken.latencies.values())
            if taken.failed or not latencies:
                raise RuntimeError(f"{taken.failed} operations of {number:,} bytes failed")
            rates.add(number, taken.ops_per_s, cpu_percent=percent, p50_ms=1e3 * percentile(latencies, 0.5))
            moved.add(number, taken.ops_per_s * number / 1e6, cpu_percent=percent)
    return [rates, moved]


async def queue(directory: Path, quick: bool) -> list[Curve]:
    """So many operations submitted at once: do they drain as fast as a short queue?"""
    lengths = (100, 2000) if quick else (100, 1000, 10_000, 100_000)
    curve = Curve(
        "queue",
        "Operations queued at once, drained by 2 workers",
        "queued",
        "operations/s",
        f"The ideal is what {IDEAL_CALLERS} callers reach without a queue of their own.",
    )
    memory = Curve("queue_memory", "What the client has grown by while they wait", "queued", "MB RSS")
    me = psutil.Process()
    async with pool_of(
        directory,
        "c-queue",
        pool_size=2,
        slots_per_worker=64,
        checkout_timeout_s=600.0,
        operation_timeout_s=600.0,
    ) as pool:
        await closed_loop(ask(pool), IDEAL_CALLERS, 1.0)
        gc.collect()
        before = me.memory_info().rss
        ideal = (await closed_loop(ask(pool), IDEAL_CALLERS, 0.5 if quick else 3.0)).ops_per_s
        for number in lengths:
            gc.collect()
            times = max(1, SHORTEST // number)
            submitted = grown = 0.0
            busy, began = Busy(), time.perf_counter()
            for _ in range(times):
                submitting = time.perf_counter()
                tasks = [asyncio.ensure_future(pool.execute(PROGRAM, **INPUTS)) for _ in range(number)]
                await asyncio.sleep(0)
                submitted += time.perf_counter() - submitting
                grown = max(grown, me.memory_info().rss - before)
                await asyncio.gather(*tasks)
                del tasks
            done = number * times
            rate, percent = done / (time.perf_counter() - began), busy.percent()
            # So many callers are never all at work when fewer operations are there.
            asked = ideal if number > IDEAL_CALLERS else None
            curve.add(number, rate, asked, cpu_percent=percent, submit_us_each=1e6 * submitted / done)
            memory.add(number, grown / 2**20)
    return [curve, memory]
