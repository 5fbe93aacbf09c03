"""What tests of a worker's operations share: its settings, and programs that wait until they are told."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from dspool.config import PoolConfig
from dspool.errors import Cancelled
from dspool.testing.host import Script

SLOTS = 3


def config(**more: Any) -> PoolConfig:
    return PoolConfig(name="t", **{"slots_per_worker": SLOTS, "stream_window": 4, **more})


async def until(condition, turns: int = 20_000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


class Gate:
    """A program that waits until told, in a task or in a thread."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.open = threading.Event()
        self.started = 0
        self.stopped = 0

    async def _async(self) -> dict[str, Any]:
        try:
            while not self.open.is_set():  # noqa: ASYNC110  (a thread may open it)
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return {"answer": "done"}

    def do(self, inputs, session, emit):
        self.started += 1
        if self.way == "async":
            return self._async()
        stop = inputs["stop"]
        while not self.open.wait(0.001):
            if stop.is_set():
                self.stopped += 1
                raise Cancelled("stopped")
        return {"answer": "done"}

    @property
    def script(self) -> Script:
        return Script(self.way, self.do)  # type: ignore[arg-type]


def echo(inputs, session, emit):
    return dict(inputs)
