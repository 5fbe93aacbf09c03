"""Notices event loops that a program's code blocks, says where, and has what waits there go elsewhere."""

from __future__ import annotations

import asyncio
import logging
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from dspool.telemetry.events import emit
from dspool.worker.execution import Execution

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.05
_LIBRARIES = tuple(
    {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {"<frozen"}
)
_MOST_FRAMES = 24


class Watched(NamedTuple):
    """An event loop, its thread if that is known, the program that it serves ("": any), and what runs on it."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread | None
    program: str
    under_way: Callable[[], list[Execution]]
    blocked: Callable[[bool], None] = lambda blocked: None
    """Called when a block is noticed and when it is over, from the thread that watches."""


class _Ping:
    """Asks a loop for a sign of life; `answered_at` and `thread` are set when it turns."""

    __slots__ = ("answered_at", "at", "block", "clock", "thread")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, thread: int | None, clock: Callable[[], float]
    ) -> None:
        self.clock = clock
        self.thread = thread
        """As of the answer before."""
        self.at = clock()
        self.answered_at: float | None = None
        self.block: dict[str, Any] | None = None
        loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self.thread = threading.get_ident()
        self.answered_at = self.clock()


class LoopWatch:
    """One thread for all loops of a worker. It costs a wake-up a loop every 50 ms while operations run, else none.

    `labels` are the pool, worker and slot of its events; `is_user_code` says whether a module is the user's.
    """

    def __init__(
        self,
        after_s: float,
        labels: dict[str, Any],
        *,
        is_user_code: Callable[[str], bool] = lambda module: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._after_s, self._labels, self._is_user_code = after_s, labels, is_user_code
        self._clock = clock
        self._watched: dict[Watched, _Ping | None] = {}
        self._changed = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="loop watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._changed.set()

    def add(self, watched: Watched) -> None:
        self._watched = {**self._watched, watched: None}

    def remove(self, watched: Watched) -> None:
        self._watched = {other: ping for other, ping in self._watched.items() if other != watched}

    def _run(self) -> None:
        while not self._changed.wait(LOOK_EVERY_S) and not self._over:
            self.look()

    def look(self) -> None:
        """Ask each loop on which something runs, and judge those that have not answered."""
        for watched, ping in list(self._watched.items()):
            try:
                self._watched[watched] = self._look_at(watched, ping)
            except Exception:
                if watched.loop.is_closed():
                    self.remove(watched)
                else:
                    # It looks at frames that run meanwhile. Whatever that raises once, the next look may do without.
                    _log.exception("the watch of event loops could not look")

    def _look_at(self, watched: Watched, ping: _Ping | None) -> _Ping | None:
        if ping is not None and ping.answered_at is None:
            if ping.block is None and self._clock() - ping.at >= self._after_s:
                ping.block = self._begin(watched, ping.thread, self._clock() - ping.at)
            return ping
        if ping is not None and ping.block is not None and ping.answered_at is not None:
            watched.blocked(False)
            block, ping.block = ping.block, None
            emit("worker.loop_blocked", {"duration_s": ping.answered_at - ping.at}, block)
        if not watched.under_way():
            return ping
        thread = None if ping is None else ping.thread
        if watched.thread is not None:
            thread = watched.thread.ident
        return _Ping(watched.loop, thread, self._clock)

    def _begin(self, watched: Watched, thread: int | None, seconds: float) -> dict[str, Any]:
        watched.blocked(True)
        stack = _stack(thread)
        frame = self._place(stack)
        # Who wanted what a program's own task does cannot be seen, unless it can be only one.
        alone = watched.under_way() if watched.program else []
        execution = _execution_in(stack) or (alone[0] if len(alone) == 1 else None)
        # The name of a session's own program is its caller's.
        command = execution.operation.command if execution is not None and execution.version else None
        block: dict[str, Any] = {
            **self._labels,
            "program": getattr(command, "program", None) or watched.program,
            "operation_id": None if execution is None else execution.operation.id,
        }
        if frame is not None:
            code = frame.f_code
            block |= {"file": code.co_filename, "line": frame.f_lineno, "function": code.co_qualname}
        # Places and code of the program, but no values.
        _log.warning(
            "program %s has blocked an event loop for %.2f s at %s:%s in %s (operation %s):\n%s",
            block["program"] or "?",
            seconds,
            block.get("file", "?"),
            block.get("line", "?"),
            block.get("function", "?"),
            block["operation_id"] or "?",
            "".join(traceback.format_list(traceback.extract_stack(stack[0], _MOST_FRAMES))) if stack else "",
        )
        return block

    def _place(self, stack: list[FrameType]) -> FrameType | None:
        """The innermost frame of the user's code; without one, the innermost that is of no library."""
        own = (frame for frame in stack if self._is_user_code(str(frame.f_globals.get("__name__"))))
        others = (frame for frame in stack if not frame.f_code.co_filename.startswith(_LIBRARIES))
        return next(own, None) or next(others, None) or next(iter(stack), None)


def _stack(thread: int | None) -> list[FrameType]:
    """The frames of a thread, innermost first."""
    frame = None if thread is None else sys._current_frames().get(thread)
    stack = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    return stack


def _execution_in(stack: list[FrameType]) -> Execution | None:
    for frame in stack:
        if isinstance(execution := frame.f_locals.get("execution"), Execution):
            return execution
    return None


__all__ = ["LOOK_EVERY_S", "LoopWatch", "Watched"]
