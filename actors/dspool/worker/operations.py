"""The operations a worker holds: admitted while a slot is free, run, cancelled, reported once each.

Everything here happens on the worker's event loop. Short in-process work runs on the loop itself, in turns of about
two milliseconds between which results leave and new work arrives; what waits for a model runs as a task; what has
no async form runs in threads. Nothing is awaited between looking at a slot and taking it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from dspool.core.metrics.recorder import WorkerRecorder
from dspool.core.metrics.versions import VersionBook
from dspool.errors import PoolError, StaleLease
from dspool.messages import (
    EndSession,
    ExecuteProgram,
    Finished,
    Operation,
    StreamEvent,
    StreamProgram,
    VersionNumbers,
)
from dspool.telemetry import trace_names as names
from dspool.telemetry.logs import working_on
from dspool.telemetry.tracing import Tracing, inside
from dspool.wire.connection import WorkerEnd
from dspool.wire.frames import Cancel, Credit, HandOver, Submit
from dspool.worker.execution import ClientPeer, Execution, defect
from dspool.worker.outbox import Outbox

if TYPE_CHECKING:
    from dspool.programs.sessions.session import Done, Session, SessionHost
    from dspool.worker.ownership import Ownership

_TURN_S = 0.002
_STARTED_AT_ONCE = 1 / 16
"""Share of the waiting tasks that start in one turn of the loop, at least one."""
_LOOK_AGAIN_S = 0.25
_LONGEST_TIMER_S = 3600.0
"""A deadline further away is looked at again then: event loops refuse very long timers."""


class Operations:
    """`on_message`, `on_batch`, `on_room` and `on_lost` are what a `WorkerEnd` calls."""

    def __init__(
        self,
        host: SessionHost,
        *,
        recorder: WorkerRecorder,
        stream_window: int,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._tracing = tracing
        self.slots = slots = recorder.slots
        self._recorder = recorder
        self._versions = VersionBook()
        self._window = stream_window
        self._clock = clock
        self.ownership: Ownership | None = None
        self._draining = False
        self._held: dict[Execution, None] = {}
        self._peers: dict[WorkerEnd, ClientPeer] = {}
        self._inline: deque[Execution] = deque()
        self._starting: deque[Execution] = deque()
        self._start_due = False
        self._out = Outbox(self._load)
        self._turning = False
        self._turn_due = False
        self._batch = False
        """Messages are being taken in; `on_batch` comes next."""
        self._idle: asyncio.Event | None = None
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def held(self) -> int:
        """Slots taken, those of cancelled operations that cannot be stopped included."""
        return len(self._held)

    @property
    def draining(self) -> bool:
        """Whether new operations are turned away."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        for peer in self._peers.values():
            self._out.tell(peer)
        self._out.flush_soon()

    def running(self) -> list[tuple[Operation, float]]:
        """What is held now, and for how many seconds."""
        now = self._clock()
        return [(held.operation, now - held.admitted_at) for held in self._held]

    def versions(self, program: str) -> dict[int, VersionNumbers]:
        """What each version of a pool program did here."""
        now = self._clock()
        running = [
            (held.version, now - held.started_at)
            for held in self._held
            if held.version
            and held.started_at is not None
            and getattr(held.operation.command, "program", None) == program
        ]
        return self._versions.numbers(program, running)

    def stuck(self, grace_s: float) -> str:
        """An operation that runs on `grace_s` after it was told to stop at its deadline; empty if there is none."""
        now = self._clock()
        for held in self._held:
            if held.expired and held.runs and now - held.deadline >= grace_s:
                return f"{held.operation.id} still runs {now - held.deadline:.1f} s after its deadline"
        return ""

    # --- what clients say ---

    def on_message(self, end: WorkerEnd, message: Submit | Cancel | Credit | HandOver) -> None:
        self._batch = True
        peer = self._peers.get(end)
        if peer is None:
            peer = self._peers[end] = ClientPeer(end)
        if type(message) is Submit:
            for operation in message.operations:
                self._admit(operation, peer)
        elif type(message) is Cancel:
            for operation_id in message.ids:
                self._cancel(peer.held.get(operation_id))
        elif type(message) is Credit:
            held = peer.held.get(message.id)
            if held is not None:
                held.credit += message.count
                if held.more is not None:
                    held.more.set()
        elif type(message) is HandOver:
            self._background(self._hand_over(peer, message.sessions))

    def on_batch(self) -> None:
        # Not through the loop: an idle worker answers in the same turn in which the operation arrived.
        self._batch = False
        if self._inline:
            self._turn()
        elif self._out:
            self._out.flush_soon()

    def on_room(self, end: WorkerEnd) -> None:
        """The client has caught up with reading."""
        self._out.flush_soon()

    def on_lost(self, end: WorkerEnd) -> None:
        """The client is gone: nobody waits for its operations."""
        peer = self._peers.pop(end, None)
        if peer is not None:
            self._out.drop(peer)
            for held in list(peer.held.values()):
                self._cancel(held)

    # --- admission ---

    def _admit(self, operation: Operation, peer: ClientPeer) -> None:
        if self._draining or len(self._held) >= self.slots or peer.end.full or operation.id in peer.held:
            self._out.busy(peer, operation.id)
            return
        now = self._clock()
        held = peer.held[operation.id] = Execution(operation, peer, now, self._window)
        self._held[held] = None
        self._recorder.started(now)
        if operation.traceparent is not None and self._tracing is not None:
            held.traced = self._tracing.resume(operation, worker=self._recorder.reporter, at=now)
        if operation.session is None:
            self.start(held, None)
            return
        assert self.ownership is not None
        self.ownership.enter(held)
        if held.session is None and operation.id in peer.held:
            self._watch_deadline(held)

    def start(self, held: Execution, session: Session | None) -> None:
        """Run an admitted operation on its session, which is free. Raises nothing."""
        held.session = session
        command = held.operation.command
        try:
            plan = "end" if type(command) is EndSession else self._host.plan(command, session)
            if type(command) is ExecuteProgram or type(command) is StreamProgram:
                # Now, not at the end: another version may be current by then.
                held.version = self._host.version_for(command, session)
        except BaseException as raised:  # a session's own program is built at its first use
            self.refuse(held, held.ended_by(raised, self._clock()))
            return
        if plan == "inline":
            self._inline.append(held)
            if not self._batch and not self._turning:
                self._turn_soon()
            return
        if held.version:
            # It begins later, and runs the version that it was planned for: another may be run in another way.
            held.operation = _pinned(held.operation, held.version)
        if plan == "async":
            self._starting.append(held)
            if not self._start_due:
                self._start_some()
        elif plan == "thread":
            held.started_at = self._clock()
            held.stop = threading.Event()
            self._background(self._run_thread(held, held.stop))
        else:
            held.started_at = self._clock()
            self._background(self._end_session(held))
        if held.timer is None:
            self._watch_deadline(held)

    def _start_some(self) -> None:
        """Start a few of those that wait for a task.

        A loop gives its tasks turns: of a hundred started together none would reach its model before all have got
        nearly as far, and the model would idle meanwhile. Started one after the other, they overlap with it.
        """
        loop = asyncio.get_running_loop()
        for _ in range(math.ceil(len(self._starting) * _STARTED_AT_ONCE)):
            held = self._starting.popleft()
            if not held.unwanted:  # else it was reported when it was given up
                self._start_task(held, loop)
        self._start_due = True
        loop.call_soon(self._start_more)

    def _start_more(self) -> None:
        self._start_due = False
        if self._starting:
            self._start_some()

    def _start_task(self, held: Execution, loop: asyncio.AbstractEventLoop) -> None:
        held.started_at = self._clock()
        task = held.task = loop.create_task(self._run_async(held))
        task.add_done_callback(lambda task: self._never_ran(held) if task.cancelled() else None)

    # --- running ---

    def _turn_soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Run queued short operations for a while, then let results out and new work in."""
        self._turn_due = False
        if not self._inline:
            return
        self._turning = True
        clock, inline = self._clock, self._inline
        now = clock()
        until = now + _TURN_S
        try:
            while inline and now <= until:
                held = inline.popleft()
                if not held.unwanted:  # else it was reported when it was given up
                    self._run_inline(held, now)
                now = clock()
        finally:
            self._turning = False
            working_on.set(None)
            if inline:
                self._turn_soon()
            self._out.flush()

    def _run_inline(self, held: Execution, now: float) -> None:
        if now > held.deadline:
            self.refuse(held, held.too_late(now))
            return
        held.started_at = now
        working_on.set(held.operation)
        try:
            if held.traced is None:
                done = self._host.run_inline(held.operation.command, held.session, held.operation.principal)
            else:
                with inside(held.traced):
                    done = self._host.run_inline(
                        held.operation.command, held.session, held.operation.principal
                    )
        except BaseException as raised:
            # KeyboardInterrupt and SystemExit too: a program that calls `exit()` ends itself, not the worker with all
            # that it holds. Nobody else raises them here: signals go to the main thread.
            self._finish(held, error=held.ended_by(raised, self._clock()))
        else:
            self._settle(held, done)

    async def _run_async(self, held: Execution) -> None:
        emit = self._emitter(held) if type(held.operation.command) is StreamProgram else None
        working_on.set(held.operation)
        try:
            with nullcontext() if held.traced is None else inside(held.traced):
                done = await self._host.run_async(
                    held.operation.command, held.session, emit, principal=held.operation.principal
                )
        except BaseException as raised:
            self._finish(held, error=held.ended_by(raised, self._clock()))
        else:
            self._settle(held, done)

    def _never_ran(self, held: Execution) -> None:
        """Its task was cancelled before its first step, so nothing in it could report that."""
        self._finish(held, error=held.given_up(self._clock()))

    async def _run_thread(self, held: Execution, stop: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        emit = None
        if type(held.operation.command) is StreamProgram:
            emitter = self._emitter(held)

            def emit(event: StreamEvent) -> None:
                asyncio.run_coroutine_threadsafe(emitter(event), loop).result()

        def run() -> Done | BaseException:
            # Returned, not raised: a future would not take StopIteration, and SystemExit would end the loop.
            try:
                if stop.is_set():
                    return held.cancelled()
                working_on.set(held.operation)
                with nullcontext() if held.traced is None else inside(held.traced):
                    return self._host.run_thread(
                        held.operation.command,
                        held.session,
                        emit,
                        stop=stop,
                        principal=held.operation.principal,
                    )
            except BaseException as raised:
                return raised

        # In a context of its own: what it leaves there must not be seen by the thread's next operation.
        ran = loop.run_in_executor(self._threads, contextvars.Context().run, run)
        # Not in this task: a program may cancel every task of the loop, and this one's slot would never be free again.
        ran.add_done_callback(lambda ran: None if ran.cancelled() else self._ran(held, ran.result()))
        await asyncio.wait((ran,))

    def _ran(self, held: Execution, done: Done | BaseException) -> None:
        if isinstance(done, BaseException):
            self._finish(held, error=held.ended_by(done, self._clock()))
        else:
            self._settle(held, done)

    async def _end_session(self, held: Execution) -> None:
        from dspool.programs.sessions.session import Done

        assert self.ownership is not None
        try:
            ended = await self.ownership.end(held)
        except BaseException as raised:
            self._finish(held, error=held.ended_by(raised, self._clock()))
        else:
            self._finish(held, done=Done({"ended": ended}))

    def _settle(self, held: Execution, done: Done) -> None:
        """The program is through; a change must be durable before it is acknowledged."""
        held.task = held.stop = None  # from here on it cannot be stopped, only waited for
        if done.changes:
            self._background(self._commit(held, done))
        else:
            self._finish(held, done=done)

    async def _commit(self, held: Execution, done: Done) -> None:
        assert self.ownership is not None
        traced = held.traced
        span = None if traced is None else traced.tracing.start(names.COMMIT, {}, parent=traced.span)
        try:
            try:
                await self.ownership.commit(held, done.changes)
            finally:
                if traced is not None and span is not None:
                    traced.tracing.end(span, error=sys.exception())
        except StaleLease:
            # Nothing was changed, the session has another home by now: whoever owns it does it again.
            self.moved(held, "")
        except PoolError as failed:
            self._finish(held, error=failed)
        except BaseException as raised:
            self._finish(held, error=defect(raised))
        else:
            self._finish(held, done=done)

    # --- endings ---

    def refuse(self, held: Execution, error: PoolError) -> None:
        """End an operation that never started."""
        self._finish(held, error=error)

    def moved(self, held: Execution, owner: str) -> None:
        """The operation's session lives with `owner` ("": elsewhere): nothing took effect, the client follows."""
        if self._release(held):
            self._recorder.finished(self._clock(), "rejected", 0.0)
            if held.traced is not None:
                held.traced.span.set_attribute(names.OUTCOME, "moved")
                held.traced.tracing.end(held.traced.span)
            self._out.moved(held.peer, held.operation.id, owner)
            self._out.flush_soon()

    def _finish(self, held: Execution, *, done: Done | None = None, error: PoolError | None = None) -> None:
        if not self._release(held):
            return
        now = self._clock()
        started = held.started_at if held.started_at is not None else now
        run_s, wait_s = now - started, started - held.admitted_at
        if done is not None:
            self._recorder.finished(now, "ok", run_s, done.usage)
            finished = Finished(
                held.operation.id,
                done.value,
                None,
                run_s,
                wait_s,
                done.usage,
                done.offline,
                done.program_version,
            )
        else:
            assert error is not None
            self._recorder.finished(now, error.outcome, run_s, code=error.code)
            finished = Finished(held.operation.id, None, error.to_wire(), run_s, wait_s)
        if held.version:
            outcome = "ok" if error is None else error.outcome
            command = cast("ExecuteProgram | StreamProgram", held.operation.command)
            self._versions.ended(command.program, held.version, outcome, run_s, held.operation.timeout_s)
        if held.traced is not None:
            held.traced.span.set_attribute(names.RUN_S, round(run_s, 6))
            if error is None:
                held.traced.span.set_attribute(names.OUTCOME, "ok")
            held.traced.tracing.end(held.traced.span, error=error)
        self._out.finished(held.peer, finished)
        if not self._turning:
            self._out.flush_soon()

    def _release(self, held: Execution) -> bool:
        """Free the slot; False when it had been freed before."""
        if held.peer.held.pop(held.operation.id, None) is None:
            return False
        del self._held[held]
        if held.timer is not None:
            held.timer.cancel()
        if held.operation.session is not None:
            assert self.ownership is not None
            self.ownership.leave(held)
        if not self._held and self._idle is not None:
            self._idle.set()
            self._idle = None
        return True

    def _cancel(self, held: Execution | None) -> None:
        if held is None:
            return
        held.end = True
        if held.started_at is None:
            # Still in a line: it ends here and frees its slot at once. What runs is waited for.
            self.refuse(held, held.cancelled())
        else:
            held.interrupt()

    def _watch_deadline(self, held: Execution) -> None:
        left = held.deadline - self._clock()
        held.timer = asyncio.get_running_loop().call_later(
            min(max(0.0, left), _LONGEST_TIMER_S), self._expire, held
        )

    def _expire(self, held: Execution) -> None:
        now = self._clock()
        if now < held.deadline:
            self._watch_deadline(held)
            return
        held.expired = True
        if held.started_at is None:
            self.refuse(held, held.too_late(now))
        else:
            held.interrupt()

    async def idle(self, timeout_s: float, grace_s: float) -> bool:
        """Wait until nothing is held, at most `timeout_s`; whether that is so.

        What runs on `grace_s` after its deadline is not waited for: it may never end.
        """
        until = self._clock() + timeout_s
        while self._held:
            self._idle = self._idle or asyncio.Event()
            now = self._clock()
            left = min(until, max(held.deadline for held in self._held) + grace_s) - now
            if left <= 0:
                return False
            # Looked at again and again: when the last that can end has ended, only stuck ones may be left.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), min(left, _LOOK_AGAIN_S))
        return True

    # --- the rest ---

    def _load(self) -> tuple[int, int]:
        return len(self._held), 0 if self._draining else self.slots

    def _emitter(self, held: Execution) -> Callable[[StreamEvent], Coroutine[Any, Any, None]]:
        async def emit(event: StreamEvent) -> None:
            while held.credit <= 0 and not held.unwanted:
                held.more = held.more or asyncio.Event()
                held.more.clear()
                await held.more.wait()
            if held.unwanted:
                # A thread that waits here for a client that left would wait for ever.
                raise held.given_up(self._clock())
            held.credit -= 1
            self._out.chunk(held.peer, held.operation.id, event)
            self._out.flush_soon()

        return emit

    async def _hand_over(self, peer: ClientPeer, sessions: list[str]) -> None:
        assert self.ownership is not None
        for session_id in sessions:
            granted = await self.ownership.release(session_id)
            self._out.handed_over(peer, session_id, granted)
            self._out.flush_soon()

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _pinned(operation: Operation, version: int) -> Operation:
    """The same operation for this version of its pool program."""
    return replace(operation, command=replace(operation.command, version=version))
