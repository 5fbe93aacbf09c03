"""The messages between a client and a worker, once both have proven who they are.

A message is msgpack. The data of users (commands) and of programs (results, events) is encoded on its own first, as
`msgspec.Raw`: what cannot be sent fails there, for that operation alone, and a batch splits into messages of moderate
size without encoding anything twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from dspool.errors import InvalidRequest, PayloadTooLarge
from dspool.messages import AnyCommand, Failure, Operation, Result, StreamEvent
from dspool.messages.plain import MAX_DEPTH, NotPlain, plain

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Of one message. Decoding holds the loop: so much text for 30 to 75 ms, many small values for 0.2 us a byte. What a
caller sends over HTTP is bounded far below (`messages.limits`)."""
MAX_PAYLOAD_BYTES = MAX_FRAME_BYTES - 64 * 1024
"""Of one command or one result: leaves room for ids, error details and the frame's own fields."""
BATCH_BYTES = 64 * 1024
"""A batch that grows beyond this goes out in several messages, so that decoding one does not hold the loop."""


# --- client to worker ---


class Submit(Struct, frozen=True, array_like=True, tag="submit"):
    operations: list[Operation]


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    """Stop these operations. A report still follows for each, when its slot is really free.

    One that names none asks for a sign of life: a report of the load comes at once, of workers of any version that
    know it.
    """

    ids: list[str]


class Credit(Struct, frozen=True, array_like=True, tag="credit"):
    """The client has consumed `count` events of a stream; the worker may send as many more."""

    id: str
    count: int


class HandOver(Struct, frozen=True, array_like=True, tag="hand_over"):
    """Give these sessions up, unless something of theirs runs or waits. A `Report` answers for each."""

    sessions: list[str]


# --- worker to client ---


class Report(Struct, frozen=True, array_like=True, tag="report"):
    """What happened since the last report, and the worker's load as it is now."""

    finished: list[Result | Failure]
    busy: list[str]
    """Operations it did not take: no slot. They did not start."""
    moved: list[tuple[str, str]]
    """(operation, worker): the operation's session belongs to that worker. It did not start."""
    running: int
    """Operations that fill a slot of the worker now, of all clients."""
    slots: int
    own: int
    """How many of `running` are this client's."""
    handed_over: list[tuple[str, bool]] = []
    """(session, granted): the answer to a `HandOver`."""


class Chunk(Struct, frozen=True, array_like=True, tag="chunk"):
    id: str
    events: list[StreamEvent]


FromClient = Submit | Cancel | Credit | HandOver
FromWorker = Report | Chunk

encode = msgspec.msgpack.Encoder().encode


_GAP: Final = Raw(b"\xc1" * 5)
"""No text has such a byte, and the length of the id that stands before it has four bytes at most."""


def encoded(message: FromClient | FromWorker) -> tuple[bytes] | tuple[bytes, Raw, bytes]:
    """`message` in one piece; or around the one large payload that it carries, which is not copied."""
    if type(message) is Submit:
        operations = message.operations
        if len(operations) == 1 and _is_large(payload := operations[0].command):
            rest: Any = Submit([msgspec.structs.replace(operations[0], command=_GAP)])
            return _around(payload, rest)
    elif type(message) is Report:
        finished = message.finished
        if len(finished) == 1 and _is_large(end := finished[0]):
            return _around(end, msgspec.structs.replace(message, finished=[_GAP]))
    return (encode(message),)


def _is_large(payload: Any) -> bool:
    return type(payload) is Raw and len(payload) > BATCH_BYTES


def _around(payload: Any, message: FromClient | FromWorker) -> tuple[bytes, Raw, bytes]:
    before, _, after = encode(message).partition(_GAP)
    return before, payload, after


decode_from_client = msgspec.msgpack.Decoder(FromClient).decode
_decode_command = msgspec.msgpack.Decoder(AnyCommand).decode


