"""How a worker runs its operations: short in-process work in turns, tasks for what waits for a model, threads.

Short work runs on the worker's event loop itself, in turns of about two milliseconds between which results leave and
new work arrives; programs without an async form run in threads, async ones with code of the user's on event loops of
their own.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from dspool.errors import PoolError
from dspool.messages import ExecuteProgram, StreamEvent, StreamProgram
from dspool.telemetry.logs import current_operation
from dspool.telemetry.tracing import inside
from dspool.worker.execution import Execution
from dspool.worker.loop_watch import LoopWatch, Watched
from dspool.worker.program_loop import START_SHARE, TURN_S, ProgramLoop

if TYPE_CHECKING:
    from dspool.programs.sessions.host import CommandResult, Session, SessionHost

_SESSIONS = "(sessions)"
"""The loop of all programs that sessions brought themselves: nobody bounds how many there are."""

Emit = Callable[[StreamEvent], Coroutine[Any, Any, None]]


class Endings(Protocol):
    """What the runner reports of its executions. An execution ends once; later reports change nothing."""

    def completed(self, execution: Execution, result: CommandResult) -> None:
        """Its program returned."""
        ...

    def refuse(self, execution: Execution, error: PoolError) -> None:
        """It failed, or never started."""
        ...

    def start(self, execution: Execution, session: Session | None) -> None:
        """What it needs is built."""
        ...

    def give_back(self, execution: Execution) -> bool:
        """Another worker may have it: it has not begun, and what should run it is blocked. False: it must wait."""
        ...

    def streamed(self, execution: Execution, event: StreamEvent) -> None: ...

    def turn_ended(self) -> None:
        """A turn is over: let results out."""
        ...


class Runner:
    def __init__(
        self,
        host: SessionHost,
        endings: Endings,
        *,
        slots: int,
        clock: Callable[[], float],
        watch: LoopWatch | None = None,
    ) -> None:
        self._host = host
        self._endings = endings
        self._clock = clock
        self._watch = watch
        self._inline: deque[Execution] = deque()
        self._starting: deque[Execution] = deque()
        self._start_due = False
        self._turn_due = False
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._tasks: set[asyncio.Task[None]] = set()
        self.new_executor: Callable[[], ThreadPoolExecutor] | None = None
        """Makes the default one of a program's loop."""
        self._loops: dict[str, ProgramLoop] = {}
        self._blocked: set[str] = set()
        """Loops that a program blocks now."""
        self.turning = False
        """A turn runs; results leave at its end."""
        self.gathering = False
        """More may arrive in this step; whoever sets this calls `gathered`."""
        self._woken: dict[ProgramLoop, None] = {}
        """Loops that have something to start once all of this step has arrived."""

    # --- short work, in turns ---

    def queue(self, execution: Execution) -> None:
        """Run it on the loop in one of the next turns."""
        self._inline.append(execution)
        if not self.gathering and not self.turning:
            self._turn_soon()

    def _turn_soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self.turn)

    def gathered(self) -> bool:
        """All of this step has arrived: run what is short, as `turn` does."""
        self.gathering = False
        while self._woken:
            self._woken.popitem()[0].wake()
        return self.turn()

    def turn(self) -> bool:
        """Run queued short operations for a while, then let results out and new work in; False if none is queued."""
        self._turn_due = False
        if not self._inline:
            return False
        self.turning = True
        clock, inline = self._clock, self._inline
        now = clock()
        until = now + TURN_S
        try:
            while inline and now <= until:
                execution = inline.popleft()
                if not execution.unwanted:  # else its end is reported already
                    self._run_inline(execution, now)
                now = clock()
        finally:
            self.turning = False
            current_operation.set(None)
            if inline:
                self._turn_soon()
            self._endings.turn_ended()
        return True

    def _run_inline(self, execution: Execution, now: float) -> None:
        if now > execution.deadline:
            self._endings.refuse(execution, execution.too_late(now))
            return
        execution.started_at = now
        operation = execution.operation
        current_operation.set(operation)
        try:
            if execution.trace is None:
                result = self._host.run_inline(operation.command, execution.session, operation.principal)
            else:
                with inside(execution.trace):
                    result = self._host.run_inline(operation.command, execution.session, operation.principal)
        except BaseException as raised:
            # KeyboardInterrupt and SystemExit, too: a program that calls `exit()` ends itself, not the worker and its
            # other operations. Nobody else raises them here: signals go to the main thread.
            self._fail(execution, raised)
        else:
            self._endings.completed(execution, result)

    # --- tasks ---

    def start_task(self, execution: Execution) -> None:
        """Run it in a task, which begins soon."""
        self._starting.append(execution)
        if not self._start_due:
            self._start_some()

    def _start_some(self) -> None:
        """Start a few of those that wait for a task."""
        loop = asyncio.get_running_loop()
        for _ in range(math.ceil(len(self._starting) * START_SHARE)):
            execution = self._starting.popleft()
            if not execution.unwanted:  # else its end is reported already
                self._begin(execution, loop)
        self._start_due = True
        loop.call_soon(self._start_more)

    def _start_more(self) -> None:
        self._start_due = False
        if self._starting:
            self._start_some()

    def _begin(self, execution: Execution, loop: asyncio.AbstractEventLoop) -> None:
        execution.started_at = self._clock()
        task = execution.task = loop.create_task(self._run_async(execution))
        task.add_done_callback(lambda task: self._on_cancelled(execution) if task.cancelled() else None)

    async def _run_async(self, execution: Execution) -> None:
        emit = self._emitter(execution) if type(execution.operation.command) is StreamProgram else None
        try:
            result = await self._run(execution, emit)
        except BaseException as raised:
            self._fail(execution, raised)
        else:
            self._endings.completed(execution, result)

    async def _run(self, execution: Execution, emit: Emit | None) -> CommandResult:
        operation = execution.operation
        current_operation.set(operation)
        with nullcontext() if execution.trace is None else inside(execution.trace):
            return await self._host.run_async(
                operation.command, execution.session, emit, principal=operation.principal
            )

    def _on_cancelled(self, execution: Execution) -> None:
        """Its task was cancelled before its first step, so it could not report that itself."""
        self._endings.refuse(execution, execution.stop_error(self._clock()))

    # --- loops of programs ---

    def start_apart(self, execution: Execution, program: str) -> None:
        """Run it on the event loop of its program's version, which its code may block."""
        name = f"{program} {execution.version}" if execution.version else _SESSIONS
        loop = self._loop_of(name)
        if name in self._blocked and self._endings.give_back(execution):
            return
        loop.start(execution)
        if self.gathering:
            self._woken[loop] = None
        else:
            loop.wake()

    def _loop_of(self, name: str) -> ProgramLoop:
        loop = self._loops.get(name)
        if loop is None:
            loop = self._loops[name] = self._new_loop(name)
        return loop

    def _new_loop(self, name: str) -> ProgramLoop:
        owner = asyncio.get_running_loop()

        async def run(execution: Execution) -> CommandResult:
            emit = None
            if type(execution.operation.command) is StreamProgram:
                emitter = self._emitter(execution)

                async def emit(event: StreamEvent) -> None:
                    # Who counts the reader's credit is on the worker's loop.
                    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(emitter(event), owner))

            return await self._run(execution, emit)

        loop = ProgramLoop(
            name.rpartition(" ")[0], run, self._settle, clock=self._clock, new_executor=self.new_executor
        )

        def tell(blocked: bool) -> None:
            owner.call_soon_threadsafe(self._loop_blocked, name, blocked)

        if self._watch is not None:
            loop.watched = Watched(
                loop.loop,
                loop.thread,
                loop.program,
                lambda: list(loop.under_way),
                tell,
            )
            self._watch.add(loop.watched)
        return loop

    def _loop_blocked(self, name: str, blocked: bool) -> None:
        """The program's code blocks its loop, or does so no more: what has not begun there may go elsewhere."""
        loop = self._loops.get(name)
        if not blocked or loop is None:
            self._blocked.discard(name)
            return
        self._blocked.add(name)
        loop.take_outcomes()
        for execution in loop.take_back():
            if not self._endings.give_back(execution):
                loop.start(execution)
        loop.wake()

    def retire(self, program: str, version: int) -> None:
        """Nothing runs this version any more."""
        loop = self._loops.pop(f"{program} {version}", None)
        if loop is not None:
            self._end_loop(loop)

    def close(self) -> None:
        for loop in self._loops.values():
            self._end_loop(loop)
        self._loops = {}

    def _end_loop(self, loop: ProgramLoop) -> None:
        if self._watch is not None and loop.watched is not None:
            self._watch.remove(loop.watched)
        loop.close()

    async def run_apart(self, command: ExecuteProgram) -> CommandResult:
        """Run it where operations of its program's current version run, but as none. Raises `PoolError`."""
        version = self._host.version_for(command, None)
        loop = self._loop_of(f"{command.program} {version}")
        work = self._host.run_async(command, None, None)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop.loop))

    # --- threads ---

    def build(self, execution: Execution) -> None:
        """Build the program that it is the first to use since its session came here, in a thread; then start it."""

        def run() -> BaseException | None:
            try:
                self._host.build(execution.operation.command, execution.session)
            except BaseException as raised:
                return raised
            return None

        def end(future: asyncio.Future[BaseException | None]) -> None:
            if execution.unwanted or future.cancelled():
                return  # its end is reported already
            if (failed := future.result()) is not None:
                self._fail(execution, failed)
            else:
                self._endings.start(execution, execution.session)

        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._threads, contextvars.Context().run, run).add_done_callback(end)

    def start_thread(self, execution: Execution) -> None:
        """Run it in a thread, now."""
        execution.started_at = self._clock()
        execution.stop = threading.Event()
        task = asyncio.get_running_loop().create_task(self._run_thread(execution, execution.stop))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_thread(self, execution: Execution, stop: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        operation = execution.operation
        emit = None
        if type(operation.command) is StreamProgram:
            emitter = self._emitter(execution)

            def emit(event: StreamEvent) -> None:
                asyncio.run_coroutine_threadsafe(emitter(event), loop).result()

        def run() -> CommandResult | BaseException:
            # Returned, not raised: a future would not take StopIteration, and SystemExit would end the loop.
            try:
                if stop.is_set():
                    return execution.cancellation()
                current_operation.set(operation)
                with nullcontext() if execution.trace is None else inside(execution.trace):
                    return self._host.run_thread(
                        operation.command, execution.session, emit, stop=stop, principal=operation.principal
                    )
            except BaseException as raised:
                return raised

        # In a context of its own: the thread's next operation must not see what this one leaves there.
        future = loop.run_in_executor(self._threads, contextvars.Context().run, run)
        # Not in this task: a program may cancel every task of the loop, and then the slot would never be free again.
        future.add_done_callback(
            lambda future: None if future.cancelled() else self._settle(execution, future.result())
        )
        await asyncio.wait((future,))

    def _settle(self, execution: Execution, result: CommandResult | BaseException) -> None:
        if isinstance(result, BaseException):
            self._fail(execution, result)
        else:
            self._endings.completed(execution, result)

    # --- all of them ---

    def _fail(self, execution: Execution, raised: BaseException) -> None:
        self._endings.refuse(execution, execution.error_for(raised, self._clock()))

    def _emitter(self, execution: Execution) -> Emit:
        async def emit(event: StreamEvent) -> None:
            while execution.credit <= 0 and not execution.unwanted:
                execution.has_credit = execution.has_credit or asyncio.Event()
                execution.has_credit.clear()
                await execution.has_credit.wait()
            if execution.unwanted:
                # A thread that waits here for a client that is gone would wait for ever.
                raise execution.stop_error(self._clock())
            execution.credit -= 1
            self._endings.streamed(execution, event)

        return emit
