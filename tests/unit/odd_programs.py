"""Programs that go beyond what is theirs."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import dspy


class Blocking(dspy.Module):
    """Runs in a thread until `may_end` is set."""

    running, may_end = threading.Event(), threading.Event()

    def forward(self) -> Any:
        self.running.set()
        self.may_end.wait(60)
        return {"answer": "unharmed"}


class CancelsAll(dspy.Module):
    async def aforward(self) -> Any:
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        return {"answer": "done"}


class NamedByNumber(dspy.Module):
    def forward(self) -> Any:
        return {2: "x"}


class NamedByPair(dspy.Module):
    async def aforward(self) -> Any:
        return {("a", 1): "x"}


class NamedByNothing(dspy.Module):
    async def aforward(self) -> Any:
        return {None: "x"}


class Echo(dspy.Module):
    def forward(self, text: Any) -> Any:
        return {"answer": text}


class Later(dspy.Module):
    async def aforward(self) -> Any:
        return {"answer": "later"}


class Now(dspy.Module):
    def forward(self) -> Any:
        return {"answer": "now"}
