from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from dspool.config import PoolConfig
from dspool.errors import InvalidRequest, PayloadTooLarge
from dspool.messages import CreateProgram, ExecuteProgram, Operation, Ping, Result, SetVariable
from dspool.testing.host import LoopbackPool, Script
from dspool.wire import connection, frames
from dspool.wire.connection import ClientEnd, FramedProtocol, WorkerEnd
from dspool.wire.frames import (
    Cancel,
    Challenge,
    Hello,
    Report,
    Submit,
    Welcome,
    batches,
    decode_from_client,
    encode_command,
    frame,
    prove,
    sendable,
    too_deep,
)
from dspool.worker import outbox

SECRET = b"s3cret"


async def until(condition, turns: int = 20_000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


class Pipe:
    """A transport that keeps what is written; `unread` is what the other end has not taken."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False
        self.unread = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return self.unread

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        return None


class Collects(FramedProtocol):
    def __init__(self) -> None:
        super().__init__(msgspec.msgpack.decode)
        self.messages: list[Any] = []
        self.batches = 0
        self.pipe = Pipe()
        self.connection_made(self.pipe)  # type: ignore[arg-type]

    def received(self, message: Any) -> None:
        if message == "raise":
            raise KeyError("secret")
        self.messages.append(message)

    def batch_received(self) -> None:
        self.batches += 1


def framed(value: Any) -> bytes:
    data = msgspec.msgpack.encode(value)
    return len(data).to_bytes(4, "big") + data


# --- frames ---


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 1000])
def test_frames_are_found_however_the_bytes_are_cut(step):
    values = ["a", {"b": [1, 2]}, "", "c" * 50, None]
    stream = b"".join(framed(value) for value in values)
    end = Collects()
    for start in range(0, len(stream), step):
        end.data_received(stream[start : start + step])
    assert end.messages == values
    assert not end.pipe.closed


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff....", framed("x")[:4] + b"\xc1", b"\x00\x00\x00\x00", b"GET / HTTP/1.1\r\n\r\n" * 3],
)
def test_garbage_ends_the_connection_and_what_came_before_was_taken_in(garbage):
    end = Collects()
    end.data_received(framed("before") + garbage + framed("after"))
    assert end.messages == ["before"]
    assert end.pipe.closed
    assert end.batches == 1


def test_a_defect_in_handling_ends_the_connection_and_says_nothing_of_the_message(caplog):
    end = Collects()
    end.data_received(framed("before") + framed("raise") + framed("after"))
    assert end.messages == ["before"]
    assert end.pipe.closed
    assert end.batches == 1
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text


def test_nesting_beyond_the_stack_ends_the_connection():
    deep = b"\x91" * 5000 + b"\x90"
    end = Collects()
    end.data_received(len(deep).to_bytes(4, "big") + deep)
    assert end.pipe.closed


def test_an_end_that_does_not_read_is_dropped_when_too_much_waits_for_it():
    end = Collects()
    end.pause_writing()
    end.pipe.unread = FramedProtocol.dead_bytes
    end.send(Cancel([]))
    assert not end.pipe.closed
    end.pipe.unread += 1
    end.send(Cancel([]))
    assert end.pipe.closed


# --- proving who one is ---


def worker_end(events: list[Any]) -> tuple[WorkerEnd, Pipe]:
    end = WorkerEnd(
        SECRET,
        "w0",
        on_message=lambda _, message: events.append(message),
        on_batch=lambda: None,
        on_lost=lambda _: events.append("lost"),
        on_room=lambda _: events.append("room"),
    )
    pipe = Pipe()
    end.connection_made(pipe)  # type: ignore[arg-type]
    return end, pipe


def nonce_of(pipe: Pipe) -> bytes:
    challenge = frames.decode_from_worker(bytes(pipe.written[4:]))
    assert isinstance(challenge, Challenge)
    return challenge.nonce


async def test_a_client_that_knows_the_secret_is_heard():
    events: list[Any] = []
    end, pipe = worker_end(events)
    end.data_received(bytes(frame(Hello(prove(SECRET, "client", nonce_of(pipe)), "c1", b"n"))))
    end.data_received(bytes(frame(Cancel(["x"]))))
    assert events == [Cancel(["x"])]
    assert end.client == "c1"


@pytest.mark.parametrize(
    "first",
    [
        lambda nonce: Hello(prove(b"wrong", "client", nonce), "c1", b"n"),
        lambda nonce: Hello(prove(SECRET, "worker", nonce), "c1", b"n"),
        lambda nonce: Hello(b"", "c1", b"n"),
        lambda nonce: Hello(prove(SECRET, "client", nonce), "c" * 2000, b"n"),
        lambda nonce: Submit([Operation("x", Ping(), 1.0)]),
        lambda nonce: Cancel(["x"]),
    ],
)
async def test_nobody_else_is(first):
    events: list[Any] = []
    end, pipe = worker_end(events)
    end.data_received(bytes(frame(first(nonce_of(pipe)))) + bytes(frame(Cancel(["y"]))))
    assert pipe.closed
    assert events == []


async def test_a_second_hello_ends_the_connection():
    end, pipe = worker_end([])
    hello = bytes(frame(Hello(prove(SECRET, "client", nonce_of(pipe)), "c1", b"n")))
    end.data_received(hello)
    end.data_received(hello)
    assert pipe.closed


def client_end(events: list[Any]) -> tuple[ClientEnd, Pipe]:
    end = ClientEnd(
        SECRET,
        "c1",
        "w0",
        on_report=lambda _, report: events.append(report),
        on_chunk=lambda _, chunk: events.append(chunk),
        on_lost=lambda _, why: events.append(why),
    )
    pipe = Pipe()
    end.connection_made(pipe)  # type: ignore[arg-type]
    return end, pipe


def greeting(pipe: Pipe, secret: bytes = SECRET, worker: str = "w0") -> bytes:
    hello = decode_from_client(bytes(pipe.written[4:]))
    assert isinstance(hello, Hello)
    return bytes(frame(Welcome(prove(secret, "worker", hello.nonce), worker)))


REPORT = Report([], [], [], 0, 8, 0)


async def test_a_worker_that_knows_the_secret_is_believed():
    events: list[Any] = []
    end, pipe = client_end(events)
    end.data_received(bytes(frame(Challenge(b"n"))))
    end.data_received(greeting(pipe))
    await end.opened
    end.data_received(bytes(frame(REPORT)))
    assert events == [REPORT]


@pytest.mark.parametrize(("secret", "worker"), [(b"wrong", "w0"), (SECRET, "w1")])
async def test_an_impostor_or_another_worker_on_that_port_is_not(secret, worker):
    events: list[Any] = []
    end, pipe = client_end(events)
    end.data_received(bytes(frame(Challenge(b"n"))))
    end.data_received(greeting(pipe, secret, worker) + bytes(frame(REPORT)))
    assert pipe.closed
    end.connection_lost(None)
    with pytest.raises(ConnectionError):
        await end.opened
    assert events == [], "what never opened is not lost"


@pytest.mark.parametrize("first", [REPORT, Welcome(b"", "w0")])
async def test_a_worker_that_speaks_out_of_turn_is_dropped(first):
    events: list[Any] = []
    end, pipe = client_end(events)
    end.data_received(bytes(frame(first)))
    assert pipe.closed
    assert events == []
    end.connection_lost(None)
    with pytest.raises(ConnectionError):
        await end.opened


async def test_one_that_connects_and_says_nothing_is_dropped_and_forgotten(monkeypatch):
    monkeypatch.setattr(connection, "HELLO_TIMEOUT_S", 0.01)
    async with LoopbackPool() as pool:
        worker = await pool.start_worker()
        member = pool.membership.workers[0]
        reader, writer = await asyncio.open_connection(member.host, member.port)
        await until(lambda: len(worker._peers) == 1)
        await reader.read()  # until the worker hangs up
        await until(lambda: not worker._peers)
        writer.close()


async def test_garbage_on_one_connection_leaves_others_alone():
    async with LoopbackPool(PoolConfig(name="t", slots_per_worker=2)) as pool:
        worker = await pool.start_worker()
        client, rude = await pool.start_client(), await pool.start_client()
        link = rude._links.get("w0")
        # Valid work, then rubbish, in one packet: the worker must not be left waiting for the rest of a batch.
        rubbish = bytes(frame(Submit([Operation("x", SetVariable("a", 1), 5.0, "s")]))) + b"\xff" * 100
        link.transport.write(rubbish)
        for _ in range(3):
            assert (await client.run(Ping())).value == "pong"
        await client.run(SetVariable("a", 2), session="t")
        await until(lambda: worker._operations.running == 0)


# --- what may be sent ---


@dataclass
class Strange:
    secret: str

    @property
    def __dict__(self):  # type: ignore[override]
        raise ValueError(self.secret)


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"question": object()}, "inputs.question: Encoding objects of type object"),
        ({"ok": 1, "n": 2**64}, "inputs.n: an integer beyond 64 bits"),
        ({"n": -(2**70)}, "inputs.n: an integer"),
        ({"text": "\ud800 secret"}, "inputs.text: text that is not valid Unicode"),
        ({"list": [1, [object()]]}, "inputs.list: Encoding objects of type object"),
        ({1: "secret"}, r"Expected `str`, got `int`"),
        (["secret"], r"Expected `object`, got `array`"),
    ],
)
def test_what_cannot_be_sent_is_named_by_field_and_type_never_by_content(inputs, named):
    with pytest.raises(InvalidRequest, match=named) as refused:
        encode_command(ExecuteProgram("p", inputs))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("command", ["ping", None, {"command": "ping"}, 5, ExecuteProgram])
def test_what_is_no_command_is_refused(command):
    with pytest.raises(InvalidRequest, match="command"):
        encode_command(command)


@pytest.mark.parametrize(
    "command", [ExecuteProgram(5, {}), SetVariable(None, 1), CreateProgram("p", "not a dict")]
)
def test_a_field_of_the_wrong_type_is_refused_here_and_not_at_the_worker(command):
    with pytest.raises(InvalidRequest, match="Expected"):
        encode_command(command)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "command",
    [
        ExecuteProgram("p", {"x": nested(120)}),
        SetVariable("x", nested(120)),
        CreateProgram("p", {"x": nested(110)}),
    ],
)
def test_what_a_worker_might_not_be_able_to_decode_is_refused(command):
    with pytest.raises(InvalidRequest, match="levels of nesting"):
        encode_command(command)


def test_depth_is_counted_without_walking_shared_parts_again_and_again():
    assert not too_deep(nested(frames.MAX_DEPTH - 1))
    assert too_deep(nested(frames.MAX_DEPTH))
    loop: list[Any] = []
    loop += [loop, loop]
    assert too_deep(loop)


def test_a_command_larger_than_a_frame_is_refused(monkeypatch):
    monkeypatch.setattr(frames, "MAX_PAYLOAD_BYTES", 1000)
    with pytest.raises(PayloadTooLarge, match=r"inputs.b: 2,003 bytes, more than 1,000"):
        encode_command(ExecuteProgram("p", {"a": "x", "b": "y" * 2000}))


def test_batches_keep_order_and_stay_moderate_but_for_single_giants(monkeypatch):
    monkeypatch.setattr(frames, "BATCH_BYTES", 10)
    values = ["a" * 4, "b" * 6, "c" * 30, "d", "e" * 9, "f"]
    pieces = list(batches(values, len))
    assert pieces == [values[:2], values[2:3], values[3:5], values[5:]]
    assert list(batches([], len)) == []


def test_a_raw_part_decodes_to_what_it_was():
    command = ExecuteProgram("p", {"x": [1.5, None, {"y": "é"}]})
    operation = Operation("x", encode_command(command), 3.0, "s")  # type: ignore[arg-type]
    submit = decode_from_client(bytes(frame(Submit([operation]))[4:]))
    assert submit.operations == [Operation("x", command, 3.0, "s")]
    finished = Result("x", value={"outputs": {"answer": 1}})
    report = Report([sendable(finished)], [], [], 0, 1, 0)  # type: ignore[list-item]
    assert frames.decode_from_worker(bytes(frame(report)[4:])).finished == [finished]


# --- size and speed ---


async def test_many_large_results_at_once_leave_in_several_frames(monkeypatch):
    monkeypatch.setattr(frames, "BATCH_BYTES", 100_000)
    monkeypatch.setattr(connection, "MAX_FRAME_BYTES", 300_000)
    async with LoopbackPool(PoolConfig(name="t", slots_per_worker=50)) as pool:
        pool.programs["big"] = Script("inline", lambda inputs, *_: {"text": inputs["text"]})
        await pool.start_worker()
        client = await pool.start_client()
        texts = [chr(97 + n % 26) * 60_000 for n in range(50)]
        results = await asyncio.gather(*(client.run(ExecuteProgram("big", {"text": text})) for text in texts))
        assert [result.text for result in results] == texts
        assert pool.reported_dead == []


async def test_a_payload_of_ten_megabytes_goes_both_ways_for_less_than_a_second_of_cpu():
    async with LoopbackPool(PoolConfig(name="t")) as pool:
        pool.programs["echo"] = Script("inline", lambda inputs, *_: inputs)
        await pool.start_worker()
        client = await pool.start_client()
        text = "x" * 10_000_000
        began = time.process_time()
        assert (await client.run(ExecuteProgram("echo", {"text": text}))).outputs["text"] == text
        assert time.process_time() - began < 1.0


async def test_a_client_that_does_not_read_is_given_nothing_new_and_others_go_on(monkeypatch):
    monkeypatch.setattr(FramedProtocol, "full_bytes", 100_000)
    async with LoopbackPool(PoolConfig(name="t", slots_per_worker=4, max_queue=1000)) as pool:
        pool.programs["big"] = Script("inline", lambda *_: {"text": "x" * 1_000_000})
        worker = await pool.start_worker()
        deaf, other = await pool.start_client(), await pool.start_client()
        link = deaf._links.get("w0")
        link.transport.pause_reading()
        peer = next(peer for peer in worker._peers if peer.client == deaf.id)
        for number in range(100):
            link.send(Submit([Operation(f"x{number}", ExecuteProgram("big", {}), 30.0)]))
            assert (await other.run(Ping())).value == "pong"
            if peer.full:
                break
        assert peer.full, "the sockets between them hold less than a hundred megabytes"
        before = peer.transport.get_write_buffer_size()
        for number in range(100, 200):
            link.send(Submit([Operation(f"x{number}", ExecuteProgram("big", {}), 30.0)]))
        assert (await other.run(Ping())).value == "pong"
        assert peer.transport.get_write_buffer_size() < before + 200_000
        assert worker._operations.running == 0
        link.transport.resume_reading()
        await until(lambda: not peer.full, turns=1_000_000)
        assert len((await deaf.run(ExecuteProgram("big", {}))).text) == 1_000_000


def test_an_outbox_that_nobody_may_read_from_keeps_nothing():
    out = outbox.Outbox(lambda: (0, 1))
    peer = outbox.ClientPeer(None)  # type: ignore[arg-type]
    out.drop(peer)
    out.finished(peer, Result("x"))
    out.moved(peer, "x", "w1")
    out.handed_over(peer, "s", True)
    assert not out
    assert peer.finished == []
