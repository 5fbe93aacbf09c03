"""Pools as benchmarks use them: the cheapest program there is, and how it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.services import model_settings

PROGRAM = "answer"
SPEC = {"signature": "question -> answer", "module": "Predict"}
INPUTS = {"question": "How many founders does it take to change a pool?"}


def config_of(directory: Path, name: str, *, model_port: int | None = None, **settings: Any) -> Any:
    """A configuration with the program `answer`, on the engine in the worker or on the model at `model_port`."""
    from dspool import PoolConfig

    return PoolConfig(
        name=name,
        state_dir=directory,
        **{
            "programs": {PROGRAM: {"spec": SPEC, "idempotent": True}},
            "max_queue": 100_000,
            "checkout_timeout_s": 60.0,
            "operation_timeout_s": 120.0,
            "init_timeout_s": 300.0,
            **({} if model_port is None else model_settings(model_port)),
            **settings,
        },
    )


def classes(**names: str) -> dict[str, Any]:
    """Settings of a pool that has these classes of `benchmarks.modules` as programs, beside `answer`."""
    own = {
        program: {"import_path": f"benchmarks.modules:{name}", "idempotent": True}
        for program, name in names.items()
    }
    return {
        "programs": {PROGRAM: {"spec": SPEC, "idempotent": True}, **own},
        "allowed_imports": ("benchmarks.modules",),
    }


@contextlib.asynccontextmanager
async def pool_of(directory: Path, name: str, **settings: Any) -> AsyncIterator[Any]:
    """A pool of `config_of`, all of its workers ready."""
    from dspool import Pool

    config = config_of(directory, name, **settings)
    async with Pool.start(config) as pool:
        assert await pool.client.wait_ready(config.pool_size, 60.0)
        yield pool


def ask(pool: Any) -> Callable[[int], Awaitable[Any]]:
    return lambda _: pool.execute(PROGRAM, **INPUTS)


def pids_of(pool: Any) -> list[int]:
    return [member.pid for member in pool.client.membership.workers]


def cpu_s(pids: list[int]) -> float:
    """Processor time that these processes have taken so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


async def grow(pool: Any, size: int) -> float:
    """Seconds from the order to `size` warm workers."""
    started = time.perf_counter()
    await pool.resize(size)
    while len(pool.client.membership.workers) < size:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return time.perf_counter() - started
