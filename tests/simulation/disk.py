"""SQLite on a simulated disk: it runs for real and at once, and answers when the disk would have.

The disk can be slow, full, or broken, fail a commit that it has made all the same, and lose power: then it has what
was synced (`power`). A process that dies leaves its transactions uncommitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiosqlite.core

from tests.simulation.loop import Process, SimulatedLoop, current
from tests.simulation.power import files

_BUSY_S = 5.0
_RETRY_S = 0.05
_SYNC_S = (0.2e-3, 2e-3)
_STEP_S = (20e-6, 60e-6)
_IN_MEMORY = frozenset({"cursor", "close", "rollback", "close_and_stop"})
"""What no broken disk keeps from being done, or a statement and its locks would stay open."""


class Disk:
    """The state of the disk under the store of one simulation."""

    def __init__(self) -> None:
        self.full = False
        self.broken = False
        self.unclear = False
        """A commit is made, and its answer is an error: the cable broke between the two."""
        self.slow_s = 0.0

    def repair(self) -> None:
        self.full = self.broken = self.unclear = False
        self.slow_s = 0.0

    def lose_power(self, kill: Callable[[], None], dice: random.Random) -> None:
        """`kill` ends all that has files open; afterwards they hold what was synced, and parts of the rest."""
        held = files.after_loss(dice)
        kill()
        assert files.watched is not None
        for path in Path(files.watched).iterdir():
            path.unlink()
        for name, data in held.items():
            Path(name).write_bytes(data)


class _Disks:
    current = Disk()


def mount(disk: Disk) -> None:
    _Disks.current = disk


class _Requests:
    """In the place of the queue to aiosqlite's thread: there is no thread."""

    def __init__(self) -> None:
        self._process = current()
        self._connection: sqlite3.Connection | None = None
        self._process.on_kill.append(self._killed)

    def put_nowait(self, request: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        self._run(*request, waited_s=0.0)

    def _run(
        self, future: asyncio.Future[Any] | None, function: Callable[[], Any], *, waited_s: float
    ) -> None:
        process, disk = self._process, _Disks.current
        loop: SimulatedLoop = process.loop
        called = getattr(function, "func", None)
        name = getattr(called, "__name__", "")
        commits = name == "commit"
        delay_s = loop.world.dice.uniform(*(_SYNC_S if commits else _STEP_S)) + disk.slow_s
        try:
            if disk.broken and self._connection is not None and name not in _IN_MEMORY:
                if isinstance(cursor := getattr(called, "__self__", None), sqlite3.Cursor):
                    cursor.close()  # as SQLite ends a statement that fails
                raise sqlite3.OperationalError("disk I/O error")
            if disk.full and commits:
                raise sqlite3.OperationalError("database or disk is full")
            result = function()
            if disk.unclear and commits:
                raise sqlite3.OperationalError("disk I/O error")
            if isinstance(result, sqlite3.Connection):
                self._connection = result
                # A lock is waited for in simulated time, as below, and not by SQLite itself in real time.
                result.execute("PRAGMA busy_timeout=0")
        except sqlite3.OperationalError as refused:
            if "locked" in str(refused) and waited_s < _BUSY_S:
                process.soon(
                    lambda: self._run(future, function, waited_s=waited_s + _RETRY_S), after_s=_RETRY_S
                )
                return
            _answer_later(process, future, refused, delay_s)
        except BaseException as raised:
            _answer_later(process, future, raised, delay_s)
        else:
            _answer_later(process, future, result, delay_s)

    def _killed(self) -> None:
        if self._connection is not None:
            # While a statement is open, SQLite only closes later, with its locks; a process that ends takes them along.
            with contextlib.suppress(sqlite3.ProgrammingError):  # it was closed before
                self._connection.rollback()
            self._connection.close()


def _answer_later(process: Process, future: asyncio.Future[Any] | None, answer: Any, delay_s: float) -> None:
    if future is None:
        return

    def answer_now() -> None:
        if future.done():
            return
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    process.soon(answer_now, after_s=delay_s)


class _NoThread:
    def __init__(self, target: Any = None, args: Any = ()) -> None:
        self.daemon = True

    def start(self) -> None:
        pass


def install() -> None:
    """Let every database that the engine opens be on the simulated disk."""
    files.install()
    aiosqlite.core.SimpleQueue = _Requests  # type: ignore[misc, assignment]
    aiosqlite.core.Thread = _NoThread  # type: ignore[misc, assignment]
    aiosqlite.core.Connection.__del__ = lambda self: None  # type: ignore[method-assign]
