"""Server-sent events: what goes out, when, and what happens when the reader is slow or goes away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from http_doubles import FakePool, FixedPools, assert_problem, client_of, until

from dspool.errors import Conflict, ProgramError, QueueFull
from dspool.messages import StreamEvent, StreamProgram
from dspool_serve.api.application import Application
from dspool_serve.http.event_stream import EventStream, event
from dspool_serve.pools import Settings

real_sleep = asyncio.sleep
STREAM = "/v1/pools/default/programs/qa/stream"
TOLD = [
    StreamEvent("status", "", "thinking"),
    StreamEvent("token", "answer", "Ber"),
    StreamEvent("token", "answer", "keley"),
    StreamEvent("field", "answer", "Berkeley"),
]


def events_of(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


class Connection:
    """The server's side of one connection; `room` is how many body parts the client takes before it stops reading."""

    def __init__(self, path: str, body: bytes = b'{"inputs": {}}', *, room: int = 1000) -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
        }
        self._body = body
        self._room = asyncio.Semaphore(room)
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: Any) -> None:
        await self._room.acquire()
        self.sent.append(message)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def test_a_stream_tells_tokens_fields_and_status_and_ends_with_the_result():
    pool = FakePool()
    pool.told = TOLD
    async with client_of(pool) as http:
        answer = await http.post(STREAM, json={"inputs": {"question": "where?"}, "timeout_s": 3})
    assert answer.headers["content-type"] == "text/event-stream"
    events = events_of(answer.text)
    assert events[:4] == [
        ("status", {"text": "thinking"}),
        ("token", {"field": "answer", "text": "Ber"}),
        ("token", {"field": "answer", "text": "keley"}),
        ("field", {"field": "answer", "value": "Berkeley"}),
    ]
    assert events[4][0] == "final"
    assert events[4][1]["outputs"] == {"question": "where?"}
    assert pool.asked[0]["command"] == StreamProgram("qa", {"question": "where?"})
    assert pool.asked[0]["timeout_s"] == 3


async def test_a_stream_of_a_session_names_the_session():
    pool = FakePool()
    async with client_of(pool) as http:
        await http.post("/v1/pools/default/sessions/ada/programs/p/stream", json={"inputs": {}})
    assert pool.asked[0]["session"] == "ada"


async def test_what_is_refused_before_the_first_event_has_its_own_status():
    pool = FakePool()
    pool.fail_with = QueueFull("no room", retry_after_s=2)
    async with client_of(pool) as http:
        answer = await http.post(STREAM, json={"inputs": {}})
    assert_problem(answer, 429, "queue_full")
    assert answer.headers["retry-after"] == "2"


async def test_an_error_after_the_first_event_is_an_event_and_the_last_one():
    pool = FakePool()
    pool.told = TOLD[:1]
    pool.fail_with = ProgramError("it broke")
    async with client_of(pool) as http:
        answer = await http.post(STREAM, json={"inputs": {}})
    assert answer.status_code == 200
    name, body = events_of(answer.text)[-1]
    assert name == "error"
    assert body["code"] == "program_error"


async def test_a_client_that_goes_away_ends_the_operation_at_once():
    pool = FakePool()
    pool.told = TOLD[:1]
    app = Application(FixedPools(pool))
    connection = Connection("/v1/pools/default/programs/slow/stream")
    task = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    await pool.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.cancelled == 1


async def test_a_reader_that_does_not_read_holds_the_source_back():
    pool = FakePool()
    pool.told = [StreamEvent("token", "answer", str(number)) for number in range(100)]
    app = Application(FixedPools(pool))
    connection = Connection(STREAM, room=5)
    task = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(connection.sent) == 5
    assert pool.taken <= 6
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.cancelled == 1


async def test_a_quiet_stream_sends_comments_and_from_then_on_errors_are_events():
    silent = asyncio.Event()

    async def source() -> Any:
        await silent.wait()
        raise ProgramError("it broke")
        yield b""

    connection = Connection("/")
    stream = EventStream(source(), heartbeat_s=0.001)
    task = asyncio.create_task(stream.send(connection.send))
    await until(lambda: connection.text.count(": heartbeat\n\n") > 1)
    assert connection.sent[0]["status"] == 200
    silent.set()
    await task
    assert events_of(connection.text)[-1][1]["code"] == "program_error"
    assert connection.sent[-1] == {"type": "http.response.body", "body": b""}


async def test_only_a_stream_that_said_nothing_since_the_last_beat_sends_a_comment(monkeypatch):
    beats: asyncio.Queue[None] = asyncio.Queue()
    monkeypatch.setattr("dspool_serve.http.event_stream.asyncio.sleep", lambda _: beats.get())
    words: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def source() -> Any:
        while (word := await words.get()) is not None:
            yield word

    async def settled() -> str:
        for _ in range(10):
            await real_sleep(0)
        return connection.text

    connection = Connection("/")
    before = asyncio.all_tasks()
    task = asyncio.create_task(EventStream(source(), heartbeat_s=1).send(connection.send))
    await settled()
    words.put_nowait(b"word")
    assert await settled() == "word"
    beats.put_nowait(None)
    assert await settled() == "word"
    beats.put_nowait(None)
    assert await settled() == "word: heartbeat\n\n"
    words.put_nowait(None)
    await task
    await settled()
    assert asyncio.all_tasks() == before, "something goes on after the end"


async def test_a_defect_in_a_stream_is_told_without_inside_information():
    async def source() -> Any:
        raise ValueError("secret")
        yield b""

    connection = Connection("/")
    await EventStream(source(), heartbeat_s=10).send(connection.send)
    assert connection.sent[0]["status"] == 500
    assert "secret" not in connection.text


async def test_text_with_line_breaks_stays_one_event():
    assert event("token", {"text": "a\n\nevent: final\ndata: x"}).count(b"\n") == 3


async def test_the_progress_of_a_warm_up_is_streamed_and_its_report_is_the_end():
    async with client_of(FakePool()) as http:
        answer = await http.post("/v1/pools/default/warm", json={"strategy": "staged"})
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["status", "status", "final"]
    assert events[0][1]["kind"] == "begin"
    assert events[2][1]["strategy"] == "staged"


async def test_who_takes_events_only_sees_how_far_a_deployment_is():
    pool = FakePool()
    async with client_of(pool) as http:
        path, spec = "/v1/pools/default/programs/qa/versions", {"signature": "a -> b"}
        answer = await http.post(path, json=spec, headers={"accept": "text/event-stream"})
        events = events_of(answer.text)
        assert [(name, data.get("phase")) for name, data in events] == [
            ("status", "canary"), ("status", "done"), ("final", None),
        ]  # fmt: skip
        assert events[-1][1] == {"program": "qa", "version": 3}
        both = await http.post(path, json=spec, headers={"accept": "application/json, text/event-stream"})
        assert (both.status_code, both.json()) == (201, {"program": "qa", "version": 3})
        pool.fail_with = Conflict("a deployment is running")
        refused = await http.post(path, json=spec, headers={"accept": "text/event-stream"})
        assert_problem(refused, 409, "conflict")


async def test_events_of_the_pool_are_followed_from_where_the_client_left_off():
    pool = FakePool()
    app = Application(FixedPools(pool), Settings())
    connection = Connection("/v1/pools/default/events/stream")
    connection.scope["method"] = "GET"
    connection.scope["headers"] = [(b"last-event-id", b"7")]
    task = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    await until(lambda: len(events_of(connection.text)) > 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.asked[0] == {"since": 7}
    assert "id: 8\nevent: event\n" in connection.text
