"""The dispatcher's decisions one by one; the property test looks at its whole life."""

from __future__ import annotations

import gc
import itertools
import weakref

import pytest

from dspool.core.dispatch.dispatcher import DispatchConfig, Dispatcher
from dspool.core.dispatch.placement import WorkerSlots, place
from dspool.core.dispatch.retries import EndRate, bounce_pause
from dspool.core.dispatch.session_queues import Handovers, SessionQueues
from dspool.errors import Cancelled, Conflict, DeadlineExceeded, PoolClosed, PoolPaused, QueueFull, WorkerLost
from dspool.messages import Failure, Member, Operation, Ping, Result

RATE_LIMITED = {"code": "model_rate_limited", "message": "", "details": {}}


def members(**slots):
    return [Member(worker_id=name, ordinal=0, host="", port=0, slots=count) for name, count in slots.items()]


class World:
    """A dispatcher, a clock, and what it has decided so far."""

    def __init__(self, config=None, **slots):
        self.d = Dispatcher(config or DispatchConfig())
        self.now = 0.0
        self.sent: list[tuple[str, str]] = []
        self.ends: dict[str, object] = {}
        self.cancelled: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str]] = []
        self._ids = itertools.count(1)
        self.members(**slots)

    def act(self):
        send, cancel, ends, handover = self.d.take()
        new = [(worker, ticket.operation.id) for worker, tickets in send.items() for ticket in tickets]
        self.sent += new
        self.cancelled += [(worker, each) for worker, ids in cancel.items() for each in ids]
        self.asked += [(worker, session) for worker, sessions in handover.items() for session in sessions]
        for end in ends:
            assert end.ticket.operation.id not in self.ends
            self.ends[end.ticket.operation.id] = end.error or end.report
        return new

    def members(self, **slots):
        self.d.members(members(**slots), now=self.now)
        return self.act()

    def submit(self, session=None, *, timeout=30.0, idempotent=True, name=None):
        name = name or f"o{next(self._ids)}"
        self.d.submit(
            Operation(name, Ping(), timeout, session), idempotent=idempotent, sink=None, now=self.now
        )
        return self.act()

    def finish(self, worker, name, error=None):
        self.d.finished(worker, Failure(name, error) if error else Result(name), now=self.now, random=0.0)
        return self.act()

    def do(self, event, *args, **kwargs):
        getattr(self.d, event)(*args, now=self.now, **kwargs)
        return self.act()

    def tick(self, seconds):
        self.now += seconds
        self.d.tick(self.now)
        return self.act()


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


# --- hand-overs ---


def crowded(affinity):
    """`owner` is full with o2; the session's o3 waits for it; `other` has a free slot."""
    world = World(DispatchConfig(affinity=affinity), a=1, b=1)
    ((owner, first),) = world.submit("s")
    world.submit()
    other = "b" if owner == "a" else "a"
    world.submit()
    world.finish(owner, first)  # o3 takes the owner's slot
    world.submit("s")
    world.finish(other, "o2")
    return world, owner, other


def test_strict_affinity_waits_for_the_owner():
    world, owner, _ = crowded("strict")
    assert world.asked == []
    assert world.finish(owner, "o3") == [(owner, "o4")]


def test_a_full_owner_is_asked_once_and_what_it_grants_runs_elsewhere():
    world, owner, other = crowded("prefer")
    assert world.asked == [(owner, "s")]
    world.tick(0.5)
    assert world.asked == [(owner, "s")]
    assert world.do("handed_over", owner, "s", True) == [(other, "o4")]
    assert world.d.owner_of("s") == other


def test_a_refusal_leaves_the_session_bound_and_is_followed_by_a_pause():
    world, owner, other = crowded("prefer")
    assert world.do("handed_over", owner, "s", False) == []
    assert world.d.owner_of("s") == owner
    world.tick(0.9)
    assert len(world.asked) == 1
    assert world.d.next_wake() == pytest.approx(1.0)
    world.tick(0.1)
    assert len(world.asked) == 2
    assert world.do("handed_over", owner, "s", True) == [(other, "o4")]


