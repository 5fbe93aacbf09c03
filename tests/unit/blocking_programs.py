"""Programs whose asynchronous form blocks the event loop that it runs on."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import dspy

PATIENCE_S = 30.0
began, may_end = threading.Event(), threading.Event()
began_waiting, waiting_may_end = threading.Event(), threading.Event()
loops: list[Any] = []


class Blocks(dspy.Module):
    """Waits on its thread where it is told to."""

    async def aforward(self, where: str) -> Any:
        if where == "here":
            hold()
        elif where == "in a task":
            await asyncio.create_task(_hold_later())
        elif where == "in a callback":
            asyncio.get_running_loop().call_soon(hold)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return dspy.Prediction(where=where)


async def _hold_later() -> None:
    await asyncio.sleep(0)
    hold()


def hold() -> None:
    began.set()
    may_end.wait(PATIENCE_S)


class Waits(dspy.Module):
    """Waits as it should, so that others can run meanwhile."""

    async def aforward(self) -> Any:
        loops.append(asyncio.get_running_loop())
        began_waiting.set()
        while not waiting_may_end.is_set():  # noqa: ASYNC110  (another thread sets it)
            await asyncio.sleep(0.001)
        return dspy.Prediction(answer="waited")


class Counted(dspy.Module):
    """Says how often each label was run."""

    runs: list[str] = []  # noqa: RUF012

    async def aforward(self, label: str) -> Any:
        Counted.runs.append(label)
        return dspy.Prediction(label=label)


class Streamed(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> Any:
        return await self.answer.acall(question=question)


class Mixed(dspy.Module):
    """Blocks if it is told to, and counts."""

    async def aforward(self, label: str, block: bool = False) -> Any:
        Counted.runs.append(label)
        if block:
            hold()
        return dspy.Prediction(label=label)


class CallsItsPool(dspy.Module):
    """Asks the pool that it runs in, through `ask`, and needs a slot of it for that."""

    ask: Any = None

    async def aforward(self, blocking: bool = False) -> Any:
        asked = CallsItsPool.ask()
        return asked.result(PATIENCE_S) if blocking else await asyncio.wrap_future(asked)
