from __future__ import annotations

import asyncio
import json
import logging

import pytest

from dspool.errors import InvalidRequest, QueueFull
from dspool.messages import Failure, Result
from dspool.telemetry import events as telemetry
from dspool.telemetry.event_log import EventLog
from dspool.telemetry.events import EVENTS, attach, attached, detach, emit, span, undeclared
from dspool.telemetry.logs import JsonFormatter, LogHandler

CANARY = "canary-7f3a"


@pytest.fixture(autouse=True)
def _nobody_stays_attached():
    before = dict(telemetry._handlers)
    telemetry._handlers.update(dict.fromkeys(before, ()))
    yield
    telemetry._handlers.update(before)


@pytest.fixture
def events():
    log = EventLog()
    attach(log)
    return log


class Steps:
    """A clock that goes on by one second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def lines():
    written: list[logging.LogRecord] = []
    logger = logging.Logger("test", logging.DEBUG)
    handler = logging.Handler()
    handler.emit = written.append
    logger.addHandler(handler)
    attach(LogHandler(logger))
    return written


@pytest.mark.parametrize("group", ["pool", "worker", "operation", "queue", "session", "program"])
def test_the_table_has_every_group_with_units_for_every_measurement(group):
    rows = [row for name, row in EVENTS.items() if name.startswith(group + ".")]
    assert rows
    assert all(row.meaning and all(row.measurements.values()) for row in rows)


def test_the_table_has_no_name_twice():
    assert len(EVENTS) == len(telemetry._ROWS)


def test_a_handler_gets_the_events_it_asked_for_and_no_others():
    seen = []
    handler = attach(lambda *event: seen.append(event), ["worker.*", "queue.depth"])
    emit("worker.init", {"duration_s": 0.5}, {"pool": "default", "worker": "w"})
    emit("queue.depth", {"queued": 3}, {"pool": "default"})
    emit("pool.init")
    detach(handler)
    emit("queue.depth", {"queued": 4})
    assert seen == [
        ("worker.init", {"duration_s": 0.5}, {"pool": "default", "worker": "w"}),
        ("queue.depth", {"queued": 3}, {"pool": "default"}),
    ]


@pytest.mark.parametrize("name", ["worker.int", "work", "nothing.*", ""])
def test_attaching_to_an_event_that_does_not_exist_is_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=r"worker\.init"):
        attach(print, [name])


def test_attaching_twice_calls_once(events):
    attach(events)
    emit("pool.init")
    assert events.counts["pool.init"] == 1


def test_a_handler_that_raises_is_detached_and_reported_and_hurts_nobody(events, caplog):
    def broken(event, measurements, metadata):
        raise RuntimeError(CANARY)

    attach(broken, ["pool.*"])
    emit("pool.init", {}, {"pool": "default"})
    emit("pool.init", {}, {"pool": "default"})
    assert events.counts == {"pool.init": 2, "telemetry.handler_failed": 1}
    (failed,) = [seen for seen in events.after() if seen.event == "telemetry.handler_failed"]
    assert failed.metadata["error"] == "RuntimeError"
    assert "broken" in failed.metadata["handler"]
    assert "detached" in caplog.text
    assert CANARY not in caplog.text


def test_handlers_that_fail_on_failures_do_not_go_round_in_circles():
    def broken(event, measurements, metadata):
        raise RuntimeError

    def also_broken(event, measurements, metadata):
        raise RuntimeError

    attach(broken)
    attach(also_broken)
    emit("pool.init")
    assert not attached("pool.init")


def test_an_event_that_is_not_in_the_table_is_logged_and_does_not_raise(caplog):
    emit("pool.explode")
    assert "pool.explode" in caplog.text


def test_undeclared_names_are_found():
    assert undeclared("queue.depth", {"queued": 1, "lenght": 2}, {"pool": "p", "prompt": "x"}) == {
        "lenght",
        "prompt",
    }


def test_a_span_emits_start_and_stop_with_the_measured_time(events):
    with span("operation", {"pool": "default"}, clock=Steps()) as inside:
        inside.measurements["wait_s"] = 0.25
        inside.metadata["worker"] = "w-1"
    start, stop = events.after()
    assert (start.event, stop.event) == ("operation.start", "operation.stop")
    assert stop.measurements == {"duration_s": 1.0, "wait_s": 0.25}
    assert stop.metadata == {"pool": "default", "worker": "w-1", "outcome": "ok", "code": None}


@pytest.mark.parametrize(
    ("result", "outcome", "code"),
    [
        (Result("id", value=1), "ok", None),
        (Failure("id", error=QueueFull("full").to_wire()), "rejected", "queue_full"),
        (InvalidRequest("no"), "client_error", "invalid_request"),
        (ValueError("no"), "error", "ValueError"),
        ({"answer": "yes"}, "ok", None),
    ],
)
def test_an_error_that_is_returned_is_not_ok(events, result, outcome, code):
    with span("operation", {}) as inside:
        assert inside.result(result) is result
    stop = events.after()[-1]
    assert (stop.event, stop.metadata["outcome"], stop.metadata["code"]) == ("operation.stop", outcome, code)


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (QueueFull("full"), "rejected"),
        (TimeoutError(), "timeout"),
        (asyncio.CancelledError(), "cancelled"),
        (ZeroDivisionError(), "error"),
    ],
)
async def test_a_span_around_async_code_tells_of_what_was_raised_and_lets_it_through(events, raised, outcome):
    with pytest.raises(type(raised)):
        async with span("operation", {}):
            raise raised
    last = events.after()[-1]
    assert (last.event, last.metadata["outcome"]) == ("operation.exception", outcome)


def test_a_span_that_nobody_watches_reads_no_clock_and_still_knows_the_outcome():
    clock = Steps()
    with span("operation", {}, clock=clock) as inside:
        inside.result(ValueError("no"))
    assert (clock.now, inside.outcome) == (0.0, "error")


def test_a_span_needs_its_three_events_in_the_table():
    with pytest.raises(KeyError):
        span("lunch", {})


def test_the_log_line_names_event_ids_and_numbers(lines):
    emit("worker.init", {"duration_s": 0.51234567}, {"pool": "default", "worker": "default-w0-a", "slot": 0})
    assert lines[0].getMessage() == "worker.init pool=default worker=default-w0-a slot=0 duration_s=0.512346"
    assert lines[0].dspool["slot"] == 0


def test_json_lines_are_json_with_all_fields(lines):
    emit("worker.terminate", {"age_s": 2.0}, {"pool": "default", "worker": "w", "reason": 'killed "hard"'})
    line = json.loads(JsonFormatter().format(lines[0]))
    assert (line["event"], line["reason"], line["level"]) == ("worker.terminate", 'killed "hard"', "info")
    plain = logging.LogRecord(
        "x", logging.INFO, "", 0, "hello %s", ("you",), (ValueError, ValueError(CANARY), None)
    )
    assert json.loads(JsonFormatter().format(plain))["message"] == "hello you"
    assert CANARY not in JsonFormatter().format(plain)


def test_the_log_shows_nothing_that_the_table_does_not_declare(lines):
    emit("operation.stop", {"duration_s": 1.0}, {"pool": "default", "prompt": CANARY, "outcome": "ok"})
    assert CANARY not in lines[0].getMessage()
    assert CANARY not in json.dumps(lines[0].dspool)


def test_no_event_carries_a_session_id_as_it_is():
    assert all("session" not in row.metadata for row in EVENTS.values())