def test_an_answer_that_comes_after_the_owner_took_the_operation_changes_nothing():
    world, owner, _ = crowded("prefer")
    assert world.finish(owner, "o3") == [(owner, "o4")]
    world.do("handed_over", owner, "s", True)
    assert world.d.owner_of("s") == owner
    assert world.d.running == 1


def test_no_more_sessions_are_asked_for_than_there_are_free_slots():
    world = World(DispatchConfig(affinity="prefer"), a=6)
    for number in range(6):
        world.submit(f"s{number}")
    for number in range(1, 7):
        world.finish("a", f"o{number}")
    for _ in range(6):
        world.submit()
    for number in range(6):
        world.submit(f"s{number}")
    world.members(a=6, b=2)
    assert world.asked == [("a", "s0"), ("a", "s1")]
    assert world.do("handed_over", "a", "s0", False) == []
    assert world.asked[2:] == [("a", "s2")]


def test_a_request_that_is_never_answered_is_forgotten():
    handovers = Handovers()
    assert handovers.ask("s", "a", 0.0) < 0
    assert handovers.ask("s", "a", 4.0) == 5.0
    handovers.expire(5.0)
    assert handovers.open == len(handovers) == 0
    handovers.ask("t", "a", 6.0)
    handovers.forget_worker("a")
    assert handovers.open == 0
    assert not handovers.answer("t", "a")


# --- memory ---


def sizes(dispatcher):
    matcher = dispatcher._matcher
    return {
        "deadlines": len(dispatcher._timers._deadlines),
        "resting": len(dispatcher._timers._resting),
        "tickets": len(dispatcher._tickets),
        "abandoned": len(dispatcher._abandoned),
        "shared": len(matcher._shared),
        "bound": sum(len(worker.bound) for worker in matcher.workers.values()),
        "sessions": len(matcher.sessions),
    }


def test_heaps_do_not_grow_with_the_number_of_operations():
    world = World(a=2)
    for number in range(1, 5001):
        world.submit("s" if number % 3 == 0 else None)
        world.finish("a", f"o{number}")
    assert max(sizes(world.d).values()) <= 70


def test_cancelled_operations_do_not_pile_up_behind_a_slow_one():
    world = World(a=1)
    world.submit("s0")
    for number in range(2, 3000):
        world.submit(f"s{number % 7}" if number % 2 else None)
        world.do("cancel", f"o{number}")
    assert world.d.queued == 0
    assert max(sizes(world.d).values()) <= 70


def test_an_operation_that_bounces_for_long_leaves_no_trail():
    world = World(DispatchConfig(checkout_timeout_s=1e6), a=1)
    world.submit(timeout=1e6)
    for _ in range(3000):
        if world.d.running_on("a"):
            world.do("busy", "a", "o1")
            world.do("load", "a", running=0, slots=1)
        world.tick(1.0)
    assert max(sizes(world.d).values()) <= 2


def test_ended_operations_are_let_go_of():
    world = World(a=1)
    tickets = []
    for number in range(1, 400):
        name = f"o{number}"
        operation = Operation(name, Ping(), 30.0)
        sink = type("Sink", (), {})()
        tickets.append(weakref.ref(sink))
        world.d.submit(operation, idempotent=True, sink=sink, now=0.0)
        world.finish("a", name)
    world.ends.clear()
    del sink
    gc.collect()
    assert sum(ticket() is not None for ticket in tickets) <= 70


def test_owners_are_remembered_for_the_sessions_used_last():
    lines = SessionQueues(remembered=100)
    for number in range(1000):
        lines.own(f"s{number}", "a")
        lines.own("hot", "b")
    assert lines.owner("hot") == "b"
    assert lines.owner("s999") == "a"
    assert lines.owner("s1") is None
    assert len(lines._owners) == 100


def test_a_long_line_of_one_session_ends_without_deep_recursion():
    world = World(DispatchConfig(max_queue=5000, checkout_timeout_s=1.0), a=1)
    for _ in range(4000):
        world.submit("s")
    world.tick(2.0)
    assert len(world.ends) == 3999
    world.do("close")
    assert world.d.queued == world.d.running == 0
