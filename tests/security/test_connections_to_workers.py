"""What somebody on the way to a worker's port, or at it, can do without the pool's secret."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspool.messages import Operation, Ping
from dspool.wire import connection
from dspool.wire.connection import FramedProtocol
from dspool.wire.frames import Cancel, Credit, HandOver, Submit, encode
from dspool.wire.handshake import (
    VERSION,
    Challenge,
    Handshake,
    Hello,
    Welcome,
    decode_challenge,
    decode_hello,
    decode_welcome,
    greeting,
)
from dspool.wire.records import MAX_SEALED_BYTES, RECORD_BYTES
from tests.security.connection_ends import REPORT, SECRET, Ends, unframed

# --- the handshake ---


async def test_a_client_and_a_worker_of_one_pool_hear_each_other():
    ends = Ends().greet()
    await ends.client.opened
    ends.arrive_at_worker(b"".join(ends.say(Cancel(["x"]), Cancel(["y"]))))
    ends.worker.send(REPORT)
    ends.arrive_at_client(ends.to_client.take())
    assert ends.at_worker == [Cancel(["x"]), Cancel(["y"])]
    assert ends.at_client == [REPORT]
    assert ends.worker.client == "c1"


async def test_a_client_of_another_pool_is_not_heard():
    ends = Ends(client_secret=b"other" * 7).greet()
    assert ends.to_client.closed
    assert ends.worker.client is None
    ends.refused()


async def test_a_proof_for_one_worker_is_none_at_another():
    ends = Ends(wants="w1").greet()
    assert ends.to_client.closed
    assert ends.worker.client is None
    assert ends.refused().startswith("no connection to worker w1: ")


def _other_client(number: int, data: bytes) -> bytes:
    if number != 1:
        return data
    hello = decode_hello(unframed(data))
    return greeting(Hello(hello.proof, "c2", hello.share, hello.version))


def _reflected(number: int, data: bytes) -> bytes:
    _reflected.hello = data if number == 1 else _reflected.hello  # type: ignore[attr-defined]
    return greeting(Welcome(decode_hello(unframed(_reflected.hello)).proof)) if number == 2 else data  # type: ignore[attr-defined]


_reflected.hello = b""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_other_client, id="the id of another client"),
        pytest.param(_reflected, id="the client's own proof for the worker's"),
        pytest.param(
            lambda number, data: greeting(Challenge(Handshake(b"").share, VERSION)) if number == 0 else data,
            id="another share of the worker",
        ),
        pytest.param(
            lambda number, data: (
                greeting(Hello(decode_hello(unframed(data)).proof, "c1", Handshake(b"").share, VERSION))
                if number == 1
                else data
            ),
            id="another share of the client",
        ),
        pytest.param(
            lambda number, data: data + greeting(Challenge(b"x" * 32, VERSION)) if number == 0 else data,
            id="a second challenge",
        ),
        pytest.param(lambda number, data: data + data if number == 0 else data, id="the challenge twice"),
        pytest.param(lambda number, data: data + data if number == 1 else data, id="the hello twice"),
        pytest.param(
            lambda number, data: greeting(Welcome(b"")) if number == 2 else data, id="an empty proof"
        ),
        pytest.param(lambda number, data: b"" if number == 2 else data, id="no welcome, messages at once"),
    ],
)
async def test_what_is_changed_in_the_handshake_opens_nothing(change):
    ends = Ends().greet(change)
    ends.worker.send(REPORT)
    ends.arrive_at_client(ends.to_client.take())
    ends.client.send(Cancel(["x"]))
    ends.arrive_at_worker(ends.to_worker.take())
    assert ends.at_worker == []
    assert ends.at_client == []
    assert not ends.client.opened.done() or ends.to_client.closed or ends.to_worker.closed


@settings(max_examples=150, deadline=None)
@given(message=st.integers(0, 2), at=st.integers(0, 200), bit=st.integers(0, 7))
def test_no_bit_of_the_handshake_can_be_changed(message, at, bit):
    async def run() -> None:
        def flip(number: int, data: bytes) -> bytes:
            if number != message or not data:
                return data
            changed = bytearray(data)
            changed[at % len(data)] ^= 1 << bit
            return bytes(changed)

        ends = Ends().greet(flip)
        ends.client.send(Cancel(["x"]))
        ends.arrive_at_worker(ends.to_worker.take())
        assert ends.at_worker == []
        assert not ends.client.opened.done()
        ends.refused()

    asyncio.run(run())


async def test_what_one_connection_said_opens_no_other():
    first, second = Ends(), Ends()
    recorded: list[bytes] = []
    first.greet(lambda _, data: recorded.append(data) or data)
    (said,) = first.say(Cancel(["x"]))
    second.to_client.take()
    second.arrive_at_worker(recorded[1] + said)
    assert second.to_client.closed
    assert second.at_worker == []
    fooled = Ends()
    fooled.arrive_at_client(recorded[0])
    fooled.arrive_at_client(recorded[2])
    assert fooled.to_worker.closed
    fooled.refused()


async def test_a_key_of_one_connection_is_none_of_another_nor_of_the_other_direction():
    first, second = Ends().greet(), Ends().greet()
    (said,) = first.say(Cancel(["x"]))
    second.arrive_at_worker(said)
    assert second.to_client.closed
    first.arrive_at_client(said)
    assert first.to_worker.closed
    assert first.at_worker == second.at_worker == first.at_client == []


async def test_a_proof_that_is_right_with_a_share_that_is_no_key_opens_nothing():
    ends = Ends()
    share = decode_challenge(unframed(ends.to_client.take())).share
    for weak in (b"", b"\0" * 32, b"\1" + b"\0" * 31, b"x" * 31):
        ends = Ends()
        share = decode_challenge(unframed(ends.to_client.take())).share
        ours = Handshake(SECRET)
        transcript = ours.transcript(worker="w0", worker_share=share, client="c1", client_share=weak)
        ends.arrive_at_worker(greeting(Hello(ours.proof("client", transcript), "c1", weak, VERSION)))
        assert ends.to_client.closed
        assert ends.worker.client is None


async def test_whoever_has_the_bytes_and_learns_the_secret_later_does_not_have_the_keys():
    ends = Ends()
    recorded: list[bytes] = []
    ends.greet(lambda _, data: recorded.append(data) or data)
    challenge, hello = decode_challenge(unframed(recorded[0])), decode_hello(unframed(recorded[1]))
    late, later = Handshake(SECRET), Handshake(SECRET)
    transcript = late.transcript(
        worker="w0", worker_share=challenge.share, client="c1", client_share=hello.share
    )
    assert late.proven("worker", transcript, decode_welcome(unframed(recorded[2])).proof)
    for share in (challenge.share, hello.share):
        assert late.keys(share, transcript) != later.keys(share, transcript), "the private share is in them"


# --- versions ---


async def test_a_worker_of_an_older_version_is_refused_by_both_versions():
    class OldChallenge(msgspec.Struct, array_like=True, tag="challenge"):
        nonce: bytes

    for old in (OldChallenge(b"n" * 16), Challenge(b"n" * 32, VERSION - 1), Challenge(b"", VERSION + 1)):
        ends = Ends()
        data = encode(old)  # type: ignore[arg-type]
        ends.arrive_at_client(len(data).to_bytes(4, "big") + data)
        assert ends.to_worker.take() == b"", "it says nothing that could be used elsewhere"
        version = getattr(old, "version", 1)
        assert f"version {version} of the exchange, this end version {VERSION}" in ends.refused()


async def test_a_client_of_an_older_version_is_refused_by_both_versions(caplog):
    class OldHello(msgspec.Struct, array_like=True, tag="hello"):
        proof: bytes
        client: str
        nonce: bytes

    ends = Ends()
    data = encode(OldHello(b"p" * 32, "c1", b"n" * 16))  # type: ignore[arg-type]
    ends.arrive_at_worker(len(data).to_bytes(4, "big") + data)
    assert ends.to_client.closed
    assert f"version 1 of the exchange, this end version {VERSION}" in ends.worker.failure


async def test_two_ends_cannot_be_talked_down_to_an_older_version():
    def older(number: int, data: bytes) -> bytes:
        if number == 0:
            return greeting(Challenge(decode_challenge(unframed(data)).share, VERSION))
        hello = decode_hello(unframed(data)) if number == 1 else None
        return greeting(Hello(hello.proof, hello.client, hello.share, VERSION - 1)) if hello else data

    ends = Ends().greet(older)
    assert ends.to_client.closed
    ends.refused()


# --- what follows ---

MESSAGES = [
    Cancel(["x"]),
    Credit("y", 3),
    HandOver(["s"]),
    Submit([Operation("z", Ping(), 1.0)]),
    Cancel(["w"]),
]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nobody_in_between_changes_drops_repeats_moves_or_puts_in_anything(data):
    async def run() -> None:
        ends = Ends().greet()
        records = ends.say(*MESSAGES)
        at = data.draw(st.integers(0, len(records) - 1), "record")
        kind = data.draw(st.sampled_from(["flip", "drop", "repeat", "move", "put in", "cut", "glue"]), "kind")
        changed, kept = list(records), at
        if kind == "flip":
            bit = data.draw(st.integers(0, 8 * len(records[at]) - 1), "bit")
            one = bytearray(records[at])
            one[bit // 8] ^= 1 << bit % 8
            changed[at] = bytes(one)
        elif kind == "drop":
            del changed[at]
        elif kind == "repeat":
            changed.insert(at + 1, records[at])
            kept = at + 1
        elif kind == "move":
            to = data.draw(st.integers(0, len(records) - 1).filter(lambda to: to != at), "to")
            changed.insert(to, changed.pop(at))
            kept = min(at, to)
        elif kind == "put in":
            changed.insert(at, data.draw(st.binary(min_size=1, max_size=60), "bytes"))
        elif kind == "cut":
            changed[at] = records[at][: data.draw(st.integers(0, len(records[at]) - 1), "length")]
        else:
            # Two records under one header, and one record under two.
            changed[at] = records[at][:3] + bytes([records[at][3] ^ 1]) + records[at][4:]
        stream = b"".join(changed)
        step = data.draw(st.integers(1, len(stream)), "step")
        for start in range(0, len(stream), step):
            if not ends.to_client.closed:
                ends.arrive_at_worker(stream[start : start + step])
        assert ends.at_worker == MESSAGES[: len(ends.at_worker)]
        assert len(ends.at_worker) <= kept
        # What is missing at the very end can only be waited for, as with any connection.
        assert ends.to_client.closed or len(stream) <= sum(map(len, records)) + MAX_SEALED_BYTES

    asyncio.run(run())


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 1000])
async def test_records_are_found_however_the_bytes_are_cut(step):
    ends = Ends().greet()
    stream = b"".join(ends.say(*MESSAGES))
    for start in range(0, len(stream), step):
        ends.arrive_at_worker(stream[start : start + step])
    assert ends.at_worker == MESSAGES


NOT_NEXT = "a record is not the next one of the other end"


async def test_a_record_that_is_sent_back_to_its_sender_does_not_open():
    ends = Ends().greet()
    (said,) = ends.say(Cancel(["x"]))
    ends.arrive_at_client(said)
    assert ends.client.failure == NOT_NEXT
    assert ends.to_worker.closed
    ends.worker.send(REPORT)
    ends.arrive_at_worker(ends.to_client.take())
    assert ends.worker.failure == NOT_NEXT
    assert ends.at_client == ends.at_worker == []


async def test_whether_a_message_goes_on_cannot_be_changed():
    ends = Ends().greet()
    (said,) = ends.say(Cancel(["x"]))
    ends.arrive_at_worker(bytes([said[0] | 0x80]) + said[1:])
    assert ends.worker.failure == NOT_NEXT


async def test_a_long_message_travels_in_short_records_and_is_whole_or_not_at_all():
    text = "x" * (3 * RECORD_BYTES + 7)
    ends = Ends().greet()
    (said,) = ends.say(Cancel([text]))
    ends.arrive_at_worker(said[: RECORD_BYTES * 2])
    assert len(ends.worker._buffer) <= MAX_SEALED_BYTES + 4, "unopened bytes are never more than a record"
    ends.arrive_at_worker(said[RECORD_BYTES * 2 :])
    assert ends.at_worker == [Cancel([text])]
    await asyncio.sleep(0)  # so much was a turn
    ends.arrive_at_worker(said[: MAX_SEALED_BYTES + 4])
    assert ends.to_client.closed, "its first record is another's turn"


@pytest.mark.parametrize("size", [MAX_SEALED_BYTES + 1, 2**31 - 1, 2**31 + MAX_SEALED_BYTES + 1, 2**32 - 1])
async def test_a_length_that_somebody_made_up_is_not_waited_for(size):
    ends = Ends().greet()
    ends.arrive_at_worker(size.to_bytes(4, "big"))
    assert ends.to_client.closed


async def test_much_that_arrives_at_once_is_decoded_in_several_turns_of_the_loop():
    ends = Ends().greet()
    messages = [Cancel([f"{number}" * (connection.TURN_BYTES // 4)]) for number in range(10)]
    ends.arrive_at_worker(b"".join(ends.say(*messages)))
    turns = [len(ends.at_worker)]
    assert ends.to_client.paused, "nothing more is read meanwhile"
    while len(ends.at_worker) < 10:
        await asyncio.sleep(0)
        turns.append(len(ends.at_worker))
    assert turns == [4, 7, 10], "a turn is four of them, and what has arrived has room for seven"
    assert not ends.to_client.paused
    assert ends.at_worker == messages


async def test_a_message_longer_than_allowed_ends_the_connection_before_it_is_whole(monkeypatch):
    monkeypatch.setattr(connection, "MAX_FRAME_BYTES", 2 * RECORD_BYTES)
    ends = Ends().greet()
    (said,) = ends.say(Cancel(["x" * (4 * RECORD_BYTES)]))
    ends.arrive_at_worker(said[: 3 * (MAX_SEALED_BYTES + 4)])
    assert ends.to_client.closed
    assert "more than" in ends.worker.failure


@pytest.mark.parametrize(
    "said",
    [
        b"\xc1",
        b"",
        encode(["submit", [["x", {"command": "ping"}, "soon"]]]),  # type: ignore[arg-type]
        encode(["report", [], [], [], 0, 8, 0]),  # type: ignore[arg-type]
        encode(Hello(b"p", "c1", b"n")),  # type: ignore[arg-type]
        b"\x92\xa6cancel\x91\xa1\xff",
        b"\x92\xa6cancel" + b"\x91" * 5000 + b"\x90",
    ],
    ids=["garbage", "nothing", "wrong type", "a worker's message", "hello", "no text", "deep"],
)
async def test_one_who_has_the_secret_and_talks_nonsense_is_dropped_and_what_came_before_counts(said):
    ends = Ends().greet()
    (before,) = ends.say(Cancel(["x"]))
    assert ends.client._out is not None
    nonsense = b"".join(ends.client._out._sealer.seal([said]))
    ends.arrive_at_worker(before + nonsense + b"".join(ends.say(Cancel(["after"]))))
    assert ends.to_client.closed
    assert ends.at_worker == [Cancel(["x"])]


async def test_a_defect_in_handling_ends_the_connection_and_says_nothing_of_the_message(caplog):
    ends = Ends().greet()

    def fail(*_):
        raise KeyError("secret")

    ends.worker._on_message = fail  # type: ignore[method-assign]
    ends.arrive_at_worker(b"".join(ends.say(Cancel(["x"]))))
    assert ends.to_client.closed
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text


async def test_an_end_that_does_not_read_is_dropped_when_too_much_waits_for_it(monkeypatch):
    monkeypatch.setattr(FramedProtocol, "dead_bytes", 1000)
    ends = Ends().greet()
    ends.client.pause_writing()
    ends.client.send(Cancel(["x" * 900]))
    ends.client.send(Cancel(["x" * 900]))
    ends.client.send(Cancel([]))
    assert not ends.to_worker.written, "what its transport has no room for is not even sealed"
    assert ends.to_worker.closed
