"""An event loop in a thread of its own for the code of one program, which may block it: nothing else waits for it.

The worker's own loop, which talks to clients, gives it executions and takes their outcomes, both in batches.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from dspool.errors import place_of, type_of
from dspool.quotations import without_secrets
from dspool.raised import traceback_of
from dspool.worker.execution import Execution

if TYPE_CHECKING:
    from dspool.programs.sessions.host import CommandResult
    from dspool.worker.loop_watch import Watched

_log = logging.getLogger(__name__)

START_SHARE = 1 / 16
"""Share of the waiting tasks that start in one turn of a loop, at least one; what ends at once does not count.

A loop gives its tasks turns: of a hundred started together none would reach its model before all were nearly as far,
and the model would idle meanwhile. Started one after the other, they overlap with it.
"""

TURN_S = 0.002
"""How long short work goes on before its loop turns: results leave then, and new work arrives."""


class ProgramLoop:
    """`run` runs an execution; `ended(execution, outcome)` is called for each on the worker's loop, the current one.

    Only that loop calls its methods.
    """

    def __init__(
        self,
        program: str,
        run: Callable[[Execution], Awaitable[CommandResult]],
        ended: Callable[[Execution, CommandResult | BaseException], None],
        *,
        clock: Callable[[], float],
        new_executor: Callable[[], ThreadPoolExecutor] | None = None,
    ) -> None:
        self.program = program
        self._run, self._ended, self._clock = run, ended, clock
        self._owner = asyncio.get_running_loop()
        self.loop: asyncio.AbstractEventLoop = type(self._owner)()
        if new_executor is not None:
            self.loop.set_default_executor(new_executor())
        self.watched: Watched | None = None
        """What watches it knows it by."""
        self._waiting: deque[Execution] = deque()
        self.under_way: set[Execution] = set()
        """What it was given and has not ended."""
        self._outcomes: deque[tuple[Execution, CommandResult | BaseException]] = deque()
        self._start_due = self._report_due = self._starts = False
        self._over = False
        self.thread = threading.Thread(target=self._serve, name=f"program {program}", daemon=True)
        # Else it would take the context of whoever needed it first.
        contextvars.Context().run(self.thread.start)

    def _serve(self) -> None:
        run_through(self.loop, lambda: self._over)
        self.loop.close()

    def close(self) -> None:
        """End its thread once what it runs now lets it. What waits there never starts."""
        if not self._over:
            self._over = True
            self.loop.call_soon_threadsafe(self.loop.stop)

    def start(self, execution: Execution) -> None:
        """Run it soon after the next `wake`."""
        self.under_way.add(execution)
        self._waiting.append(execution)

    def wake(self) -> None:
        """Let it know of what there is to start: once for all that has arrived, its thread would only wait for this
        one to let the interpreter go."""
        if self._waiting and not self._start_due:
            self._start_due = True
            self.loop.call_soon_threadsafe(self._start_some)

    def take_back(self) -> list[Execution]:
        """What has not begun, and now never will here."""
        taken = []
        while True:
            try:
                # The program's thread takes from here, too: whoever has it has it alone.
                taken.append(self._waiting.popleft())
            except IndexError:
                self.under_way.difference_update(taken)
                return taken

    # --- in its thread ---

    def _start_some(self) -> None:
        # First: what is given from now on wakes the loop again.
        self._start_due = False
        self._starts = True
        try:
            self._start_for(TURN_S)
        finally:
            self._starts = False
            if self._outcomes:
                self._report_soon()
        if self._waiting and not self._start_due:
            self._start_due = True
            self.loop.call_soon(self._start_some)

    def _start_for(self, seconds: float) -> None:
        until = self._clock() + seconds
        most = math.ceil(len(self._waiting) * START_SHARE)
        while most and self._clock() <= until:
            try:
                execution = self._waiting.popleft()
            except IndexError:
                return
            # Those that end at once take no turns from each other.
            most -= self._begin(execution)

    def _begin(self, execution: Execution) -> bool:
        """Run its first step. Whether there are more."""
        if execution.unwanted:
            self._report(execution, asyncio.CancelledError())
            return False
        execution.started_at = self._clock()
        task, first_step = task_of(self.loop, self._work(execution))
        execution.task = RemoteTask(self.loop, task)
        first_step()
        return not task.done()

    async def _work(self, execution: Execution) -> None:
        try:
            result = await self._run(execution)
        except BaseException as raised:
            # Not kept in a name: its traceback holds this frame, and the cycle would keep the program's objects.
            self._report(execution, raised)
        else:
            self._report(execution, result)

    def _report(self, execution: Execution, outcome: CommandResult | BaseException) -> None:
        self._outcomes.append((execution, outcome))
        # The worker's thread would wait for this one to let the interpreter go, which it does after the turn.
        if not self._starts:
            self._report_soon()

    def _report_soon(self) -> None:
        if not self._report_due:
            self._report_due = True
            self._owner.call_soon_threadsafe(self.take_outcomes)

    # --- on the worker's loop again ---

    def take_outcomes(self) -> None:
        """Report what has ended; also while a step of its blocks, behind which others have ended."""
        self._report_due = False
        while self._outcomes:
            execution, outcome = self._outcomes.popleft()
            self.under_way.discard(execution)
            self._ended(execution, outcome)


class RemoteTask:
    """A task of another thread's loop, to cancel."""

    __slots__ = ("_loop", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        self._loop, self._task = loop, task

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)


def task_of(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
) -> tuple[asyncio.Task[None], Callable[[], object]]:
    """A task of `loop`, and its first step, which the caller calls at once: the loop would take a turn before it.

    A program whose model is in this process often ends in that one. Not for code that runs in a task.
    """
    first: list[Callable[[], object]] = []

    def keep(step: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> None:
        first.append(partial(step, *args) if context is None else partial(context.run, step, *args))

    loop.call_soon = keep  # type: ignore[method-assign, assignment]
    try:
        # No factory that the program set: it may run the step itself.
        task = asyncio.Task(work, loop=loop)
    finally:
        del loop.call_soon
    return task, first.pop()


def run_through(loop: asyncio.AbstractEventLoop, over: Callable[[], bool]) -> None:
    """Run `loop` until it is closed, or stopped while `over()`, whatever programs let escape into it.

    asyncio lets `KeyboardInterrupt` and `SystemExit` of any task or callback out of `run_forever`, even of one that a
    program started and nobody here could guard. The loop goes on with the next callback, and the task that raised
    keeps its exception.
    """
    while not loop.is_closed():
        try:
            loop.run_forever()
        except BaseException as escaped:
            _log.error(
                "a task or callback of a program raised %s at %s out of the worker's event loop, which goes on",
                type_of(escaped),
                place_of(escaped),
                # As text: other handlers of this process would write the exception with all that it says.
                extra={"traceback": traceback_of(escaped, hide=without_secrets)},
            )
        else:
            if over():
                return
            _log.error("a program stopped the worker's event loop, which goes on")
