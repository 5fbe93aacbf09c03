"""Latency, throughput, errors, and what a worker costs in memory and processor time, on real pools."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT, percentile
from benchmarks.load import Taken, closed_loop, open_loop, steady_state
from benchmarks.peer_systems.programs import SLOW_EVERY, SLOW_S
from dspool_serve.ingress.haproxy import free_ports

PROGRAM = "answer"
SPEC = {"signature": "question -> answer", "module": "Predict"}
INPUTS = {"question": "How many founders does it take to change a pool?"}


@contextlib.asynccontextmanager
async def pool_of(
    directory: Path, name: str, *, model_port: int | None = None, **settings: Any
) -> AsyncIterator[Any]:
    from dspool import Pool, PoolConfig

    if model_port is not None:
        endpoint = f"http://127.0.0.1:{model_port}/v1"
        settings |= {
            "lm_profiles": {"model": {"model": "openai/model", "endpoint": endpoint, "engine": "lm15"}},
            "default_lm": "model",
        }
    config = PoolConfig(
        name=name,
        state_dir=directory,
        **{
            "programs": {PROGRAM: {"spec": SPEC, "idempotent": True}},
            "max_queue": 100_000,
            "checkout_timeout_s": 60.0,
            "operation_timeout_s": 120.0,
            "init_timeout_s": 300.0,
            **settings,
        },
    )
    async with Pool.start(config) as pool:
        assert await pool.client.wait_ready(config.pool_size, 60.0)
        yield pool


@contextlib.contextmanager
def model_server(latency_s: float) -> Iterator[int]:
    """A model behind real HTTP, in a process of its own, at the port that is given."""
    port = free_ports(1)[0]
    command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", "dspool.testing.lm_server"]
    command += ["--port", str(port)]
    server = subprocess.Popen([*command, "--latency", str(latency_s)], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        server.terminate()
        server.wait()


def ask(pool: Any) -> Any:
    return lambda _: pool.execute(PROGRAM, **INPUTS)


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


def _cpu_s(pids: list[int]) -> list[float]:
    return [sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids]


async def cpu_percent(pool: Any, rounds: int, seconds: float, rate: float) -> list[float]:
    """Processor time of a worker while it is in use, per cent of one core: the mean of all, each round."""
    pids = [member.pid for member in pool.client.membership.workers]
    await open_loop(ask(pool), rate, min(3.0, seconds))
    found = []
    for turn in range(rounds):
        before = _cpu_s(pids)
        taken = await open_loop(ask(pool), rate, seconds, seed=turn)
        used = sum(_cpu_s(pids)) - sum(before)
        found.append(100 * used / len(pids) / taken.seconds)
        await asyncio.sleep(0.1)
    return found


async def memory_mb(pool: Any, rounds: int, operations: int) -> dict[str, list[float]]:
    """Mean RSS, PSS and USS of the workers after so many operations of each, and again after as many more."""
    pids = [member.pid for member in pool.client.membership.workers]
    found: dict[str, list[float]] = {"rss": [], "pss": [], "uss": []}
    for _ in range(rounds):
        left = iter(range(operations * len(pids)))

        async def caller(left: Iterator[int] = left) -> None:
            for _ in left:
                await pool.execute(PROGRAM, **INPUTS)

        await asyncio.gather(*(caller() for _ in range(32)))
        used = [psutil.Process(pid).memory_full_info() for pid in pids]
        for kind, values in found.items():
            values.append(sum(getattr(one, kind) for one in used) / len(used) / 2**20)
    return found


SOMETIMES = "benchmarks.peer_systems.programs"
SLOW_SETTINGS: dict[str, Any] = {
    "programs": {"sometimes": {"import_path": f"{SOMETIMES}:Sometimes", "idempotent": True}},
    "allowed_imports": (SOMETIMES,),
}


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
