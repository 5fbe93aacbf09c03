from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import Raw

from dspool.config import PoolConfig
from dspool.errors import InternalError, InvalidRequest, PayloadTooLarge
from dspool.messages import (
    CreateProgram,
    ExecuteProgram,
    Operation,
    Ping,
    Result,
    SetVariable,
    StreamEvent,
    StreamProgram,
)
from dspool.testing.host import LoopbackPool, Script
from dspool.wire import connection, frames
from dspool.wire.connection import FramedProtocol
from dspool.wire.frames import (
    Report,
    Submit,
    Unsendable,
    batches,
    check_depth,
    decode_from_client,
    encode,
    encode_command,
    sendable,
)
from dspool.worker import outbox


async def until(condition, turns: int = 20_000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


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
        ({"question": object()}, "inputs.question: object, which is no JSON value"),
        ({"ok": 1, "n": 2**64}, "inputs.n: an integer beyond 64 bits"),
        ({"n": -(2**70)}, "inputs.n: an integer"),
        ({"text": "\ud800 secret"}, "inputs.text: text that is not valid Unicode"),
        ({"list": [1, [object()]]}, r"inputs.list\[1\]\[0\]: object, which is no JSON value"),
        ({1: "secret"}, r"Expected `str`, got `int`"),
        (["secret"], r"Expected `object`, got `array`"),
    ],
)
def test_what_cannot_be_sent_is_named_by_field_and_type_never_by_content(inputs, named):
    with pytest.raises(InvalidRequest, match=named) as refused:
        encode_command(ExecuteProgram("p", inputs))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("encoded", [b"\xa1\xff", b"\xc1", b""])
def test_a_value_that_somebody_encoded_already_is_refused_if_nobody_can_decode_it(encoded):
    with pytest.raises(InvalidRequest, match="not a command"):
        encode_command(SetVariable("x", Raw(encoded)))


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
    loop: list[Any] = []
    loop += [loop, loop]
    check_depth(nested(frames.MAX_DEPTH - 1))
    for deep in (nested(frames.MAX_DEPTH), (nested(frames.MAX_DEPTH),), loop):
        with pytest.raises(Unsendable, match="levels of nesting"):
            check_depth(deep)


@pytest.mark.parametrize("whole", [list, tuple, lambda value: {"x": value}])
async def test_what_a_client_might_not_be_able_to_decode_ends_its_operation_and_no_other(whole):
    deep: list[Any] = []
    for _ in range(frames.MAX_DEPTH):
        deep = [deep]

    async def streams(inputs, session, emit):
        await emit(StreamEvent("field", "x", whole([deep])))
        return {}

    async with LoopbackPool(PoolConfig(name="t")) as pool:
        pool.programs |= {
            "ends": Script("inline", lambda *_: whole([deep])),
            "streams": Script("async", streams),
        }
        gate = asyncio.Event()

        async def wait(inputs, session, emit):
            await gate.wait()
            return {"x": 1}

        pool.programs["waits"] = Script("async", wait)
        await pool.start_worker()
        client = await pool.start_client()
        other = asyncio.ensure_future(client.run(ExecuteProgram("waits", {}), idempotent=False))
        with pytest.raises(InternalError, match="levels of nesting"):
            await client.run(ExecuteProgram("ends", {}))
        with pytest.raises(InternalError, match="levels of nesting"):
            async for _ in client.stream(StreamProgram("streams", {})):
                pass
        gate.set()
        assert (await other).x == 1


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
    submit = decode_from_client(encode(Submit([operation])))
    assert submit.operations == [Operation("x", command, 3.0, "s")]
    finished = Result("x", value={"outputs": {"answer": 1}})
    report = Report([sendable(finished)], [], [], 0, 1, 0)  # type: ignore[list-item]
    assert frames.decode_from_worker(encode(report)).finished == [finished]


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
        peer = next(peer for peer in worker._listener.clients if peer.client == deaf.id)
        for number in range(100):
            link.send(Submit([Operation(f"x{number}", ExecuteProgram("big", {}), 30.0)]))
            assert (await other.run(Ping())).value == "pong"
            if peer.full:
                break
        assert peer.full, "the sockets between them hold less than a hundred megabytes"
        before = peer._out.waiting_bytes
        for number in range(100, 200):
            link.send(Submit([Operation(f"x{number}", ExecuteProgram("big", {}), 30.0)]))
        assert (await other.run(Ping())).value == "pong"
        assert peer._out.waiting_bytes < before + 200_000
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
