"""What a dispatcher remembers is bounded, however many operations it has seen."""

from __future__ import annotations

import gc
import weakref

from dspool.core.dispatch.dispatcher import DispatchConfig
from dspool.core.dispatch.session_queues import SessionQueues
from dspool.messages import Operation, Ping
from tests.unit.dispatch_world import World


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
