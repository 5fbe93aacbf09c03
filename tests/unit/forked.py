"""What tests of forked workers share: a worker as Ray asks for it, and waiting for a process."""

from __future__ import annotations

import os
import time

WORKER = ["/ray/default_worker.py", "--temp-dir=/t", "--session-name=s", "--node-id", "n"]
RAY = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "1"}


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def eventually(true, timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)
