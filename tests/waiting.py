"""Waiting for what a process beside the test does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
ENDS_S = 120
"""What a busy machine may take over anything that comes at once on an idle one."""


def wait_until(found: Callable[[], Found], limit_s: float = ENDS_S) -> Found:
    """What `found()` gives once it is true."""
    until = time.monotonic() + limit_s
    while not (there := found()):
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.02)
    return there
