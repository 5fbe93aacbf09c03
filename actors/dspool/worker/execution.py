"""A worker's clients and their operations on it, from admission to report, and the errors that can end one there."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from dspool.errors import Cancelled, DeadlineExceeded, InternalError, PoolError, ProgramError, type_of
from dspool.messages import Operation
from dspool.telemetry import trace_names as names

if TYPE_CHECKING:
    from msgspec import Raw

    from dspool.programs.sessions.host import Session
    from dspool.telemetry.tracing import Active
    from dspool.wire.connection import WorkerEnd


class ClientPeer:
    """One client at this worker: its executions, and what it has yet to hear."""

    __slots__ = ("busy", "chunks", "closed", "end", "executions", "finished", "handed_over", "moved")

    def __init__(self, end: WorkerEnd) -> None:
        self.end = end
        self.executions: dict[str, Execution] = {}
        self.closed = False
        self.finished: list[Raw] = []
        self.busy: list[str] = []
        self.moved: list[tuple[str, str]] = []
        self.handed_over: list[tuple[str, bool]] = []
        self.chunks: dict[str, list[Raw]] = {}


class Cancellable(Protocol):
    def cancel(self) -> object: ...


class Execution:
    """One admitted operation. It holds its slot until the report of its end."""

    __slots__ = (
        "admitted_at",
        "credit",
        "deadline",
        "expired",
        "has_credit",
        "is_cancelled",
        "operation",
        "peer",
        "session",
        "started_at",
        "stop",
        "task",
        "timer",
        "trace",
        "version",
    )

    def __init__(self, operation: Operation, peer: ClientPeer, now: float, credit: int) -> None:
        self.operation = operation
        self.peer = peer
        self.admitted_at = now
        self.deadline = now + operation.timeout_s
        self.started_at: float | None = None
        self.session: Session | None = None
        self.task: Cancellable | None = None
        """The task that runs it, if it can be cancelled."""
        self.stop: threading.Event | None = None
        """Asks the thread that runs it to make no further call."""
        self.timer: asyncio.TimerHandle | None = None
        self.expired = False
        """Its deadline passed while it was here."""
        self.is_cancelled = False
        """Its result no longer matters to anybody."""
        self.credit = credit
        """Stream events that its client still has room for."""
        self.has_credit: asyncio.Event | None = None
        self.trace: Active | None = None
        """Its span, if it is traced."""
        self.version = 0
        """The version of the pool program that it runs; 0 for everything else."""

    @property
    def unwanted(self) -> bool:
        return self.is_cancelled or self.expired

    @property
    def runs(self) -> bool:
        """Its program runs, in a task or a thread: it is not in a queue, nor waiting for the store."""
        return self.task is not None or self.stop is not None

    def times(self, now: float) -> tuple[float, float]:
        """Seconds it ran, and seconds it waited here before."""
        started_at = self.started_at if self.started_at is not None else now
        return now - started_at, started_at - self.admitted_at

    def end_span(self, outcome: str, run_s: float | None = None, error: PoolError | None = None) -> None:
        """End its span, if it is traced; an error has its outcome with it."""
        if (trace := self.trace) is None:
            return
        if run_s is not None:
            trace.span.set_attribute(names.RUN_S, round(run_s, 6))
        if error is None:
            trace.span.set_attribute(names.OUTCOME, outcome)
        trace.tracing.end(trace.span, error=error)

    @contextmanager
    def span_within(self, name: str) -> Iterator[None]:
        """A span for a part of it, if it is traced."""
        if (trace := self.trace) is None:
            yield
            return
        span = trace.tracing.start(name, {}, parent=trace.span)
        try:
            yield
        finally:
            if span is not None:
                trace.tracing.end(span, error=sys.exception())

    def pin(self) -> None:
        """Run the version of its pool program that `version` says, whichever is current by then."""
        command = replace(self.operation.command, version=self.version)
        self.operation = replace(self.operation, command=command)

    def interrupt(self) -> None:
        """Make its task or thread stop as soon as it can."""
        if self.task is not None:
            self.task.cancel()
        if self.stop is not None:
            self.stop.set()
        if self.has_credit is not None:
            self.has_credit.set()

    def stop_error(self, now: float) -> PoolError:
        """Why it is unwanted."""
        return self.too_late(now) if self.expired else self.cancellation()

    def cancellation(self) -> Cancelled:
        return Cancelled(f"operation {self.operation.id} was cancelled")

    def too_late(self, now: float) -> DeadlineExceeded:
        phase = "run" if self.started_at is not None else "queue"
        return DeadlineExceeded(
            f"operation {self.operation.id} passed its deadline after {now - self.admitted_at:.2f} s on its worker",
            phase=phase,
            operation_id=self.operation.id,
        )

    def error_for(self, raised: BaseException, now: float) -> PoolError:
        """The error to report when the run raised `raised`."""
        if self.unwanted:
            # Stopping makes libraries fail in their own ways; the cause is still ours.
            return self.stop_error(now)
        if isinstance(raised, PoolError):
            return raised
        # Nobody here raises anything but an `Exception`, and nobody cancelled it: the program raised this.
        return defect(raised) if issubclass(type(raised), Exception) else _of_program(raised)


def _of_program(raised: BaseException) -> ProgramError:
    error = ProgramError.of(raised)
    error.__cause__ = raised
    return error


def held(operation: Operation, held_s: float) -> dict[str, Any]:
    """What an operation in a slot is, and for how long it has been there."""
    return {
        "operation_id": operation.id,
        "command": type(operation.command).__struct_config__.tag,
        "program": getattr(operation.command, "program", None),
        "session": operation.session,
        "held_s": round(held_s, 6),
    }


def running_versions(
    executions: Iterable[Execution], program: str, now: float
) -> Iterator[tuple[int, float]]:
    """The version of the pool program that each runs now, and for how many seconds."""
    for execution in executions:
        asked = getattr(execution.operation.command, "program", None)
        if execution.version and execution.started_at is not None and asked == program:
            yield execution.version, now - execution.started_at


def stuck(executions: Iterable[Execution], now: float, grace_s: float) -> str:
    """One that still runs `grace_s` after its deadline; empty if there is none."""
    for execution in executions:
        if execution.expired and execution.runs and now - execution.deadline >= grace_s:
            late_s = now - execution.deadline
            return f"{execution.operation.id} still runs {late_s:.1f} s after its deadline"
    return ""


def defect(raised: BaseException) -> InternalError:
    """The error to report for an unexpected one. The type only: a message may hold what the user sent."""
    kind = type_of(raised)
    error = InternalError(f"the worker failed on this operation ({kind}); see its log", kind=kind)
    error.__cause__ = raised
    return error
