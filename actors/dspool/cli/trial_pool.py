"""One worker of a configured pool, warmed as it will be, beside whatever runs."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dspool.causes import met
from dspool.cli.contained import contained
from dspool.config import PoolConfig, Probe
from dspool.errors import from_wire

if TYPE_CHECKING:
    from dspool.local.pool import LocalPool

_NAMED_WITHIN_S: Final = 20.0
"""After its deadline a step is named as what hangs; the trial must not be over before."""
_ENDED_WITHIN_S: Final = 30.0


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
    """Raises: ConfigError, WorkerStartFailed: a worker with the programs of `config` does not become ready.

    Nothing is left of what programs print, read and start: see `contained`.
    """
    trial = config.override(
        init_timeout_s=max(config.init_timeout_s, config.warmup.worker_deadline_s + _NAMED_WITHIN_S),
        enable_metrics=False,
        telemetry={"log_level": "error"},
    )
    limit_s = trial.init_timeout_s + _ENDED_WITHIN_S
    directory = tempfile.mkdtemp(prefix="dspool-trial-")
    # Without the current directory, which workers do not look into either.
    command = [sys.executable, "-P", "-m", "dspool.cli.trial_process", directory]
    why, line = f"a trial of it did not end within {limit_s:g} s", b""
    with contained(command, removes=Path(directory)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps(trial))
            process.stdin.flush()
        if wait([process.stdout.fileno()], limit_s):
            why, line = "the process of a trial of it ended", process.stdout.readline()
    if not line:
        raise met("not_loadable", pool=config.name, why=why).error()
    if failed := json.loads(line):
        raise from_wire(failed)


__all__ = ["trial_pool", "try_start"]