_LONG_INTEGER = 1
"""The extension type of msgpack for what it has no room for: the digits of an integer beyond 64 bits."""


def _extended(code: int, data: memoryview) -> Any:
    return int(bytes(data)) if code == _LONG_INTEGER else msgspec.msgpack.Ext(code, bytes(data))


decode_from_worker = msgspec.msgpack.Decoder(FromWorker, ext_hook=_extended).decode


# --- payloads ---

_NOT_FINITE: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
"""How msgpack begins a number that is not finite; no text holds these bytes."""


class Unsendable(Exception):
    """`str()` says what is wrong, in types and sizes, never in content.

    `is_foreign`: it is of a class that msgpack knows nothing of.
    """

    def __init__(self, why: str, *, is_foreign: bool = False) -> None:
        super().__init__(why)
        self.is_foreign = is_foreign


def sendable(value: Any) -> Raw:
    """`value` encoded. Integers of what a program gives may have any size.

    Raises:
        Unsendable: it is not plain data, or too large, or too deep.
    """
    return Raw(_packed(value))


def _packed(value: Any) -> bytes:
    try:
        encoded = encode(value)
    except OverflowError:
        if not isinstance(value, Result | StreamEvent):
            raise Unsendable("an integer beyond 64 bits") from None
        return _packed(msgspec.structs.replace(value, value=_with_long_integers(value.value)))
    except UnicodeEncodeError:
        raise Unsendable("text that is not valid Unicode") from None
    except RecursionError:
        raise Unsendable(f"more than {MAX_DEPTH} levels of nesting") from None
    except Exception as refused:
        # msgspec's own message names the type. Errors of foreign classes' hooks may quote anything.
        named = type(refused) is TypeError and str(refused).startswith("Encoding objects of type")
        why = str(refused) if named else "a value that fails to encode"
        raise Unsendable(why, is_foreign=True) from None
    if len(encoded) > MAX_PAYLOAD_BYTES:
        raise Unsendable(f"{len(encoded):,} bytes, more than {MAX_PAYLOAD_BYTES:,}")
    return encoded


def _with_long_integers(value: Any) -> Any:
    kind = type(value)
    if kind is int and not -(2**63) <= value < 2**64:
        return msgspec.msgpack.Ext(_LONG_INTEGER, str(value).encode())
    if kind is dict:
        return {key: _with_long_integers(item) for key, item in value.items()}
    return [_with_long_integers(item) for item in value] if kind is list else value


def check_depth(value: Any) -> None:
    """Refuse lists and objects that are nested deeper than the other end is sure to decode.

    Raises:
        Unsendable: they are.
    """
    if type(value) not in _CONTAINERS:
        return
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for whole in level
            for part in (whole.values() if type(whole) is dict else whole)
            if type(part) in _CONTAINERS
        ]
        if not level:
            return
        if len(level) > 1:
            # Each once, however often it occurs: only the number of levels counts.
            level = list({id(part): part for part in level}.values())
    raise Unsendable(f"more than {MAX_DEPTH} levels of nesting")


_CONTAINERS = frozenset({dict, list, tuple})


