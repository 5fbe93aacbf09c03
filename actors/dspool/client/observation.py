"""What a client records of its operations: metrics of all, events for attached handlers, spans of the traced.

Events and spans cost next to nothing for an operation that nobody observes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from dspool.core.dispatch.ticket import Ticket, TicketEnd
from dspool.core.metrics.operation_records import MAX_TEXT, EndedOperation, OperationBuffer
from dspool.core.metrics.recorder import ClientRecorder
from dspool.errors import PoolError
from dspool.messages import Member, Operation, Result
from dspool.telemetry import trace_names as names
from dspool.telemetry.events import attached, emit
from dspool.telemetry.pseudonyms import principal_hash, sealed, session_hash
from dspool.telemetry.tracing import Tracing, operation_attributes, trace_id_of, traceparent_of, unsampled
from dspool.wire.frames import Report

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class CountedCall(Protocol):
    """What the client keeps about an operation: its command's name, and the name that counts it."""

    @property
    def command(self) -> str: ...
    @property
    def program(self) -> str: ...


class ClientObserver:
    """One per client; its event loop owns it. The client keeps `members`, the workers as it knows them, up to date."""

    def __init__(
        self,
        pool: str,
        recorder: ClientRecorder,
        tracing: Tracing,
        ended: OperationBuffer | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tracing = tracing
        self._ended = ended
        self._recorder = recorder
        self.members: Mapping[str, Member] = {}
        self._pool, self._clock = pool, clock
        self._spans: dict[str, Span] = {}
        self._checkouts: dict[str, tuple[str, float, Operation, CountedCall]] = {}
        """Operations that hold a slot, while a handler listens for that."""

    def entered(self, operation: Operation, call: CountedCall) -> Operation:
        """Before its submission. Returns it with the trace that it belongs to from here on."""
        self._recorder.submitted(call.program)
        traceparent = operation.traceparent
        if self.tracing.should_trace(traceparent):
            attributes = {
                **operation_attributes(operation, self._pool, call.command, _program(operation, call)),
                names.POOL: self._pool,
            }
            name = names.OPERATION.format(command=call.command)
            span = self.tracing.start(name, attributes, parent=traceparent or None)
            if span is not None:
                self._spans[operation.id] = span
                operation = msgspec.structs.replace(operation, traceparent=traceparent_of(span))
        elif traceparent is not None:
            operation = msgspec.structs.replace(operation, traceparent=unsampled(traceparent))
        if attached("operation.start"):
            emit("operation.start", {}, self._about(operation, call))
        return operation

    def refused(self, operation: Operation, call: CountedCall, error: PoolError) -> None:
        """It was refused before the queue: this is its end."""
        self._recorder.record(call.program, error.outcome, 0.0, code=error.code)
        self._recorder.failed(call.program, error, version=0, worker=None, operation=operation.id)
        self._end_span(operation, error, None, None)
        if self._ended is not None and self._ended.has_room(error.outcome):
            self._ended.add(ended_operation(self._pool, operation, call, error, 0.0, 0.0, 0.0, time.time()))
        if attached("operation.exception") or attached("operation.stop"):
            numbers = {"duration_s": 0.0, "wait_s": 0.0, "run_s": 0.0, "attempts": 0.0}
            self._emit_end(operation, call, error, numbers, None)

    def sent(self, worker: str, tickets: Iterable[Ticket], now: float) -> None:
        """They leave for a worker with a free slot."""
        if not (attached("worker.checkout") or attached("worker.checkin")):
            return
        for ticket in tickets:
            operation = ticket.operation
            self._checkouts[operation.id] = worker, now, operation, ticket.sink
            about = self._about(operation, ticket.sink, worker)
            emit("worker.checkout", {"wait_s": now - ticket.submitted_at}, about)

    def reported(self, report: Report, now: float) -> None:
        """A worker released operations: they ended, or it did not take them."""
        if self._checkouts:
            self._check_in((end.operation_id for end in report.finished), now)
            self._check_in(report.busy, now)
            self._check_in((operation_id for operation_id, _ in report.moved), now)

    def lost(self, worker: str, now: float) -> None:
        self._check_in(
            [operation_id for operation_id, (holder, *_) in self._checkouts.items() if holder == worker], now
        )

    def ended(self, end: TicketEnd, now: float) -> None:
        ticket, report, error = end.ticket, end.report, end.error
        program: str = ticket.sink.program
        latency_s = now - ticket.submitted_at
        wait_s, run_s = latency_s, 0.0
        if report is not None:
            wait_s, run_s = ticket.sent_at - ticket.submitted_at + report.wait_s, report.run_s
        if error is None:
            assert type(report) is Result
            self._recorder.record(program, "ok", latency_s, wait_s, run_s, report.usage)
        else:
            self._recorder.record(program, error.outcome, latency_s, wait_s, run_s, code=error.code)
            version = 0 if report is None else report.program_version
            operation_id = ticket.operation.id
            self._recorder.failed(program, error, version=version, worker=end.worker, operation=operation_id)
        for _ in range(ticket.attempts - 1):
            self._recorder.retried(program)
        operation = ticket.operation
        if self._spans:
            self._end_span(operation, error, end, wait_s)
        if self._ended is not None and self._ended.has_room("ok" if error is None else error.outcome):
            version = 0 if report is None else report.program_version
            self._ended.add(
                ended_operation(
                    self._pool,
                    operation,
                    ticket.sink,
                    error,
                    latency_s,
                    wait_s,
                    run_s,
                    time.time(),
                    version,
                    end.worker,
                    ticket.attempts,
                )
            )
        if attached("operation.stop") or attached("operation.exception"):
            numbers = {
                "duration_s": latency_s,
                "wait_s": wait_s,
                "run_s": run_s,
                "attempts": float(ticket.attempts),
            }
            self._emit_end(operation, ticket.sink, error, numbers, end.worker)

    # --- within ---

    def _check_in(self, ids: Iterable[str], now: float) -> None:
        for operation_id in ids:
            checkout = self._checkouts.pop(operation_id, None)
            if checkout is not None:
                worker, since, operation, call = checkout
                emit("worker.checkin", {"held_s": now - since}, self._about(operation, call, worker))

    def _emit_end(
        self,
        operation: Operation,
        call: CountedCall,
        error: PoolError | None,
        numbers: dict[str, float],
        worker: str | None,
    ) -> None:
        facts = self._about(operation, call, worker)
        facts["outcome"], facts["code"] = ("ok", None) if error is None else (error.outcome, error.code)
        if error is not None:
            emit("operation.exception", {"duration_s": numbers["duration_s"]}, facts)
        emit("operation.stop", numbers, facts)

    def _end_span(
        self, operation: Operation, error: PoolError | None, end: TicketEnd | None, wait_s: float | None
    ) -> None:
        span = self._spans.pop(operation.id, None)
        if span is None:
            return
        if end is not None:
            ticket = end.ticket
            until = ticket.sent_at if ticket.sent_at else self._clock()
            queue = self.tracing.start(
                names.QUEUE, {names.OPERATION_ID: operation.id}, parent=span, at=ticket.submitted_at
            )
            if queue is not None:
                self.tracing.end(queue, at=until)
            facts: dict[str, Any] = {names.ATTEMPTS: ticket.attempts, names.WAIT_S: round(wait_s or 0.0, 6)}
            if end.worker is not None:
                facts[names.WORKER] = end.worker
            if ticket.attempts > 1:
                facts[names.TRIED] = ",".join(ticket.tried[: ticket.attempts])
            if end.report is not None:
                facts[names.RUN_S] = round(end.report.run_s, 6)
                facts[names.OFFLINE] = type(end.report) is Result and end.report.offline
            span.set_attributes(facts)
        if error is None:
            span.set_attribute(names.OUTCOME, "ok")
        self.tracing.end(span, error=error)

    def _about(self, operation: Operation, call: CountedCall, worker: str | None = None) -> dict[str, Any]:
        session = operation.session
        member = self.members.get(worker) if worker is not None else None
        return {
            "pool": self._pool,
            "program": _program(operation, call),
            "command": call.command,
            "operation_id": operation.id,
            "session_hash": None if session is None else session_hash(session, self._pool),
            "worker": worker,
            "slot": None if member is None else member.ordinal,
            "trace_id": trace_id_of(operation.traceparent),
        }


def ended_operation(
    pool: str,
    operation: Operation,
    call: CountedCall,
    error: PoolError | None,
    duration_s: float,
    wait_s: float,
    run_s: float,
    ended_at: float,
    version: int = 0,
    worker: str | None = None,
    attempts: int = 0,
) -> EndedOperation:
    """The record of an operation: names and numbers, nothing that anybody sent or got."""
    session, principal, traceparent = operation.session, operation.principal, operation.traceparent
    return EndedOperation(
        operation.id,
        ended_at,
        duration_s,
        wait_s,
        run_s,
        call.command,
        _program(operation, call),
        version,
        "ok" if error is None else error.outcome,
        None if error is None else error.code,
        _named(error, "exception"),
        _named(error, "at"),
        worker,
        attempts,
        None if traceparent is None or traceparent[-2:] == "00" else trace_id_of(traceparent),
        None if session is None else session_hash(session, pool),
        None if session is None else sealed(session, pool),
        None if principal is None else principal_hash(principal, pool),
        None if principal is None else sealed(principal, pool),
    )


def _named(error: PoolError | None, detail: str) -> str | None:
    name = None if error is None else error.details.get(detail)
    return name[:MAX_TEXT] if isinstance(name, str) else None


def _program(operation: Operation, call: CountedCall) -> str | None:
    """The pool program; users name a session's programs."""
    return call.program if operation.session is None and call.command in _RUNS else None


_RUNS = frozenset({"execute_program", "stream_program"})
