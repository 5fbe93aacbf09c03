"""Where workers start, and which of them move: a table of decisions."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from dspool.config import PoolConfig
from dspool.core.lifecycle.placement import (
    BALANCED_AFTER_S,
    PROVEN_AFTER_S,
    ClusterNode,
    NodeHistory,
    Seat,
    Wanted,
    apart,
    choose,
    to_move,
)
from dspool.errors import ConfigError
from dspool.messages.members import CUT_OFF
from dspool.runtime import workers
from dspool.supervisor.workers import CONFIRM_TIMEOUT_S
from dspool.testing.doubles import settle
from tests.unit.supervision import Scene

A, B, C = ClusterNode("a"), ClusterNode("b"), ClusterNode("c")
ALL = [A, B, C]


def seats(**counts: str) -> list[Seat]:
    """`a="wws"`: on node a two workers and a spare."""
    return [
        Seat(f"{node}{number}", node, is_spare=kind == "s", sessions=number)
        for node, kinds in counts.items()
        for number, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("there", "for_spare", "unproven", "node"),
    [
        ("", False, "", "a"),
        ("a=w", False, "", "b"),
        ("a=w b=w", False, "", "c"),
        ("a=ww b=w c=w", False, "", "b"),
        # The node with the spare has as many: the next one goes where fewer take traffic.
        ("a=w b=s c=w", False, "", "b"),
        # A spare goes where the fewest take traffic.
        ("a=w b=w", True, "", "c"),
        ("a=ww b=w c=ww", True, "", "b"),
        ("a=w b=w c=w", True, "", "a"),
        ("a=ws b=w c=w", True, "", "b"),
        # Nothing on a node that was just lost, unless there is no other.
        ("a=w b=w", False, "c", "a"),
        ("a=w b=w", True, "c", "a"),
        ("a=ww b=w", False, "abc", "c"),
    ],
)
def test_workers_are_spread_and_spares_stand_elsewhere(there, for_spare, unproven, node):
    taken = seats(**dict(part.split("=") for part in there.split()))
    assert choose(Wanted(), ALL, taken, for_spare=for_spare, unproven=unproven).node == node


def test_packed_workers_fill_a_node_before_the_next():
    wanted = Wanted("pack", resources={"CPU": 1.0})
    nodes = [
        ClusterNode("a", free={"CPU": 1.0}),
        ClusterNode("b", free={"CPU": 4.0}),
        ClusterNode("c", free={"CPU": 0.0}),
    ]
    assert choose(wanted, nodes, seats(b="w", c="www"), for_spare=False).node == "b"
    assert choose(wanted, nodes, seats(), for_spare=False).node == "a"


def test_on_one_node_ray_chooses():
    assert choose(Wanted(), [A], seats(a="w"), for_spare=False).node is None


@pytest.mark.parametrize(
    ("wanted", "node"),
    [
        (Wanted(labels={"zone": "east"}), "b"),
        (Wanted(resources={"GPU": 1.0}), "c"),
        (Wanted(resources={"GPU": 2.0}), None),
        (Wanted(labels={"zone": "west"}), None),
        (Wanted(resources={"index": 1.0}), None),
    ],
)
def test_only_nodes_that_have_what_it_needs_are_chosen(wanted, node):
    nodes = [A, ClusterNode("b", labels={"zone": "east"}), ClusterNode("c", free={"GPU": 1.0})]
    choice = choose(wanted, nodes, [], for_spare=False)
    assert choice.node == node
    assert choice.reason


@pytest.mark.parametrize(
    ("there", "unproven", "moved"),
    [
        ("a=ww b=w c=w", "", None),
        ("a=www b=w c=w", "", "a0"),
        ("a=www b=w", "", "a0"),
        ("a=www b=w", "c", "a0"),
        ("a=ww b=w", "c", None),
        ("a=wws b=w c=w", "", "a2"),
        # A node with a spare alone: one that takes traffic moves, and the spare takes over.
        ("a=ww b=w c=s", "", "a0"),
        ("a=wws b=ws c=ss", "", "a0"),
        ("a=ws b=w c=s", "", None),
        # As after the loss of c: its move alone leaves one that takes traffic on each.
        ("a=ww b=ws", "", "a0"),
        ("", "", None),
    ],
)
def test_a_worker_moves_when_a_node_has_two_more_than_another(there, unproven, moved):
    taken = seats(**dict(part.split("=") for part in there.split()))
    seat = to_move(Wanted(), ALL, taken, unproven=unproven)
    assert (seat and seat.worker_id) == moved


def test_nothing_moves_while_something_starts_or_leaves_nor_where_workers_are_packed():
    taken = seats(a="www")
    assert to_move(Wanted(), ALL, taken) is not None
    assert to_move(Wanted(), ALL, [taken[0]._replace(is_settled=False), *taken[1:]]) is None
    assert to_move(Wanted("pack"), ALL, taken) is None


def test_a_node_that_was_away_or_did_not_answer_has_to_prove_itself():
    a, b, c = (ClusterNode(name, host=f"host of {name}") for name in "abc")
    history = NodeHistory()
    history.seen([a, b], now=0.0)
    history.seen([a, b, c], now=1.0)
    assert history.unproven(1.0) == set(), "a new one is taken as it is"
    history.seen([a, b], now=10.0)
    assert history.unproven(10.0) == set(), "it is not there"
    back = ClusterNode("another id", host="host of c")
    history.seen([a, b, back], now=100.0)
    assert history.unproven(100.0 + PROVEN_AFTER_S - 1) == {"another id"}
    assert history.unproven(100.0 + PROVEN_AFTER_S) == set()
    history.unwell("a", 200.0)
    history.unwell("nobody", 200.0)
    assert history.unproven(200.0) == {"a"}
    assert history.unproven(200.0 + PROVEN_AFTER_S) == set()


def test_what_a_worker_needs_is_what_the_configuration_says():
    config = PoolConfig(
        num_cpus=2,
        num_gpus=0.5,
        memory_mb=100,
        placement={
            "strategy": "pack",
            "node_labels": {"zone": "east"},
            "resources": {"index": 1},
            "accelerator": "A100",
        },
    )
    needs = {"CPU": 2.0, "GPU": 0.5, "memory": 100 * 2**20, "index": 1.0, "accelerator_type:A100": 0.001}
    assert Wanted.of(config) == Wanted("pack", {"zone": "east"}, needs)
    assert Wanted.of(PoolConfig()) == Wanted()


@pytest.mark.parametrize(
    "refused",
    [
        {"placement": {"strategy": "random"}},
        {"placement": {"resources": {"index": 0}}},
        {"placement": {"resources": {"GPU": 1}}},
        {"placement": {"accelerator": ""}},
        {"num_gpus": -1},
        {"memory_mb": 0},
        {"ingress": {"replicas": 2, "per_node": 1}},
        {"ingress": {"per_node": -1}},
    ],
)
def test_a_place_that_cannot_be_is_refused(refused):
    with pytest.raises(ConfigError):
        PoolConfig(**refused)


def test_the_other_actors_of_a_pool_are_apart_and_the_first_of_them_off_the_head():
    head = ClusterNode("h", is_head=True)
    places = apart([head, A, B], ("supervisor", "store", "metrics"), "default")
    assert set(places.values()) == {"a", "b", "h"}
    assert places["metrics"] == "h"
    pools = {apart([head, A, B], ("supervisor",), f"pool{number}")["supervisor"] for number in range(20)}
    assert pools == {"a", "b"}
    assert apart([head], ("supervisor",), "default") == {"supervisor": None}
    assert set(apart([head, A], ("supervisor", "store", "metrics"), "p").values()) == {"a", "h"}


def where(s) -> dict[str, str]:
    return {worker.worker_id: worker.node for worker in s.runtime.alive}


async def test_a_supervisor_starts_each_worker_on_a_node_of_its_own_and_moves_one_when_a_node_comes_back():
    s = Scene(pool_size=3, spares=1)
    s.runtime.cluster = [A, B]
    await s.supervisor.start()
    await settle()
    assert Counter(where(s).values()) == {"a": 2, "b": 2}
    s.runtime.cluster = [A, B, C]
    await s.clock.advance(5.0)
    # New, so it counts; two and two and nothing: one moves, and its replacement is warm before it goes.
    await s.clock.advance(BALANCED_AFTER_S - 6.0)
    assert "c" not in where(s).values()
    await s.clock.advance(12.0)
    assert Counter(where(s).values()) == {"a": 1, "b": 2, "c": 1} or Counter(where(s).values()) == {
        "a": 2,
        "b": 1,
        "c": 1,
    }
    assert len(await s.members()) == 3
    await s.clock.advance(10 * BALANCED_AFTER_S)
    # Of those that take traffic one is on each, and there they stay.
    balanced = where(s)
    assert sorted(balanced[worker] for worker in await s.members()) == ["a", "b", "c"]
    await s.clock.advance(10 * BALANCED_AFTER_S)
    assert where(s) == balanced
    await s.end()


async def test_when_a_node_does_not_answer_none_of_its_workers_takes_over_and_nothing_starts_there():
    s = Scene(pool_size=2, spares=2)
    s.runtime.cluster = [A, B]
    await s.supervisor.start()
    await settle()
    assert Counter(where(s).values()) == {"a": 2, "b": 2}
    frozen = [worker for worker in s.runtime.alive if worker.node == "a"]
    for worker in frozen:
        worker.healthy = False
        worker.immortal = True
    members = await s.members()
    serving = next(worker for worker in frozen if worker.worker_id in members)
    s.runtime.cluster = [A, B]
    await s.supervisor.report_dead(serving.worker_id, CUT_OFF)
    await s.clock.advance(2 * s.config.max_health_failures * CONFIRM_TIMEOUT_S + 0.1)
    assert len(await s.members()) == 2
    alive = {worker.worker_id: worker.node for worker in s.runtime.alive if worker not in frozen}
    assert set(await s.members()) <= alive.keys()
    assert set(alive.values()) == {"b"}
    assert len(alive) == 4
    assert {worker.worker_id for worker in frozen} <= set(s.store.dead)
    await s.end()


async def test_while_the_control_plane_is_away_only_one_look_at_the_nodes_waits_for_it(monkeypatch):
    looks, gate = [], threading.Event()

    def look(with_resources):
        looks.append(with_resources)
        gate.wait(60)
        return [A]

    monkeypatch.setattr(workers, "placeable_nodes", look)
    runtime = workers.RayRuntime(PoolConfig(num_gpus=1), b"")
    for _ in range(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runtime.nodes(), 0.001)
    gate.set()
    assert await runtime.nodes() == [A]
    assert await runtime.nodes() == [A]
    assert len(looks) <= 3
    assert all(looks), "it has to know what is free"
