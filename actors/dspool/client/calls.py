"""One operation as its caller knows it: checked and encoded before it is queued, then its end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Container
from typing import cast

import msgspec

from dspool.config import PoolConfig
from dspool.core.dispatch.dispatcher import Ticket, TicketEnd
from dspool.core.metrics.tally import UNKNOWN
from dspool.errors import InvalidRequest, PoolError
from dspool.messages import (
    READ_ONLY,
    AnyCommand,
    ExecuteProgram,
    Operation,
    OperationOptions,
    Result,
    StreamEvent,
    StreamProgram,
)
from dspool.wire.frames import encode_command

_TEXT_LIMIT = 500
_LARGEST_FLOAT = sys.float_info.max
_RESEND_S = 0.001
"""An operation that waited less goes out with its original deadline."""


class PendingCall:
    """The name that counts an operation, and where its end goes. The `sink` of its ticket.

    `programs` are the pool's programs.
    """

    __slots__ = ("command", "end", "program", "size", "stream")

    def __init__(
        self,
        command: AnyCommand,
        session: str | None,
        size: int,
        end: asyncio.Future[TicketEnd] | None,
        stream: OpenStream | None,
        programs: Container[str],
    ) -> None:
        self.command: str = type(command).__struct_config__.tag  # type: ignore[assignment]
        # A bounded name: users name the programs of sessions, and callers may make up any name.
        self.program = self.command
        if session is None and isinstance(command, (ExecuteProgram, StreamProgram)):
            self.program = command.program if command.program in programs else UNKNOWN
        self.size = size
        """Bytes of the encoded command."""
        self.end = end
        self.stream = stream

    def deliver(self, end: TicketEnd) -> None:
        if self.stream is not None:
            self.stream.events.put_nowait(end)
        elif self.end is not None:
            if not self.end.done():
                self.end.set_result(end)
            # Ticket, call, future and end would hold each other until the next search for cycles.
            self.end = None


class OpenStream:
    """Where the events of one stream wait for their reader."""

    __slots__ = ("events", "unread")

    def __init__(self) -> None:
        self.events: asyncio.Queue[StreamEvent | TicketEnd] = asyncio.Queue()
        self.unread = 0
        """Events that the reader took since the last credit."""


def operation_of(
    command: AnyCommand, options: OperationOptions, *, operation_id: str, timeout_s: float
) -> tuple[Operation, int]:
    """The operation to queue, its command already encoded, and the size of that in bytes.

    `operation_id` and `timeout_s` are the defaults for options that name none.

    It encodes in the caller's own step: what cannot be sent fails there, later changes by the caller have no effect,
    and a second attempt costs no second encoding.

    Raises:
        InvalidRequest: what is wrong, by name.
        PayloadTooLarge: it would not fit into a frame.
    """
    if (own_id := options.get("operation_id")) is not None:
        operation_id = own_id
    if (own_timeout_s := options.get("timeout_s")) is not None:
        timeout_s = own_timeout_s
    session, principal = options.get("session"), options.get("principal")
    traceparent = options.get("traceparent")
    if type(timeout_s) not in (int, float) or not 0 < timeout_s <= _LARGEST_FLOAT:
        raise InvalidRequest(f"timeout_s: wanted a positive, finite number of seconds, got {timeout_s!r:.80}")
    _check_text("operation_id", operation_id)
    if session is not None:
        _check_text("session", session)
    if principal is not None:
        _check_text("principal", principal)
    if traceparent is not None and (type(traceparent) is not str or not traceparent.isascii()):
        traceparent = None  # by W3C's rule: an unreadable one counts as none
    encoded = encode_command(command)
    operation = Operation(
        operation_id,
        cast(AnyCommand, encoded),
        float(timeout_s),
        session,
        principal,
        traceparent,
        options.get("limits"),
    )
    return operation, len(encoded)


def is_idempotent(command: AnyCommand, session: str | None, config: PoolConfig) -> bool:
    """Whether it may run again, unless its options say so."""
    if type(command) in READ_ONLY:
        return True
    if session is None and isinstance(command, ExecuteProgram):
        program = config.programs.get(command.program)
        return program is not None and program.idempotent
    return False


def outgoing(ticket: Ticket, now: float) -> Operation:
    """The operation to send, with the rest of its deadline."""
    if now - ticket.submitted_at < _RESEND_S:
        return ticket.operation
    return msgspec.structs.replace(ticket.operation, timeout_s=max(0.0, ticket.deadline - now))


def size_of(ticket: Ticket) -> int:
    size: int = ticket.sink.size
    return size


def result_of(end: TicketEnd) -> Result:
    """The caller's view of an end.

    Raises:
        PoolError: the operation did not succeed.
    """
    if end.error is not None:
        raise named(end.error, end.ticket.operation)
    result, ticket = end.report, end.ticket
    assert type(result) is Result
    return msgspec.structs.replace(result, wait_s=ticket.sent_at - ticket.submitted_at + result.wait_s)


def named(error: PoolError, operation: Operation) -> PoolError:
    """The error with the id of the operation that it ended."""
    error.details["operation_id"] = operation.id
    return error


def _check_text(name: str, text: str) -> None:
    if type(text) is not str or not 0 < len(text) <= _TEXT_LIMIT or not text.isprintable():
        raise InvalidRequest(f"{name}: wanted 1 to {_TEXT_LIMIT} printable characters")
