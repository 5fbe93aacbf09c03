"""What workers of the tests run: a program that writes down each execution, and warm-up steps."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import dspy

KEPT: list[bytes] = []


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


class Holding(dspy.Module):
    """Blocks its event loop."""

    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        time.sleep(seconds)  # noqa: ASYNC251 - what it is for
        return dspy.Prediction(label=label)


def keep_interpreter(seconds: float) -> None:
    """What C code does that never lets the interpreter go: nothing else of the process runs meanwhile."""
    ctypes.PyDLL(None).sleep(int(seconds))


class Stuck(dspy.Module):
    """Stops its whole worker."""

    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        note(path, "begin", label, os.getpid())
        keep_interpreter(seconds)
        return dspy.Prediction(label=label)


class Blocked(dspy.Module):
    """Stops its whole worker whatever it is asked."""

    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        keep_interpreter(60)


class Slow(dspy.Module):
    """Does the same, but takes its time."""

    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        await asyncio.sleep(0.25)
        return dspy.Prediction(label=label)


class Deaf(dspy.Module):
    """Goes on whatever it is told."""

    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        note(path, "begin", label, os.getpid())
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return dspy.Prediction(label=label)


class Growing(Noted):
    """Does the same and never gives back 120 MB."""

    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        KEPT.append(b"x" * (120 * 2**20))
        return await super().aforward(label, path, seconds)


class Failing(dspy.Module):
    async def aforward(self, label: str, path: str, seconds: float = 0.0) -> Any:
        raise ValueError("this version is wrong")


class Stopping(dspy.Module):
    """Tries to stop what it runs in, at one place or another."""

    async def aforward(self, where: str, what: str) -> Any:
        loop = asyncio.get_running_loop()
        if where == "coroutine":
            _stop(what)
        elif where == "task":
            await asyncio.create_task(_stop_later(what))
        elif where == "thread":
            await asyncio.to_thread(_stop, what)
        elif where == "callback":
            loop.call_soon(_stop, what)
        elif where == "forgotten task":
            await asyncio.wait([asyncio.create_task(_stop_later(what))])
        elif where == "loop":
            loop.stop()
        elif where == "signal":
            signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.01)
        return dspy.Prediction(answer="survived")


def _stop(what: str) -> None:
    if what == "os._exit":
        os._exit(3)
    raise {
        "KeyboardInterrupt": KeyboardInterrupt,
        "SystemExit": SystemExit,
        "CancelledError": asyncio.CancelledError,
    }[what]("secret")


async def _stop_later(what: str) -> None:
    await asyncio.sleep(0)
    _stop(what)


def exits() -> None:
    raise SystemExit("there is no licence")


def slow() -> None:
    """A warm-up step in which a worker can be caught."""
    note(Path(os.environ["NOTED_DIR"]) / "warming", os.getpid())
    time.sleep(1.0)


def warmed() -> None:
    """A warm-up step that takes a moment: whoever did not wait for it is found out."""
    time.sleep(0.2)
    note(Path(os.environ["NOTED_DIR"]) / "warm", os.getpid(), time.time())


def hungry() -> None:
    """Takes more memory than the process may have."""
    resource.setrlimit(resource.RLIMIT_DATA, (2**30, resource.RLIM_INFINITY))
    bytearray(2**31)


def killed() -> None:
    """What the kernel does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def hangs() -> None:
    time.sleep(600)


def faulty() -> None:
    """Does what the file `fault` names, if there is one."""
    mark = Path(os.environ["NOTED_DIR"]) / "fault"
    if mark.exists():
        {"hungry": hungry, "hangs": hangs, "killed": killed, "exits": exits}[mark.read_text()]()


def one_of_three() -> None:
    """The first worker is warm at once; until there is a file `go`, the second takes its time and others fail.

    They fail once there is a file `started`: before any worker is warm it would be the start that fails.
    """
    mine = Path(os.environ["NOTED_DIR"])
    for place in ("first", "second"):
        try:
            (mine / place).touch(exist_ok=False)
        except FileExistsError:
            continue
        while place == "second" and not (mine / "go").exists():
            time.sleep(0.05)
        return
    while not (mine / "started").exists():
        time.sleep(0.05)
    if not (mine / "go").exists():
        raise RuntimeError("there is room for two")


class Unloadable(dspy.Module):
    """A program whose making fails."""

    def __init__(self) -> None:
        raise RuntimeError("the weights are not there")


def refuses() -> None:
    raise RuntimeError("the model file is not there")
