"""Starts one worker of the pool that it is told, in a process of its own, and says what came of it: `python -P -m` of
this module with a directory for the files of this process.

It reads a pickled configuration from stdin and writes one line of JSON to what was its stdout: the error, or `{}`.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import tempfile
from typing import Any

from dspool.cli.trial_pool import trial_pool
from dspool.config import PoolConfig
from dspool.errors import PoolError, WorkerStartFailed


def main(directory: str) -> None:
    config: PoolConfig = pickle.load(sys.stdin.buffer)
    # What the programs print goes to stderr, and what they read is empty.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    # For the files of this process alone; workers and what they start have the directory that they always have.
    tempfile.tempdir = directory
    print(json.dumps(asyncio.run(_start(config)), default=str), file=answers, flush=True)


async def _start(config: PoolConfig) -> dict[str, Any]:
    try:
        async with trial_pool(config, probes=False):
            return {}
    except PoolError as failed:
        return failed.to_wire()
    except Exception as failed:  # its text may hold a secret
        return WorkerStartFailed(f"trying a worker failed: {type(failed).__name__}").to_wire()


if __name__ == "__main__":
    main(sys.argv[1])
