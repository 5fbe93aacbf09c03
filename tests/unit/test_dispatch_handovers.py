"""When a worker that is full is asked to give a session away, and what its answer changes."""

from __future__ import annotations

import pytest

from dspool.core.dispatch.dispatcher import DispatchConfig
from dspool.core.dispatch.session_queues import Handovers
from tests.unit.dispatch_world import World


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
