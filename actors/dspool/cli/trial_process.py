"""Starts one worker of the pool that it is told, in a process of its own, and says what came of it: `python -P -m` of
this module.

It reads a pickled configuration from stdin and writes one line of JSON to what was its stdout: the error, or `{}`. It
ends, with its process group and its files, when its stdin does: also when whoever asked was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from typing import Any

from dspool.cli.trial_pool import trial_pool
from dspool.config import PoolConfig
from dspool.errors import PoolError, WorkerStartFailed


def main() -> None:
    config: PoolConfig = pickle.load(sys.stdin.buffer)
    # What the programs print goes to stderr, and what they read is empty.
    asker, answers = os.dup(0), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    # For the files of this process alone; workers and what they start have the directory that they always have.
    tempfile.tempdir = tempfile.mkdtemp(prefix="dspool-trial-")
    watch = threading.Thread(target=_end_with, args=(asker, tempfile.tempdir))
    watch.start()
    print(json.dumps(asyncio.run(_start(config)), default=str), file=answers, flush=True)
    # Open as long as this process lives: whoever asked waits for its end.
    watch.join()


async def _start(config: PoolConfig) -> dict[str, Any]:
    try:
        async with trial_pool(config, probes=False):
            return {}
    except PoolError as failed:
        return failed.to_wire()
    except Exception as failed:  # its text may hold a secret
        return WorkerStartFailed(f"trying a worker failed: {type(failed).__name__}").to_wire()


def _end_with(asker: int, directory: str) -> None:
    os.read(asker, 1)
    for _ in range(3):  # the pool may just write to it
        shutil.rmtree(directory, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
