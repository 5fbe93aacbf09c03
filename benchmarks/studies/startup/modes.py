"""Pools of forked and of executed workers side by side, grown and shrunk in turn: a part of `startup`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load import batch
from benchmarks.pools import pids_of, pool_of
from benchmarks.studies.startup.leftovers import session_dir

QUESTION = {"context": "Paris is the capital of France.", "question": "What is the capital of France?"}
MODES = ("fork", "exec")
Pools = dict[str, Any]
"""A pool of each mode."""


@contextlib.asynccontextmanager
async def pool_started_by(mode: str, size: int, most: int, **more: Any) -> AsyncIterator[Any]:
    from dspool import PoolConfig

    settings = {
        "programs": PoolConfig.default().programs,
        "worker_start": mode,
        "pool_size": size,
        "min_pool_size": 1,
        "max_pool_size": most,
        "init_timeout_s": 600.0,
        # The machine may be busy with other things, too.
        "health_check_interval_s": 30.0,
        "health_check_timeout_s": 30.0,
        **more,
        "warmup": {"worker_deadline_s": 300.0, "min_ready": size, **more.get("warmup", {})},
    }
    with tempfile.TemporaryDirectory(prefix="dsp-b-") as state:
        async with pool_of(Path(state), f"{mode}{time.monotonic_ns() % 1_000_000}", **settings) as pool:
            yield pool


@contextlib.asynccontextmanager
async def both(
    size: int, most: int, *, order: tuple[str, ...] = MODES, **more: Any
) -> AsyncIterator[tuple[Pools, dict[str, float]]]:
    """A pool of each mode, and the seconds it took from nothing; the forked ones have a parent of their own."""
    end_parents()
    async with contextlib.AsyncExitStack() as stack:
        pools, took = {}, {}
        for mode in order:
            started = time.perf_counter()
            pools[mode] = await stack.enter_async_context(pool_started_by(mode, size, most, **more))
            took[mode] = round(time.perf_counter() - started, 2)
        yield pools, took


def end_parents() -> None:
    """Have the next worker start another parent: what is random in one, its children share."""
    from dspool.runtime import forkserver

    for found in forkserver.report(session_dir()):
        if found.pid is not None:
            os.kill(found.pid, signal.SIGKILL)


async def shrink(pool: Any, size: int) -> None:
    """Returns when the others' processes are gone, too: their end must not cost the next start its processor."""
    before = pids_of(pool)
    await pool.resize(size)
    while len(pool.client.membership.workers) > size:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    leaving = set(before) - set(pids_of(pool))
    while any(map(psutil.pid_exists, leaving)):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def ask(pool: Any, count: int, concurrency: int = 32) -> None:
    await batch(lambda _: pool.execute("qa", timeout_s=60, **QUESTION), count, concurrency)


def turns(rounds: int, names: tuple[str, ...] = MODES) -> list[tuple[str, ...]]:
    """Who comes first changes from turn to turn, and so does who comes after whom."""
    orders = [names, names[::-1]] if len(names) == 2 else list(itertools.permutations(names))
    return [orders[number % len(orders)] for number in range(rounds)]
