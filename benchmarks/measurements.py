"""How `benchmarks.targets` measures: latency, throughput, errors, and what a worker costs in memory and CPU time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil

from benchmarks.common import percentile
from benchmarks.load import Taken, batch, closed_loop, open_loop, steady_state
from benchmarks.modules import SLOW_S
from benchmarks.pools import INPUTS, ask, cpu_s, pids_of

SLOW_EVERY = 100


async def throughput(pool: Any, rounds: int, seconds: float) -> list[float]:
    """Operations a second of each round, 128 callers; the first stretch is warm-up."""
    await closed_loop(ask(pool), 128, min(2.0, seconds))
    return [(await closed_loop(ask(pool), 128, seconds)).ops_per_s for _ in range(rounds)]


async def latency(pool: Any, rounds: int, seconds: float, rate: float) -> list[Taken]:
    """Open loop: latencies count from when an operation was due."""
    return [await open_loop(ask(pool), rate, seconds, seed=turn) for turn in range(rounds)]


def in_ms(taken: Taken, share: float) -> float:
    return percentile(list(taken.latencies.values()), share) * 1e3


def errors(pool: Any) -> tuple[int, int]:
    """(operations that failed, all that count): those of callers themselves are in neither."""
    totals = Counter(pool.client.totals)
    failed = totals["error"] + totals["timeout"] + totals["rejected"]
    return failed, failed + totals["ok"]


async def cpu_percent(pool: Any, rounds: int, seconds: float, rate: float) -> list[float]:
    """Processor time of a worker while it is in use, per cent of one core: the mean of all, each round."""
    pids = pids_of(pool)
    await open_loop(ask(pool), rate, min(3.0, seconds))
    found = []
    for turn in range(rounds):
        before = cpu_s(pids)
        taken = await open_loop(ask(pool), rate, seconds, seed=turn)
        found.append(100 * (cpu_s(pids) - before) / len(pids) / taken.seconds)
        await asyncio.sleep(0.1)
    return found


async def memory_mb(pool: Any, rounds: int, operations: int) -> dict[str, list[float]]:
    """Mean RSS, PSS and USS of the workers after so many operations of each, and again after as many more."""
    pids = pids_of(pool)
    found: dict[str, list[float]] = {"rss": [], "pss": [], "uss": []}
    for _ in range(rounds):
        await batch(ask(pool), operations * len(pids), 32)
        used = [psutil.Process(pid).memory_full_info() for pid in pids]
        for kind, values in found.items():
            values.append(sum(getattr(one, kind) for one in used) / len(used) / 2**20)
    return found


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Garbage collection looks at nothing that is there now: a full one stops this process for a tenth of a second,
    and all operations under way with it, which is more than one in a hundred of a stretch."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def fast_beside_slow(
    pool: Any, rounds: int, seconds: float, *, callers: int | None = None, rate: float | None = None
) -> tuple[list[float], int]:
    """p99 of operations when one in a hundred beside them takes half a second, over that without such, each round;
    and how many operations that is of. Each round has the one right after the other, each time another one first."""

    async def stretch(slow: bool, seed: int) -> dict[int, float]:
        def call(number: int) -> Any:
            return pool.execute("sometimes", **INPUTS, slow=slow and number % SLOW_EVERY == SLOW_EVERY - 1)

        if rate is not None:
            taken = await open_loop(call, rate, seconds, seed=seed)
        else:
            assert callers is not None
            # The first operations of all callers come at once, and more than one in a hundred are such.
            taken = await steady_state(call, callers, seconds, ramp_s=SLOW_S)
        return {
            number: took for number, took in taken.latencies.items() if number % SLOW_EVERY != SLOW_EVERY - 1
        }

    await stretch(False, 0)
    ratios, count = [], 0
    for turn in range(rounds):
        found = {slow: await stretch(slow, turn) for slow in ((False, True) if turn % 2 else (True, False))}
        without, beside = list(found[False].values()), list(found[True].values())
        ratios.append(percentile(beside, 0.99) / percentile(without, 0.99))
        count += len(without) + len(beside)
    return ratios, count


async def of_ideal(pool: Any, slots: int, model_s: float, rounds: int, seconds: float) -> list[float]:
    """Per cent of `slots / model_s` that as many callers reach."""
    await closed_loop(ask(pool), slots, 2 * model_s)
    found = []
    for _ in range(rounds):
        taken = await steady_state(ask(pool), slots, seconds, ramp_s=2 * model_s)
        found.append(100 * taken.ops_per_s * model_s / slots)
    return found


async def utilization(pool: Any, rate: float, seconds: float) -> list[float]:
    """In windows of 10 s, of a pool that chooses its size, under `rate` Poisson arrivals a second; from the busy time
    that the workers themselves report."""
    began = time.time()
    await open_loop(ask(pool), rate, seconds)
    await asyncio.sleep(1.5)  # what the workers report last
    history = await pool.metrics_history(seconds + 10)
    settle_s = min(60.0, seconds / 3)
    points = [point for point in history.points if began + settle_s <= point.at <= began + seconds]
    windows: dict[int, list[float]] = {}
    for point in points:
        windows.setdefault(int((point.at - began) / 10), []).append(point.utilization)
    return [sum(window) / len(window) for window in windows.values() if len(window) >= 5]
