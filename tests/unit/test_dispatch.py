"""The dispatcher's decisions one by one, who gets an operation and who a slot; the property test has its whole life."""

from __future__ import annotations

import pytest

from dspool.core.dispatch.dispatcher import DispatchConfig
from dspool.core.dispatch.placement import WorkerSlots, place
from dspool.errors import Cancelled, Conflict, PoolClosed, PoolPaused, QueueFull
from dspool.messages import Operation, Ping, Result
from tests.unit.dispatch_world import RATE_LIMITED, World, members

# --- which worker ---


@pytest.mark.parametrize(
    ("strategy", "chosen"),
    [
        ("lifo", ["b", "b", "b"]),
        ("fifo", ["c", "a", "b"]),
        ("least_loaded", ["c", "a", "b"]),
    ],
)
def test_the_strategy_decides_among_idle_workers(strategy, chosen):
    world = World(DispatchConfig(strategy=strategy), a=3, b=3, c=3)
    for _ in range(9):
        world.submit()
    for worker in ("c", "a", "b"):  # b is the last to become free
        for name in [name for at, name in world.sent if at == worker]:
            world.finish(worker, name)
    assert [world.submit()[0][0] for _ in range(3)] == chosen


def test_least_loaded_goes_by_the_share_of_free_slots_and_counts_other_clients():
    world = World(DispatchConfig(strategy="least_loaded"), small=2, large=8)
    assert [world.submit()[0][0] for _ in range(5)].count("large") == 4
    world.do("load", "large", running=8, slots=8, own=4)
    assert world.submit()[0][0] == "small"


def test_a_session_stays_on_its_worker_and_runs_one_operation_at_a_time():
    world = World(a=4, b=4, c=4)
    ((owner, first),) = world.submit("s")
    assert world.submit("s") == []
    assert world.finish(owner, first) == [(owner, "o2")]
    assert world.d.owner_of("s") == owner


def homes(workers, sessions):
    slots = [WorkerSlots(name, 8, 0) for name in workers]
    return {session: place(session, slots).id for session in sessions}


SESSIONS = [f"session-{number}" for number in range(2000)]


def test_two_clients_with_the_same_view_place_sessions_alike():
    assert homes("abcd", SESSIONS) == homes("dcba", SESSIONS)


@pytest.mark.parametrize(("before", "after", "changed"), [("abcd", "abcde", "e"), ("abcd", "abc", "d")])
def test_only_sessions_of_the_worker_that_joins_or_leaves_move(before, after, changed):
    was, is_now = homes(before, SESSIONS), homes(after, SESSIONS)
    moved = {session for session in SESSIONS if was[session] != is_now[session]}
    assert all(changed in (was[session], is_now[session]) for session in moved)
    assert len(SESSIONS) / 8 < len(moved) < len(SESSIONS) / 3


def test_placement_follows_free_slots_and_passes_over_full_workers():
    empty, half, full = WorkerSlots("empty", 8, 0), WorkerSlots("half", 8, 0), WorkerSlots("full", 8, 0)
    half.capacity, full.capacity = 4, 0
    chosen = [place(session, [empty, half, full]).id for session in SESSIONS]
    assert chosen.count("full") == 0
    assert 1.6 < chosen.count("empty") / chosen.count("half") < 2.5
    assert place("s", [full]) is None


def test_while_all_are_full_a_session_without_a_home_takes_the_first_free_slot():
    world = World(a=1, b=1)
    world.submit()
    world.submit()
    assert world.submit("s") == []
    free = world.sent[1][0]
    assert world.finish(*world.sent[1]) == [(free, "o3")]


# --- the queue ---


def test_an_operation_that_was_busy_keeps_its_place():
    world = World(a=1)
    world.submit()
    world.submit()
    assert world.do("busy", "a", "o1") == []
    assert world.do("load", "a", running=0, slots=1) == [("a", "o1")]


def test_a_slot_goes_to_the_older_of_those_bound_to_the_worker_and_those_for_any():
    world = World(a=1)
    world.submit("s")
    world.finish("a", "o1")
    world.submit()
    world.submit("s")  # o3 is bound to a
    world.submit()
    world.submit("s")
    assert world.finish("a", "o2") == [("a", "o3")]
    assert world.finish("a", "o3") == [("a", "o4")]
    assert world.finish("a", "o4") == [("a", "o5")]