def encode_command(command: AnyCommand) -> Raw:
    """`command`, checked field by field and encoded. Values of other classes become JSON (see `messages.plain`).

    Raises:
        InvalidRequest: it is no command, or a field has the wrong type or cannot be sent; says which.
        PayloadTooLarge: it is larger than a frame.
    """
    if not isinstance(command, Struct):
        raise InvalidRequest(
            f"a command is wanted, such as ExecuteProgram(...), not a {type(command).__name__}"
        )
    for name in command.__struct_fields__:
        try:
            check_depth(getattr(command, name))
        except Unsendable as refused:
            raise InvalidRequest(f"{name}: {refused}", field=name) from None
    try:
        encoded = _packed(command)
    except Unsendable as refused:
        if refused.is_foreign and (made := _made_plain(command)) is not command:
            return encode_command(made)
        field, why = _culprit(command) or ("command", str(refused))
        if "bytes, more than" in why:
            raise PayloadTooLarge(f"{field}: {why}", field=field) from None
        raise InvalidRequest(f"{field}: {why}; only plain JSON values can be sent", field=field) from None
    if b"\xcb" in encoded and _NOT_FINITE.search(encoded) is not None:
        _refuse_not_finite(command)
    try:
        _decode_command(encoded if len(encoded) <= BATCH_BYTES else encode(_without_texts(command)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as refused:
        # Refused here: at the worker it would end the connection and all its operations.
        raise InvalidRequest(f"not a command: {str(refused)[:300]}") from None
    return Raw(encoded)


def _without_texts(command: AnyCommand) -> AnyCommand:
    """`command` with empty texts in the place of its texts: those are right as soon as they are encoded."""
    changed: dict[str, Any] = {}
    for _, name, key, value in _values(command):
        if type(value) is not str:
            continue
        if key is None:
            changed[name] = ""
        else:
            changed.setdefault(name, dict(getattr(command, name)))[key] = ""
    return msgspec.structs.replace(command, **changed)


def plain_command(command: AnyCommand) -> AnyCommand:
    """`command` with plain JSON in the place of all values, for what speaks JSON. Raises what `encode_command` does."""
    encode_command(command)
    changed: dict[str, Any] = {}
    for path, name, key, value in _values(command):
        if key is None:
            changed[name] = _plain_at(path, value)
        else:
            changed.setdefault(name, {})[key] = _plain_at(path, value)
    return msgspec.structs.replace(command, **changed)


def _made_plain(command: AnyCommand) -> AnyCommand:
    """`command` with plain data in the place of whatever else is in it; itself if there is nothing.

    Raises:
        InvalidRequest: a value that no JSON stands for; says which.
    """
    changed: dict[str, Any] = {}
    for path, name, key, value in _values(command):
        try:
            sendable(value)
        except Unsendable as refused:
            if not refused.is_foreign:
                continue
            if key is None:
                changed[name] = _plain_at(path, value)
            else:
                changed.setdefault(name, dict(getattr(command, name)))[key] = _plain_at(path, value)
    return msgspec.structs.replace(command, **changed) if changed else command


def _refuse_not_finite(command: AnyCommand) -> None:
    for path, _, _, value in _values(command):
        _plain_at(path, value)


def _plain_at(path: str, value: Any) -> Any:
    try:
        return plain(value)
    except NotPlain as refused:
        path += refused.path
        why = f"{path}: {refused.why}; only plain JSON values can be sent"
        raise InvalidRequest(why, field=path) from None


def _values(command: AnyCommand) -> Iterator[tuple[str, str, Any, Any]]:
    """What callers fill in, with its path, its field, and its key there if the field is a dict."""
    for name in command.__struct_fields__:
        value = getattr(command, name)
        if type(value) is dict:
            yield from ((f"{name}.{str(key)[:80]}", name, key, part) for key, part in value.items())
        else:
            yield name, name, None, value


def _culprit(command: AnyCommand) -> tuple[str, str] | None:
    """Which field cannot be sent, and why."""
    for name in command.__struct_fields__:
        value = getattr(command, name)
        parts = value.items() if type(value) is dict else ()
        for path, part in [*((f"{name}.{str(key)[:80]}", part) for key, part in parts), (name, value)]:
            try:
                sendable(part)
            except Unsendable as refused:
                return path, str(refused)
    return None


T = TypeVar("T")


def batches(values: list[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """`values` in order, in pieces of about `BATCH_BYTES` at most, or of one."""
    piece: list[T] = []
    total = 0
    for value in values:
        bytes_ = size(value)
        if piece and total + bytes_ > BATCH_BYTES:
            yield piece
            piece, total = [], 0
        piece.append(value)
        total += bytes_
    if piece:
        yield piece
