"""How long an operation waits for a worker, and whether and when another attempt follows."""

from __future__ import annotations

import pytest

from dspool.core.dispatch.dispatcher import DispatchConfig
from dspool.core.dispatch.retries import EndRate, bounce_pause
from dspool.errors import DeadlineExceeded, WorkerLost
from dspool.messages import Operation, Ping
from tests.unit.dispatch_world import RATE_LIMITED, World, members

# --- time ---


def test_an_operation_waits_for_a_slot_no_longer_than_the_checkout_timeout():
    world = World(DispatchConfig(checkout_timeout_s=2.0), a=1)
    world.submit()
    world.submit()
    assert world.d.next_wake() == 2.0
    world.tick(2.0)
    assert isinstance(world.ends["o2"], DeadlineExceeded)
    assert world.ends["o2"].phase == "queue"
    world.tick(28.0)
    assert world.ends["o1"].phase == "run"
    assert world.d.queued == world.d.running == 0


def test_an_operation_that_comes_back_after_its_checkout_timeout_ends_at_once():
    world = World(DispatchConfig(checkout_timeout_s=2.0), a=1, b=1)
    world.submit()
    world.tick(3.0)
    world.do("busy", world.sent[0][0], "o1")
    assert isinstance(world.ends["o1"], DeadlineExceeded)


def test_nothing_past_its_deadline_is_sent():
    world = World(a=1)
    world.submit()
    world.submit(timeout=1.0)
    world.submit()
    world.now = 2.0  # no tick yet
    assert world.finish("a", "o1") == [("a", "o3")]
    world.tick(0.0)
    assert isinstance(world.ends["o2"], DeadlineExceeded)


# --- retries ---


def retry_pause(world, name):
    """Seconds until the operation, which rests, is sent again."""
    started = world.now
    while True:
        wake = world.d.next_wake()
        assert wake is not None
        if any(sent == name for _, sent in world.tick(wake - world.now)):
            return world.now - started


def test_backoff_doubles_up_to_its_limit_and_attempts_are_bounded():
    world = World(DispatchConfig(attempts=5, backoff_s=0.1, backoff_max_s=0.35), a=1)
    world.submit()
    pauses = []
    for _ in range(4):
        world.finish("a", "o1", RATE_LIMITED)
        pauses.append(retry_pause(world, "o1"))
    assert pauses == pytest.approx([0.1, 0.2, 0.35, 0.35])
    world.finish("a", "o1", RATE_LIMITED)
    assert world.ends["o1"].code == RATE_LIMITED["code"]


def test_a_back_end_that_asks_for_a_longer_pause_gets_it():
    world = World(a=1)
    world.submit()
    world.finish("a", "o1", {**RATE_LIMITED, "details": {"retry_after_s": 3.0}})
    assert retry_pause(world, "o1") == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("idempotent", "timeout", "retry_after_s", "code"),
    [
        (False, 30.0, 0.1, "model_rate_limited"),
        (True, 2.0, 2.0, "model_rate_limited"),
        (True, 30.0, 0.1, "model_auth_failed"),
    ],
    ids=["not idempotent", "beyond the deadline", "would fail again"],
)
def test_an_error_stands_when_a_retry_is_wrong_or_useless(idempotent, timeout, retry_after_s, code):
    world = World(a=1)
    world.submit(idempotent=idempotent, timeout=timeout)
    world.finish("a", "o1", {"code": code, "message": "", "details": {"retry_after_s": retry_after_s}})
    assert world.ends["o1"].code == code


def test_retries_are_paid_from_one_budget_that_submissions_fill():
    world = World(DispatchConfig(budget_burst=2, budget_ratio=0.1, max_queue=100), a=40)
    for number in range(1, 6):
        world.submit()
        world.finish("a", f"o{number}", RATE_LIMITED)
    assert len(world.ends) == 3
    for number in range(6, 16):
        world.submit()
        world.finish("a", f"o{number}")
    assert len(world.ends) == 13
    world.submit()
    world.finish("a", "o16", RATE_LIMITED)
    assert "o16" not in world.ends


