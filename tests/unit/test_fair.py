"""Turns at the queue: fair between keys, whatever they do."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspool.core.admission.fair import INTERACTIVE_RUN, FairQueue
from dspool.errors import QueueFull


def test_while_there_is_room_everybody_goes_straight_in():
    queue = FairQueue(max_waiting=4)
    entries = [queue.arrive("a", "interactive", room=3) for _ in range(3)]
    assert all(entry.admitted for entry in entries)
    assert not queue.arrive("a", "interactive", room=3).admitted
    assert (queue.places, queue.waiting) == (3, 1)


def test_a_greedy_key_cannot_starve_another():
    queue = FairQueue(max_waiting=1000)
    held = [queue.arrive("greedy", "interactive", room=4) for _ in range(500)][:4]
    served = Counter()
    for turn in range(100):
        # A modest caller, one request at a time, among 496 waiting ones.
        if not any(entry.key == "modest" for entry in held):
            queue.arrive("modest", "interactive", room=4)
        queue.leave(held.pop(0))
        entry = queue.next(room=4)
        served[entry.key] += 1
        held.append(entry)
        if turn == 0:
            assert entry.key == "modest", "the newcomer gets the first place that becomes free"
    # It asks for one place of four and gets it again as soon as it comes back.
    assert served["modest"] >= 20


def test_two_keys_with_full_lines_share_in_halves_and_by_weight():
    for weights, share in (((1.0, 1.0), 0.5), ((3.0, 1.0), 0.75)):
        queue = FairQueue(max_waiting=1000)
        held = []
        for key, weight in zip("ab", weights, strict=True):
            for _ in range(400):
                entry = queue.arrive(key, "interactive", room=4, weight=weight)
                if entry.admitted:
                    held.append(entry)
        served = Counter()
        for _ in range(300):
            queue.leave(held.pop(0))
            entry = queue.next(room=4)
            held.append(entry)
            served[entry.key] += 1
        assert served["a"] / 300 == pytest.approx(share, abs=0.02)


def test_long_operations_do_not_buy_more_than_a_share():
    """What counts is the room that is held, not how often one came in."""
    queue = FairQueue(max_waiting=100)
    long = [queue.arrive("long", "interactive", room=8) for _ in range(50)][:8]
    for _ in range(50):
        queue.arrive("short", "interactive", room=8)
    for entry in long[:4]:
        queue.leave(entry)
    assert {queue.next(room=8).key for _ in range(4)} == {"short"}


def test_a_full_line_refuses_its_own_key_only():
    queue = FairQueue(max_waiting=2)
    for _ in range(3):
        queue.arrive("greedy", "interactive", room=1)
    with pytest.raises(QueueFull) as refused:
        queue.arrive("greedy", "interactive", room=1)
    assert refused.value.details["retry_after_s"] > 0
    queue.arrive("modest", "interactive", room=1)


def test_batch_waits_for_interactive_but_is_not_starved():
    queue = FairQueue(max_waiting=1000)
    held = queue.arrive("a", "interactive", room=1)
    for _ in range(100):
        queue.arrive("a", "interactive", room=1)
    for _ in range(100):
        queue.arrive("b", "batch", room=1)
    order = []
    for _ in range(90):
        queue.leave(held)
        held = queue.next(room=1)
        order.append(held.priority)
    assert order[:INTERACTIVE_RUN] == ["interactive"] * INTERACTIVE_RUN
    assert order.count("batch") == 90 // (INTERACTIVE_RUN + 1)


def test_a_key_at_its_own_limit_waits_while_others_pass():
    queue = FairQueue(max_waiting=10)
    first = queue.arrive("a", "interactive", room=10, max_places=1)
    second = queue.arrive("a", "interactive", room=10, max_places=1)
    assert first.admitted
    assert not second.admitted
    third = queue.arrive("b", "interactive", room=10)
    limits = {"a": 1}
    assert third.admitted or queue.next(room=10, max_places=limits) is third
    assert queue.next(room=10, max_places=limits) is None
    queue.leave(first)
    assert queue.next(room=10, max_places=limits) is second


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("arrive"), st.sampled_from("abc"), st.sampled_from(["interactive", "batch"])),
            st.tuples(st.just("leave"), st.integers(0, 50), st.none()),
            st.tuples(st.just("room"), st.integers(0, 6), st.none()),
        ),
        max_size=80,
    )
)
def test_the_room_is_never_overfilled_nobody_is_lost_and_no_place_stays_empty(steps):
    queue, room, alive = FairQueue(max_waiting=10), 3, []
    for what, value, priority in steps:
        if what == "arrive":
            try:
                alive.append(queue.arrive(value, priority, room=room))
            except QueueFull:
                assert sum(1 for e in alive if e.key == value and not e.admitted) >= 10
        elif what == "leave" and alive:
            entry = alive.pop(value % len(alive))
            queue.leave(entry)
            queue.leave(entry)
        elif what == "room":
            room = value
        while queue.next(room=room) is not None:
            assert queue.places <= room
        assert queue.places == sum(e.admitted for e in alive)
        assert queue.waiting == sum(not e.admitted for e in alive)
        assert queue.waiting == 0 or queue.places >= room
    for entry in alive:
        queue.leave(entry)
    assert (queue.places, queue.waiting) == (0, 0)
