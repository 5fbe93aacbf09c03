"""What workers of the tests run: a program that writes down each execution, and warm-up steps."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import dspy


def note(path: str | Path, *words: object) -> None:
    """Append one line; whole, whoever else appends at the same time."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(file)


class Noted(dspy.Module):
    """`begin` and `end` with its label and process, `seconds` apart; no `end` if it is cancelled or killed."""

    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        note(path, "begin", label, os.getpid())
        await asyncio.sleep(seconds)
        note(path, "end", label, os.getpid())
        return dspy.Prediction(label=label)


class Blocking(dspy.Module):
    """The same without an async form."""

    def forward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        note(path, "begin", label, os.getpid())
        time.sleep(seconds)
        note(path, "end", label, os.getpid())
        return dspy.Prediction(label=label)


class Stuck(dspy.Module):
    """Blocks the event loop of its worker, as a program with a blocking call in its async form does."""

    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        note(path, "begin", label, os.getpid())
        time.sleep(seconds)  # noqa: ASYNC251
        return dspy.Prediction(label=label)


class Failing(dspy.Module):
    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        raise ValueError("this version is wrong")


def slow() -> None:
    """A warm-up step in which a worker can be caught."""
    note(Path(os.environ["NOTED_DIR"]) / "warming", os.getpid())
    time.sleep(1.0)


def warmed() -> None:
    """A warm-up step that takes a moment: whoever did not wait for it is found out."""
    time.sleep(0.2)
    note(Path(os.environ["NOTED_DIR"]) / "warm", os.getpid(), time.time())


def refuses() -> None:
    raise RuntimeError("the model file is not there")