def test_the_load_of_a_report_does_not_count_what_was_dispatched_while_handling_it():
    world = World(a=4)
    for _ in range(6):
        world.submit()
    world.do("load", "a", running=4, slots=4)
    world.d.finished("a", Result("o1"), now=0.0)
    world.d.load("a", 4, 4, now=0.0)  # another client took the slot, and o5 is not on its way yet
    assert world.act() == [("a", "o5")]


def test_slots_that_other_clients_fill_are_tried_again_when_the_news_is_old():
    world = World(a=2)
    world.do("load", "a", running=2, slots=2)
    assert world.submit() == []
    assert world.d.next_wake() == pytest.approx(0.1)
    assert world.tick(0.1) == [("a", "o1")]


def test_after_busy_the_worker_is_not_tried_before_it_says_that_it_has_room():
    world = World(a=2)
    world.submit()
    world.do("busy", "a", "o1")
    world.do("load", "a", running=2, slots=2)
    assert world.tick(5.0) == []
    assert world.do("load", "a", running=1, slots=2) == [("a", "o1")]


def test_a_slot_freed_by_an_operation_that_will_be_retried_goes_to_the_next():
    world = World(a=1)
    world.submit()
    world.submit()
    assert world.finish("a", "o1", RATE_LIMITED) == [("a", "o2")]
    assert "o1" not in world.ends


def test_more_slots_in_the_membership_are_used_at_once():
    world = World(a=1)
    world.submit()
    world.submit()
    assert world.members(a=2) == [("a", "o2")]


def test_a_change_of_all_workers_sends_nothing_to_those_that_leave():
    world = World(a=1, b=1)
    world.submit("s")
    owner = world.sent[0][0]
    other = "b" if owner == "a" else "a"
    world.submit()
    for session in ("s", "t"):
        world.submit(session)
    world.finish(other, "o2")
    assert {worker for worker, _ in world.members(c=1)} <= {"c"}


def test_a_membership_change_takes_back_what_was_not_yet_sent():
    world = World(a=2)
    world.d.submit(Operation("x", Ping(), 30.0), idempotent=False, sink=None, now=0.0)
    world.d.members(members(b=1), now=0.0)
    assert world.act() == [("b", "x")]


def test_an_id_is_refused_while_a_worker_still_holds_it():
    world = World(a=2)
    world.submit(name="x")
    with pytest.raises(Conflict):
        world.submit(name="x")
    world.do("cancel", "x")
    with pytest.raises(Conflict):
        world.submit(name="x")
    world.finish("a", "x")
    world.ends.clear()
    assert world.submit(name="x") == [("a", "x")]


def test_a_cancelled_operation_keeps_its_slot_and_its_session_until_the_worker_lets_go():
    world = World(a=1)
    world.submit("s")
    world.submit("s")
    world.do("cancel", "o1")
    assert isinstance(world.ends["o1"], Cancelled)
    assert world.cancelled == [("a", "o1")]
    assert world.d.running_on("a") == 1
    assert world.finish("a", "o1") == [("a", "o2")]


def test_what_was_decided_but_not_yet_sent_can_be_cancelled_without_a_trace():
    world = World(a=1)
    world.d.submit(Operation("x", Ping(), 30.0), idempotent=False, sink=None, now=0.0)
    world.d.cancel("x", now=0.0)
    assert world.act() == []
    assert world.cancelled == []
    assert world.d.running_on("a") == 0


def test_a_full_queue_refuses_and_says_when_to_come_back():
    world = World(DispatchConfig(max_queue=10), a=1)
    for _ in range(6):
        world.submit()
    for number in range(1, 6):  # two ends a second
        world.now += 0.5
        world.finish("a", f"o{number}")
    for _ in range(10):
        world.submit()
    with pytest.raises(QueueFull) as refused:
        world.submit()
    assert refused.value.retry_after_s == pytest.approx(2.5, rel=0.3)
    assert world.d.queued == 10


def test_a_paused_or_closed_pool_refuses():
    world = World(a=1)
    world.submit()
    world.submit()
    world.d.members(members(a=1), paused=True, now=0.0)
    with pytest.raises(PoolPaused):
        world.submit()
    world.do("close")
    assert all(isinstance(world.ends[name], PoolClosed) for name in ("o1", "o2"))
    assert world.cancelled == [("a", "o1")]
    with pytest.raises(PoolClosed):
        world.submit()
    assert world.finish("a", "o1") == []
