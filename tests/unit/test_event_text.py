"""Events as sentences."""

from __future__ import annotations

import pytest

from dspool.telemetry.event_log import LoggedEvent
from dspool.telemetry.event_text import sentence
from dspool.telemetry.events import EVENTS

WORKER = "default-w0-a1b2c3"


def said(event, numbers, about):
    return sentence(LoggedEvent(1, 1.0, event, "info", "supervisor", numbers, about))


@pytest.mark.parametrize(
    ("event", "numbers", "about", "text"),
    [
        ("pool.decision", {"target": 1}, {"action": "hold", "reason": "head-room"}, "Kept 1 worker: head-room"),
        ("pool.decision", {"target": 4, "overflow": 1}, {"action": "grow"}, "Grew to 4 workers and 1 overflow"),
        ("pool.error", {}, {"reason": f"worker {WORKER} died: killed"}, f"Worker {WORKER} died: killed"),
        ("pool.recovery", {"duration_s": 0.077}, {"reason": "worker w0 died"},
         "The pool has all its workers again after 77 ms (worker w0 died)"),
        ("worker.terminate", {"age_s": 64.2, "operations": 1}, {"worker": WORKER, "reason": "killed"},
         f"Worker {WORKER} ended after 64.2 s, 1 operation done: killed"),
        ("session.moved", {"duration_s": 0.012}, {"session_hash": "ab", "worker": "w1", "from_worker": "w0"},
         "Session ab moved from w0 to w1 in 12 ms"),
        ("program.deployed", {"duration_s": 200.0, "workers": 3}, {"program": "qa", "version": 2},
         "qa v2 is on all 3 workers after 3.33 min"),
        ("pool.resize", {"from": 2, "to": 4}, {"reason": "backlog"}, "Size 2 -> 4: backlog"),
    ],
)  # fmt: skip
def test_an_event_is_a_sentence_that_a_person_would_say(event, numbers, about, text):
    assert said(event, numbers, about) == text


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_has_a_sentence_whatever_of_it_is_known(event):
    row = EVENTS[event]
    for numbers in ({}, dict.fromkeys(row.measurements, 1.5)):
        for about in ({}, dict.fromkeys(row.metadata, "x")):
            text = said(event, numbers, about)
            # Or a program's name.
            assert text[0].isupper() or text.startswith("x")
            assert not text.endswith((".", ":", " "))
            assert "None" not in text
