"""One worker of a configured pool, warmed as it will be, beside whatever runs."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dspool.config import PoolConfig, Probe

if TYPE_CHECKING:
    from dspool.local.pool import LocalPool


@asynccontextmanager
async def trial_pool(config: PoolConfig, *, probes: bool = True) -> AsyncIterator[LocalPool]:
    """A pool of one worker, without Ray, with files and a store of its own that are gone afterwards: no session is
    touched. Without `probes`, warm-up runs no program, and so asks no model.

    Raises: ConfigError, WorkerStartFailed: as `LocalPool.start`.
    """
    # DSPy takes a second to import.
    from dspool.local.pool import LocalPool
    from dspool.local.processes import ProcessRuntime

    steps = tuple(step for step in config.warmup.steps if probes or not isinstance(step, Probe))
    with tempfile.TemporaryDirectory(prefix="dspool-trial-") as directory:
        trial = config.override(
            pool_size=1,
            min_pool_size=1,
            spares=0,
            max_overflow=0,
            lazy=False,
            enable_optimizer=False,
            store_url=None,
            state_dir=Path(directory),
            warmup={"min_ready": 1, "steps": steps},
        )
        async with LocalPool.start(trial, ProcessRuntime) as pool:
            yield pool


def try_start(config: PoolConfig) -> None:
    """Raises: ConfigError, WorkerStartFailed: a worker with the programs of `config` does not become ready."""

    quiet = config.override(enable_metrics=False, telemetry={"log_level": "error"})

    async def start() -> None:
        async with trial_pool(quiet, probes=False):
            pass

    # What the supervisor logs of it is what is raised.
    logging.getLogger("dspool").addHandler(logging.NullHandler())
    asyncio.run(start())


__all__ = ["trial_pool", "try_start"]
