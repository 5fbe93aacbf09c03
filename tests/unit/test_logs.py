"""Log lines: what they belong to, and what they never quote."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest

from dspool.config import PoolConfig
from dspool.errors import WorkerLost
from dspool.messages import Operation, Ping
from dspool.telemetry import events as telemetry
from dspool.telemetry import logs
from dspool.telemetry.logs import current_operation
from dspool.telemetry.pseudonyms import session_hash

CANARY = "canary-55aa"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OPERATION = Operation("op-1", Ping(), 30.0, "ada@example.org", None, f"00-{TRACE}-00f067aa0ba902b7-01")


@pytest.fixture
def written():
    root, ours = logging.getLogger(), logging.getLogger("dspool")
    before, level, handlers = list(root.handlers), ours.level, dict(telemetry._handlers)
    stream = io.StringIO()

    def configure(**settings) -> io.StringIO:
        logs.configure(PoolConfig(name="p", telemetry=settings), worker="p-w0-a", stream=stream)
        return stream

    yield configure
    root.handlers[:] = before
    ours.setLevel(level)
    telemetry._handlers.update(handlers)


def test_every_line_says_which_pool_and_worker_wrote_it(written):
    stream = written()
    logging.getLogger("any.library").warning("hello %s", "you")
    assert stream.getvalue().rstrip().endswith("WARNING any.library: hello you [pool=p worker=p-w0-a]")


def test_a_line_within_an_operation_names_it_by_hash_and_trace(written):
    stream = written(log_format="json")

    async def run() -> None:
        current_operation.set(OPERATION)
        await asyncio.to_thread(logging.getLogger("any.library").warning, "in a thread of its own")

    asyncio.run(run())
    line = json.loads(stream.getvalue())
    assert (line["operation_id"], line["trace_id"]) == ("op-1", TRACE)
    assert line["session_hash"] == session_hash("ada@example.org", "p")
    assert "ada@example.org" not in stream.getvalue()


def test_an_event_is_one_line_whose_own_fields_win(written):
    stream = written(log_format="json")
    telemetry.emit("session.created", {}, {"pool": "p", "session_hash": "abc", "worker": "w9"})
    line = json.loads(stream.getvalue())
    assert (line["event"], line["worker"], line["session_hash"]) == ("session.created", "w9", "abc")


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_traceback_shows_where_and_not_what(written, kind):
    stream = written(log_format=kind)

    def fails() -> None:
        try:
            int(CANARY)
        except ValueError as inner:
            raise WorkerLost("worker w0 died") from inner

    try:
        fails()
    except WorkerLost:
        logging.getLogger("dspool.x").exception("it failed")
    text = stream.getvalue()
    assert "in fails" in text
    assert "ValueError" in text
    assert "WorkerLost: worker w0 died" in text
    assert CANARY not in text


def test_with_content_captured_the_traceback_is_whole(written):
    stream = written(capture_content=True)
    try:
        int(CANARY)
    except ValueError:
        logging.getLogger("dspool.x").exception("it failed")
    assert CANARY in stream.getvalue()


def test_the_level_is_that_of_our_own_lines(written):
    stream = written(log_level="error")
    logging.getLogger("dspool.x").warning("quiet")
    logging.getLogger("other").warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_configuring_twice_writes_each_line_once(written):
    written()
    stream = written()
    logging.getLogger("any.library").warning("once")
    assert stream.getvalue().count("once") == 1