def test_a_dead_workers_idempotent_operations_go_first_and_the_others_end():
    world = World(a=2, b=1)
    for idempotent in (True, False, True, True):
        world.submit(idempotent=idempotent)
    on_a = [name for worker, name in world.sent if worker == "a"]
    (on_b,) = [name for worker, name in world.sent if worker == "b"]
    world.do("lost", "a", "killed")
    lost = [name for name in on_a if name == "o2"]
    assert list(world.ends) == lost
    assert all(isinstance(world.ends[name], WorkerLost) for name in lost)
    again = next(name for name in on_a if name not in lost)
    assert world.finish("b", on_b) == [("b", again)]


def test_an_operation_that_was_busy_has_used_up_no_attempt():
    world = World(DispatchConfig(attempts=2), a=1)
    world.submit()
    for _ in range(3):
        world.do("busy", "a", "o1")
        world.do("load", "a", running=0, slots=1)
    world.finish("a", "o1", RATE_LIMITED)
    assert "o1" not in world.ends


def test_the_worker_of_each_attempt_is_known_and_one_that_did_not_take_it_is_none_of_them():
    world = World(DispatchConfig(attempts=3), a=1)
    world.d.submit(Operation("x", Ping(), 30.0), idempotent=True, sink=None, now=0.0)
    assert world.act() == [("a", "x")]
    (ticket,) = world.d._matcher.worker("a").tickets.values()
    assert ticket.tried == ("a",)
    world.d.members(members(a=1, b=1), now=0.0)
    world.d.lost("a", "killed", now=0.0)
    assert world.act() == [("b", "x")]
    assert ticket.tried == ("a", "b")
    world.d.members(members(b=1, c=1), now=0.0)
    world.d.busy("b", "x", now=0.0)
    assert world.act() == [("c", "x")]
    assert ticket.tried[: ticket.attempts] == ("a", "c")


def test_an_operation_that_was_not_sent_when_its_worker_died_is_sent_elsewhere():
    world = World(a=1)
    world.d.submit(Operation("x", Ping(), 30.0), idempotent=False, sink=None, now=0.0)
    world.d.members(members(a=1, b=1), now=0.0)
    world.d.lost("a", "killed", now=0.0)
    assert world.act() == [("b", "x")]
    assert world.ends == {}


def test_a_worker_that_cannot_be_reached_is_left_alone_for_a_moment():
    world = World(a=1, b=1)
    ((first, name),) = world.submit()
    other = "b" if first == "a" else "a"
    assert world.do("not_sent", first, [name]) == [(other, name)]
    assert world.submit() == []
    assert world.tick(0.2) == [(first, "o2")]


def test_two_workers_that_name_each_other_as_the_owner_are_asked_less_and_less():
    world = World(a=1, b=1)
    ((at, name),) = world.submit("s")
    asked = 0
    while world.now < 10.0 and name not in world.ends:
        asked += 1
        other = "b" if at == "a" else "a"
        sent = world.do("moved", at, name, other)
        while not sent and name not in world.ends:
            sent = world.tick(max(0.0, world.d.next_wake() - world.now))
        if sent:
            at = sent[0][0]
    assert asked < 30
    assert isinstance(world.ends[name], DeadlineExceeded)


def test_moved_is_followed_and_teaches_even_if_the_operation_was_cancelled():
    world = World(a=4, b=4)
    ((at, name),) = world.submit("s")
    other = "b" if at == "a" else "a"
    world.submit("s")
    world.do("cancel", name)
    assert world.do("moved", at, name, other) == [(other, "o2")]
    assert world.do("moved", other, "o2", "unheard-of") == []
    assert world.tick(0.02)[0][1] == "o2"


@pytest.mark.parametrize(
    ("bounces", "pause"), [(1, 0.0), (4, 0.0), (5, 0.02), (6, 0.04), (9, 0.32), (99, 1.0)]
)
def test_bounces_are_free_at_first(bounces, pause):
    assert bounce_pause(bounces) == pytest.approx(pause)


def test_the_rate_forgets_what_is_long_ago():
    rate = EndRate()
    assert rate.time_for(10) == 1.0
    for number in range(2000):
        rate.add(number * 0.01)
    assert rate.time_for(100) == pytest.approx(0.5, abs=0.1)
    for number in range(100):
        rate.add(20.0 + number * 0.1)
    assert rate.time_for(100) == pytest.approx(5.0, abs=1.5)
