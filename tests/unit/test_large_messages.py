"""Large payloads: one copy on their way out, and none of it is made before the transport has room for it."""

from __future__ import annotations

import asyncio
import sys
import weakref
from typing import Any, NamedTuple

import pytest
from msgspec import Raw, Struct

from dspool.config import PoolConfig
from dspool.errors import InvalidRequest
from dspool.messages import ExecuteProgram, Operation, Result, SetVariable
from dspool.testing.host import LoopbackPool, Script
from dspool.wire import frames
from dspool.wire.connection import FramedProtocol
from dspool.wire.frames import (
    BATCH_BYTES,
    Report,
    Submit,
    decode_from_client,
    decode_from_worker,
    encode,
    encode_command,
    encoded,
    sendable,
)
from dspool.wire.outgoing import Outgoing
from dspool.wire.records import HEADER_BYTES, RECORD_BYTES, Opener, Sealer, length

KEY = b"k" * 32
TEXT = "x" * (BATCH_BYTES + 1)


class Transport:
    """Has room for so many records, and then says that it is full."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.records: list[bytes] = []
        self.out: Outgoing | None = None
        self.closed = False
        self.loses = False
        """Whether it finds the connection lost when it writes."""

    def write(self, record: bytes) -> None:
        self.records.append(record)
        self.closed = self.closed or self.loses
        if len(self.records) >= self.room and self.out is not None:
            self.out.pause()

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def outgoing(room: int) -> tuple[Outgoing, Transport]:
    transport = Transport(room)
    out = transport.out = Outgoing(transport, Sealer(KEY))
    return out, transport


def opened(records: list[bytes]) -> list[bytes]:
    opener = Opener(KEY, 64 * RECORD_BYTES)
    messages = [opener.open(record[:HEADER_BYTES], record[HEADER_BYTES:]) for record in records]
    assert all(length(record[:HEADER_BYTES]) == len(record) - HEADER_BYTES for record in records)
    return [bytes(message) for message in messages if message is not None]


# --- what leaves ---


# The bytes that stand in a payload's place, as the length of the id before it and within numbers behind it.
@pytest.mark.parametrize("id_", ["x", "x" * 193, "x" * 0xC1C1, "é" * 100])
@pytest.mark.parametrize("number", [3.0, 0xC1C1C1C1C1C1])
def test_a_large_payload_is_sent_as_it_was_encoded_and_arrives_within_its_message(id_, number):
    command = ExecuteProgram("p", {"text": TEXT})
    raw = encode_command(command)
    operation = Operation(id_, command, number, "s")
    parts = encoded(Submit([Operation(id_, raw, number, "s")]))
    assert parts[1] is raw, "it was copied"
    assert decode_from_client(b"".join(parts)) == Submit([operation])

    result = Result(id_, value={"outputs": {"text": TEXT}}, wait_s=number)
    raw = sendable(result)
    report = Report([raw], ["b"], [("m", "w")], 1, int(number), 1, [("s", True)])
    parts = encoded(report)
    assert parts[1] is raw, "it was copied"
    decoded = decode_from_worker(b"".join(parts))
    assert decoded == Report([result], ["b"], [("m", "w")], 1, int(number), 1, [("s", True)])


def test_small_payloads_travel_in_one_piece():
    small = Submit([Operation("x", encode_command(ExecuteProgram("p", {"x": 1})), 3.0)])
    assert encoded(small) == (encode(small),)


def test_what_a_transport_has_no_room_for_is_sealed_when_it_has_and_leaves_in_order():
    out, transport = outgoing(room=2)
    long = b"a" * (3 * RECORD_BYTES)
    out.send((b"head", Raw(long), b"tail"))
    out.send((b"second",))
    assert len(transport.records) == 2
    assert out.waiting_bytes == len(long) + len(b"headtailsecond")
    while out.waiting_bytes:
        transport.room += 2
        out.resume()
    assert opened(transport.records) == [b"head" + long + b"tail", b"second"]


def test_a_short_message_waits_behind_a_transport_that_is_full():
    out, transport = outgoing(room=1)
    out.send((b"first",))
    out.send((b"second",))
    assert opened(transport.records) == [b"first"]
    transport.room = 10
    out.resume()
    out.send((b"third",))
    assert opened(transport.records) == [b"first", b"second", b"third"]


async def test_a_connection_is_closed_when_all_of_a_long_message_has_left():
    end, transport = FramedProtocol(decode_from_client), Transport(room=2)
    end.connection_made(transport)
    end.secure(seal=KEY, open=KEY)
    transport.out = end._out
    end.send(Submit([Operation("x", sendable(ExecuteProgram("p", {"t": "x" * 10 * RECORD_BYTES})), 3.0)]))
    end.close()
    assert not transport.closed
    end.send(Submit([]))
    for _ in range(100):  # whatever still arrives has room, or its transport would end it
        room = end.get_buffer(-1)
        assert len(room) > 0
        end.buffer_updated(len(room))
    while not transport.closed:
        transport.room += 2
        end.resume_writing()
        await asyncio.sleep(0)
    assert len(opened(transport.records)) == 1, (
        "what was said after the close has left, or not all that was before"
    )


async def test_a_connection_that_closes_behind_a_long_message_is_lost_once():
    # Transports of asyncio that are closed while they say that they have room lose it twice, and log that this failed.
    async with LoopbackPool(PoolConfig(name="t")) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        [peer] = worker._listener.clients
        peer.transport.pause_reading()
        link = client._links.get("w0")
        raw = sendable(SetVariable("x", "x" * 40 * RECORD_BYTES))
        link.send(Submit([Operation("x", raw, 3.0, "s")]))
        assert link._out.waiting_bytes
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        client._links.drop("w0")
        peer.transport.resume_reading()
        await link.closed
        await asyncio.sleep(0)
        assert not errors


async def test_an_end_whose_other_one_catches_up_says_once_that_there_is_room(monkeypatch):
    monkeypatch.setattr(FramedProtocol, "full_bytes", 2 * RECORD_BYTES)
    end, transport = FramedProtocol(decode_from_client), Transport(room=1)
    end.connection_made(transport)
    end.secure(seal=KEY, open=KEY)
    transport.out = end._out
    said: list[bool] = []
    end.has_room = lambda: said.append(end.full)
    for _ in range(3):
        end.send(Submit([Operation("x", sendable(SetVariable("x", "x" * RECORD_BYTES)), 3.0)]))
    assert end.full
    for _ in range(10):
        transport.room += 2
        end.resume_writing()
    assert said == [False]


async def test_many_large_operations_at_once_are_no_sign_that_a_worker_does_not_read(monkeypatch):
    monkeypatch.setattr(FramedProtocol, "dead_bytes", 10_000_000)
    async with LoopbackPool(PoolConfig(name="t", slots_per_worker=20)) as pool:
        pool.programs["echo"] = Script("inline", lambda inputs, *_: inputs)
        await pool.start_worker()
        client = await pool.start_client()
        command = ExecuteProgram("echo", {"text": "x" * 1_000_000})
        results = await asyncio.gather(*(client.run(command, idempotent=False) for _ in range(20)))
        assert [len(result.text) for result in results] == 20 * [1_000_000]
        assert pool.reported_dead == []


async def test_an_end_that_something_still_holds_lets_go_of_all_payloads_when_its_connection_is_lost():
    end, transport = FramedProtocol(decode_from_client), Transport(room=1)
    end.connection_made(transport)
    end.secure(seal=KEY, open=KEY)
    transport.out = end._out
    raw = sendable(SetVariable("x", "x" * 3 * RECORD_BYTES))
    held = sys.getrefcount(raw)
    end.send(Submit([Operation("x", raw, 3.0)]))
    assert sys.getrefcount(raw) > held
    arriving = next(Sealer(KEY).seal([bytes(2 * RECORD_BYTES)]))
    for start in range(0, len(arriving), HEADER_BYTES):
        piece = arriving[start : start + HEADER_BYTES]
        end.get_buffer(-1)[: len(piece)] = piece
        end.buffer_updated(len(piece))
    assert end._opener is not None
    begun = weakref.ref(end._opener)
    transport.out = None
    end.connection_lost(None)
    assert sys.getrefcount(raw) == held, "what waited to be sent is held"
    assert begun() is None, "what had arrived of a message is held"


async def test_an_end_whose_connection_is_lost_is_not_aborted_again():
    # Transports of asyncio lose a connection twice then, and log that this failed.
    end, transport = FramedProtocol(decode_from_client), Transport(room=1)
    end.connection_made(transport)
    end.connection_lost(None)
    end.abort()
    assert not transport.closed
    assert end.closing


def test_nothing_more_is_sealed_for_a_connection_that_a_write_finds_lost():
    out, transport = outgoing(room=100)
    transport.loses = True
    out.send((bytes(5 * RECORD_BYTES),))
    assert len(transport.records) == 1


# --- what is checked ---


class Key(Struct, frozen=True):
    x: int = 0


class Wrong(NamedTuple):
    command: Any
    why: str


@pytest.mark.parametrize(
    ("command", "why"),
    [
        Wrong(ExecuteProgram(5, {"text": TEXT}), r"Expected `str`, got `int` - at `\$.program`"),
        Wrong(ExecuteProgram("p", {"text": TEXT, 1: "x"}), "Expected `str`, got `int` - at `key`"),
        Wrong(ExecuteProgram("p", {"text": TEXT, "x": {Key(): 1}}), "not a command"),
        Wrong(SetVariable(None, TEXT), r"Expected `str`, got `None` - at `\$.name`"),
    ],
)
def test_a_large_command_of_the_wrong_type_is_refused_as_a_small_one_is(command, why):
    with pytest.raises(InvalidRequest, match=why):
        encode_command(command)


def test_long_texts_are_not_decoded_only_to_be_checked(monkeypatch):
    decoded: list[int] = []
    monkeypatch.setattr(frames, "_decode_command", lambda data: decoded.append(len(data)))
    for command in (ExecuteProgram("p", {"text": TEXT, "x": [1]}), SetVariable("x", TEXT)):
        assert len(encode_command(command)) > BATCH_BYTES
    assert max(decoded) < 100


async def test_many_bytes_that_arrive_need_no_more_room_than_one_record():
    end = FramedProtocol(decode_from_client)
    end.connection_made(Transport(room=1))
    end.secure(seal=KEY, open=KEY)
    received: list[Any] = []
    end.received = received.append
    message = Submit([Operation("x", ExecuteProgram("p", {"text": "x" * 9 * RECORD_BYTES}), 3.0)])
    stream = b"".join(Sealer(KEY).seal([encode(message)]))
    while stream:
        room = end.get_buffer(-1)
        assert 0 < len(room) <= RECORD_BYTES + 64
        room[: len(stream)] = stream[: len(room)]
        end.buffer_updated(min(len(room), len(stream)))
        stream = stream[len(room) :]
    assert received == [message]
    await asyncio.sleep(0)
