"""The operations of a worker: admitted while a slot is free, run, cancelled, reported once each.

Everything here happens on the worker's event loop, without an `await` between checking for a slot and taking it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from dspool.core.metrics.recorder import WorkerRecorder
from dspool.core.metrics.tally import VersionBook
from dspool.errors import Outcome, PoolError, StaleLease
from dspool.messages import (
    EndSession,
    ExecuteProgram,
    Failure,
    Operation,
    Result,
    StreamEvent,
    StreamProgram,
    VersionNumbers,
)
from dspool.telemetry import trace_names as names
from dspool.telemetry.tracing import Tracing
from dspool.wire.connection import WorkerEnd
from dspool.wire.frames import Cancel, Credit, HandOver, Submit
from dspool.worker.execution import ClientPeer, Execution, defect, running_versions
from dspool.worker.failures import FailureLog
from dspool.worker.loop_watch import LoopWatch
from dspool.worker.outbox import Outbox
from dspool.worker.runner import Runner

if TYPE_CHECKING:
    from dspool.programs.sessions.host import CommandResult, Session, SessionHost
    from dspool.worker.ownership import Ownership

_RECHECK_S = 0.25
_REMEMBERED = 4096
_LONGEST_TIMER_S = 3600.0
"""The check of a later deadline repeats then: event loops refuse very long timers."""


class Operations:
    """A `WorkerEnd` calls `on_message`, `on_batch`, `on_room` and `on_lost`."""

    def __init__(
        self,
        host: SessionHost,
        *,
        recorder: WorkerRecorder,
        stream_window: int,
        tracing: Tracing | None = None,
        failures: FailureLog | None = None,
        watch: LoopWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._failures = failures or FailureLog()
        self._tracing = tracing
        self.slots = slots = recorder.slots
        self._recorder = recorder
        self._versions = VersionBook()
        self._window = stream_window
        self._clock = clock
        self.ownership: Ownership | None = None
        self._draining = False
        self._executions: dict[Execution, None] = {}
        self._peers: dict[WorkerEnd, ClientPeer] = {}
        self._out = Outbox(self._load)
        self.runner = Runner(host, self, slots=slots, clock=clock, watch=watch)
        self._given_back: dict[str, None] = {}
        self._idle: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Slots in use, including those of cancelled operations that cannot be stopped."""
        return len(self._executions)

    @property
    def executions(self) -> list[Execution]:
        """All of them, as of now; from any thread."""
        return list(self._executions)

    @property
    def draining(self) -> bool:
        """Whether new operations are turned away."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        for peer in self._peers.values():
            self._out.report_load(peer)
        self._out.flush_soon()

    def details(self) -> list[tuple[Operation, float]]:
        """Each operation that holds a slot, and for how many seconds."""
        now = self._clock()
        return [(one.operation, now - one.admitted_at) for one in self._executions]

    def versions(self, program: str) -> dict[int, VersionNumbers]:
        """What each version of a pool program did here."""
        now = self._clock()
        return self._versions.numbers(program, [*running_versions(self._executions, program, now)])

    def cancel(self, operation_id: str) -> bool:
        found = next((one for one in self._executions if one.operation.id == operation_id), None)
        self._cancel(found)
        return found is not None

    # --- messages from clients ---

    def on_message(self, end: WorkerEnd, message: Submit | Cancel | Credit | HandOver) -> None:
        self.runner.gathering = True
        peer = self._peers.get(end)
        if peer is None:
            peer = self._peers[end] = ClientPeer(end)
        if type(message) is Submit:
            for operation in message.operations:
                self._admit(operation, peer)
        elif type(message) is Cancel:
            for operation_id in message.ids:
                self._cancel(peer.executions.get(operation_id))
            if not message.ids:
                self._out.report_load(peer)
        elif type(message) is Credit:
            execution = peer.executions.get(message.id)
            if execution is not None:
                execution.credit += message.count
                if execution.has_credit is not None:
                    execution.has_credit.set()
        elif type(message) is HandOver:
            self._background(self._hand_over(peer, message.sessions))

    def on_batch(self) -> None:
        # Not through the loop: an idle worker answers in the turn in which the operation arrived.
        if not self.runner.gathered() and self._out:
            self._out.flush_soon()

    def runs_for(self, end: WorkerEnd) -> bool:
        """Whether its client fills a slot here."""
        return (peer := self._peers.get(end)) is not None and bool(peer.executions)

    def on_room(self, end: WorkerEnd) -> None:
        """The client has caught up with reading."""
        self._out.flush_soon()

    def on_lost(self, end: WorkerEnd) -> None:
        """The client is gone: nobody waits for its operations."""
        peer = self._peers.pop(end, None)
        if peer is not None:
            self._out.drop(peer)
            for execution in list(peer.executions.values()):
                self._cancel(execution)

    # --- admission ---

    def _admit(self, operation: Operation, peer: ClientPeer) -> None:
        full = self._draining or len(self._executions) >= self.slots
        if full or peer.end.full or operation.id in peer.executions:
            self._out.busy(peer, operation.id)
            return
        now = self._clock()
        execution = peer.executions[operation.id] = Execution(operation, peer, now, self._window)
        self._executions[execution] = None
        self._recorder.started(now)
        if operation.traceparent is not None and self._tracing is not None:
            execution.trace = self._tracing.resume(operation, worker=self._recorder.reporter, at=now)
        if operation.session is None:
            self.start(execution, None)
            return
        assert self.ownership is not None
        self.ownership.enter(execution)
        if execution.session is None and operation.id in peer.executions:
            self._watch_deadline(execution)

    def start(self, execution: Execution, session: Session | None) -> None:
        """Run an admitted operation on its session, which is free. Raises nothing."""
        execution.session = session
        command = execution.operation.command
        try:
            plan = "end" if type(command) is EndSession else self._host.plan(command, session)
            if type(command) is ExecuteProgram or type(command) is StreamProgram:
                # Now, not at the end: another version may be current by then.
                execution.version = self._host.version_for(command, session)
        except BaseException as raised:
            self.refuse(execution, execution.error_for(raised, self._clock()))
            return
        if plan == "inline":
            self.runner.queue(execution)
            return
        if execution.version:  # it begins later, and another version may need another plan
            execution.pin()
        if plan == "build":
            self.runner.build(execution)
        elif plan == "async":
            self.runner.start_task(execution)
        elif plan == "apart":
            self.runner.start_apart(execution, command.program)  # type: ignore[union-attr]
        elif plan == "thread":
            self.runner.start_thread(execution)
        else:
            execution.started_at = self._clock()
            self._background(self._end_session(execution))
        if execution.timer is None:
            self._watch_deadline(execution)

    # --- messages from the runner ---

    def streamed(self, execution: Execution, event: StreamEvent) -> None:
        self._out.chunk(execution.peer, execution.operation.id, event)
        self._out.flush_soon()

    def turn_ended(self) -> None:
        self._out.flush()

    def completed(self, execution: Execution, result: CommandResult) -> None:
        """Its program returned; a change must be durable before the client gets its acknowledgement."""
        execution.task = execution.stop = None  # from here on nothing can stop it
        if result.changes:
            self._background(self._commit(execution, result))
        else:
            self._succeed(execution, result)

    async def _end_session(self, execution: Execution) -> None:
        from dspool.programs.sessions.host import CommandResult

        assert self.ownership is not None
        try:
            existed = await self.ownership.end(execution)
        except BaseException as raised:
            self.refuse(execution, execution.error_for(raised, self._clock()))
        else:
            self._succeed(execution, CommandResult({"ended": existed}))

    async def _commit(self, execution: Execution, result: CommandResult) -> None:
        assert self.ownership is not None
        try:
            with execution.span_within(names.COMMIT):
                await self.ownership.commit(execution, result.changes)
        except StaleLease:
            # Nothing changed: the session has another owner by now, who runs it again.
            self.moved(execution, "")
        except BaseException as failed:
            self.refuse(execution, failed if isinstance(failed, PoolError) else defect(failed))
        else:
            self._succeed(execution, result)

    # --- endings ---

    def refuse(self, execution: Execution, error: PoolError) -> None:
        """End an operation that failed, or never started."""
        if not self._release(execution):
            return
        run_s, wait_s = execution.times(self._clock())
        self._recorder.finished(self._clock(), error.outcome, run_s, code=error.code)
        self._failures.write(execution.operation, error)
        execution.end_span(error.outcome, run_s, error)
        failure = Failure(execution.operation.id, error.to_wire(), wait_s, run_s, execution.version)
        self._report(execution, failure, error.outcome)

    def _succeed(self, execution: Execution, result: CommandResult) -> None:
        if not self._release(execution):
            return
        run_s, wait_s = execution.times(self._clock())
        self._recorder.finished(self._clock(), "ok", run_s, result.usage)
        execution.end_span("ok", run_s)
        report = Result(
            execution.operation.id,
            self._recorder.reporter,
            result.value,
            result.program_version,
            wait_s,
            run_s,
            result.usage,
            result.offline,
            result.cached,
            result.truncated,
        )
        self._report(execution, report, "ok")

    def moved(self, execution: Execution, owner: str) -> None:
        """`owner` has the operation's session ("": another worker): nothing took effect, the client follows."""
        if self._release_unrun(execution, "moved"):
            self._out.moved(execution.peer, execution.operation.id, owner)
            self._out.flush_soon()

    def give_back(self, execution: Execution) -> bool:
        """Let another worker have it, which has not begun: once, and not if it belongs to this worker's session.

        Whoever comes again found no other worker for it, and waits.
        """
        operation = execution.operation
        if operation.session is not None or operation.id in self._given_back:
            return False
        self._given_back[operation.id] = None
        while len(self._given_back) > _REMEMBERED:
            del self._given_back[next(iter(self._given_back))]
        if self._release_unrun(execution, "given back"):
            self._out.busy(execution.peer, operation.id)
            self._out.flush_soon()
        return True

    def _release_unrun(self, execution: Execution, outcome: str) -> bool:
        if not self._release(execution):
            return False
        self._recorder.finished(self._clock(), "rejected", 0.0)
        execution.end_span(outcome)
        return True

    def _report(self, execution: Execution, report: Result | Failure, outcome: Outcome) -> None:
        if execution.version:
            operation = execution.operation
            command = cast("ExecuteProgram | StreamProgram", operation.command)
            self._versions.ended(
                command.program, execution.version, outcome, report.run_s, operation.timeout_s
            )
        self._out.finished(execution.peer, report)
        if not self.runner.turning:
            self._out.flush_soon()

    def _release(self, execution: Execution) -> bool:
        """Free the slot; False when it was free already."""
        if execution.peer.executions.pop(execution.operation.id, None) is None:
            return False
        del self._executions[execution]
        if execution.timer is not None:
            execution.timer.cancel()
        if execution.operation.session is not None:
            assert self.ownership is not None
            self.ownership.leave(execution)
        if not self._executions and self._idle is not None:
            self._idle.set()
            self._idle = None
        return True

    def _cancel(self, execution: Execution | None) -> None:
        if execution is None:
            return
        execution.is_cancelled = True
        if execution.started_at is None:
            # Still in a queue: it ends here and frees its slot at once. What runs must stop first.
            self.refuse(execution, execution.cancellation())
        else:
            execution.interrupt()

    def _watch_deadline(self, execution: Execution) -> None:
        remaining_s = execution.deadline - self._clock()
        execution.timer = asyncio.get_running_loop().call_later(
            min(max(0.0, remaining_s), _LONGEST_TIMER_S), self._expire, execution
        )

    def _expire(self, execution: Execution) -> None:
        now = self._clock()
        if now < execution.deadline:
            self._watch_deadline(execution)
            return
        execution.expired = True
        if execution.started_at is None:
            self.refuse(execution, execution.too_late(now))
        else:
            execution.interrupt()

    async def idle(self, timeout_s: float, grace_s: float) -> bool:
        """Wait until all slots are free, at most `timeout_s`; whether they are.

        It does not wait for what still runs `grace_s` after its deadline: that may never end.
        """
        until = self._clock() + timeout_s
        while self._executions:
            self._idle = self._idle or asyncio.Event()
            latest = max(execution.deadline for execution in self._executions)
            remaining_s = min(until, latest + grace_s) - self._clock()
            if remaining_s <= 0:
                return False
            # Checked again and again: after the last one that can end, only stuck ones may remain.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(remaining_s, _RECHECK_S)):
                    await self._idle.wait()
        return True

    def _load(self) -> tuple[int, int]:
        return len(self._executions), 0 if self._draining else self.slots

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
