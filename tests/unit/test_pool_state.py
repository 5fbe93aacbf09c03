"""The pool state machine, one situation at a time: starts, sizes, spares, drains, recycling.

The property test covers the combinations.
"""

from __future__ import annotations

import pytest

from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.orders import STOP_GRACE_S
from dspool.core.lifecycle.status import facts_of, start_delay
from dspool.errors import InvalidRequest
from dspool.messages import WorkerStatus
from tests.unit.pool_bench import ORDERS, Bench, adopted


def test_a_starting_pool_orders_all_that_take_traffic_at_once_and_then_its_spares():
    b = Bench(pool_size=3, spares=1).boot()
    assert [a.ordinal for a in b.of(ev.StartWorker)] == [0, 1, 2]
    b.obey(ev.StartWorker)
    for ordinal in (0, 1):
        assert b.of(ev.StartWorker, b.feed(ev.WarmFinished(b.id(ordinal)))) == []
    assert [a.ordinal for a in b.of(ev.StartWorker, b.feed(ev.WarmFinished(b.id(2))))] == [3]


def test_a_worker_takes_traffic_only_when_it_is_warm():
    b = Bench(pool_size=1).boot()
    b.started("w0.0", 0)
    assert b.members == []
    assert not b.state.is_ready
    b.feed(ev.WarmFinished("w0.0"))
    assert b.members == ["w0.0"]
    assert b.state.is_ready


def test_min_ready_decides_when_the_pool_is_ready():
    b = Bench(pool_size=3, warmup={"min_ready": 2}).boot()
    b.obey(ev.StartWorker)
    b.feed(ev.WarmFinished(b.id(0)))
    assert b.status().state == "starting"
    b.feed(ev.WarmFinished(b.id(1)))
    assert (b.status().state, b.status().ready) == ("ready", True)


def test_a_spare_is_promoted_in_the_same_event_as_the_death_and_publication_comes_first():
    b = Bench(pool_size=2, spares=1).boot().obey()
    spare = next(w.id for w in b.state.roster.spares)
    dead = b.members[0]
    out = b.feed(ev.WorkerDied(dead, "SIGKILL"))
    assert isinstance(out[0], ev.PublishMembership)
    assert spare in [m.worker_id for m in out[0].membership.workers]
    assert dead not in [m.worker_id for m in out[0].membership.workers]
    assert ev.FreeLeases(dead) in out
    assert len(b.of(ev.StartWorker, out)) == 1, "a new spare is on its way"


def test_a_spare_takes_no_traffic():
    b = Bench(pool_size=1, spares=2).boot().obey()
    assert len(b.members) == 1
    assert b.status().spares == 2


def test_a_replacement_gets_an_ordinal_only_after_its_holder_is_gone():
    b = Bench(pool_size=2).boot().obey()
    for _ in range(b.config.max_health_failures):
        b.feed(ev.HealthMissed(b.id(0), "no answer"))
    assert b.phases() == {0: "failed", 1: "ready", 2: "starting"}
    b.obey(ev.StartWorker, ev.WarmWorker)
    assert [m.ordinal for m in b.state.membership.workers] == [1, 2]


def test_a_size_outside_the_bounds_is_refused_and_changes_nothing():
    b = Bench(pool_size=2, min_pool_size=1, max_pool_size=4).boot().obey()
    before = len(b.actions)
    for size in (0, 5, -1):
        with pytest.raises(InvalidRequest, match=f"between min_pool_size 1 and max_pool_size 4, got {size}"):
            b.feed(ev.ResizeRequested(size))
    assert (b.state.desired, len(b.actions)) == (2, before)


def test_of_two_resizes_at_once_the_later_one_holds():
    b = Bench(pool_size=2).boot().obey()
    b.feed(ev.ResizeRequested(6))
    b.feed(ev.ResizeRequested(3))
    b.obey()
    assert (b.state.desired, len(b.members), len(b.state.roster)) == (3, 3, 3)


def test_shrinking_drains_the_workers_with_the_fewest_sessions_and_kills_none():
    b = Bench(pool_size=3).boot().obey()
    for ordinal, sessions in ((0, 0), (1, 9), (2, 5)):
        b.feed(ev.HealthOk(b.id(ordinal), WorkerStatus(b.id(ordinal), ordinal, "ready", sessions=sessions)))
    b.feed(ev.ResizeRequested(1))
    assert b.phases() == {0: "draining", 1: "ready", 2: "draining"}
    assert [m.ordinal for m in b.state.membership.workers] == [1]
    assert not b.of(ev.KillWorker)
    b.obey()
    assert b.phases() == {1: "ready"}


def test_growing_while_draining_starts_new_workers_and_lets_the_draining_ones_finish():
    b = Bench(pool_size=3).boot().obey()
    b.feed(ev.ResizeRequested(1))
    b.feed(ev.ResizeRequested(3))
    draining = [ordinal for ordinal, phase in b.phases().items() if phase == "draining"]
    assert len(draining) == 2
    b.obey()
    assert len(b.members) == 3
    assert len(b.state.roster) == 3


def test_shrinking_first_gives_up_workers_that_are_not_warm_yet():
    b = Bench(pool_size=2, max_pool_size=4).boot().obey()
    b.feed(ev.ResizeRequested(4))
    b.feed(ev.ResizeRequested(2))
    assert b.phases() == {0: "ready", 1: "ready", 2: "stopped", 3: "stopped"}


def test_a_drained_worker_is_stopped_and_one_that_will_not_stop_is_killed():
    b = Bench(pool_size=2).boot().obey()
    going = b.id(0)
    b.feed(ev.DrainRequested(going))
    b.feed(ev.Drained(going))
    assert b.of(ev.StopWorker)[-1].worker_id == going
    b.tick(STOP_GRACE_S)
    assert b.of(ev.KillWorker)[-1].worker_id == going


def test_a_drain_that_does_not_end_is_ended():
    b = Bench(pool_size=2).boot().obey()
    b.feed(ev.DrainRequested(b.id(0)))
    b.obey(ev.StartWorker, ev.WarmWorker)
    b.tick(b.config.operation_timeout_s + STOP_GRACE_S)
    assert b.phases()[0] == "stopped"


def test_draining_by_hand_starts_the_replacement_at_the_same_time():
    b = Bench(pool_size=2).boot().obey()
    out = b.feed(ev.DrainRequested(b.id(0)))
    assert b.of(ev.DrainWorker, out)
    assert b.of(ev.StartWorker, out)


def test_restarting_by_hand_drains_only_once_the_replacement_is_warm():
    b = Bench(pool_size=2).boot().obey()
    old = b.id(0)
    out = b.feed(ev.RestartRequested(old))
    assert not b.of(ev.DrainWorker, out)
    assert old in b.members
    b.obey(ev.StartWorker)
    assert old in b.members
    b.obey(ev.WarmWorker)
    assert old not in b.members
    assert len(b.members) == 2
    assert b.state.roster.get(old).phase == "draining"


def test_with_a_spare_a_restart_promotes_it_at_once():
    b = Bench(pool_size=2, spares=1).boot().obey()
    old = b.id(0)
    b.feed(ev.RestartRequested(old))
    assert old not in b.members
    assert len(b.members) == 2


@pytest.mark.parametrize(
    ("limits", "status", "reason"),
    [
        ({"max_operations": 100}, {"operations": 100}, "recycled after 100 operations"),
        ({"max_memory_mb": 500}, {"own_mb": 512.0}, "recycled at 512 MB"),
        ({}, {"state": "failed", "reason": "an operation will not end"}, "an operation will not end"),
    ],
)
def test_a_worn_out_worker_is_replaced_warm_first(limits, status, reason):
    b = Bench(pool_size=2, recycle=limits).boot().obey()
    old = b.id(1)
    b.feed(ev.HealthOk(old, WorkerStatus(old, 1, "ready", own_mb=100.0)))
    b.feed(ev.HealthOk(old, WorkerStatus(**{"id": old, "ordinal": 1, "state": "ready", **status})))
    assert old in b.members
    assert b.state.roster.get(old).leaving == reason
    b.obey()
    assert old not in b.members
    assert len(b.members) == 2


def test_a_memory_limit_below_what_a_fresh_worker_has_recycles_nothing_and_is_said_once():
    b = Bench(pool_size=2, spares=1, recycle={"max_memory_mb": 100.0, "max_operations": 50}).boot().obey()
    workers = set(b.phases())
    for own_mb in (120.0, 130.0, 99.0, 900.0):
        for w in b.state.roster:
            b.feed(ev.HealthOk(w.id, WorkerStatus(w.id, w.ordinal, w.phase, own_mb=own_mb)))
        b.obey()
    assert set(b.phases()) == workers
    assert not any(w.leaving for w in b.state.roster)
    (said,) = [a.metadata for a in b.of(ev.Emit) if a.name == "pool.error"]
    assert said["code"] == "memory_limit_too_low"
    assert "recycle.max_memory_mb is 100" in said["reason"]
    assert "120 MB" in said["reason"]
    old = b.id(0)
    b.feed(ev.HealthOk(old, WorkerStatus(old, 0, "ready", own_mb=900.0, operations=50)))
    assert b.of(ev.DrainWorker)[-1].worker_id == old, "the other limits hold"


def test_an_adopted_worker_over_the_memory_limit_is_recycled_because_nobody_knows_what_it_began_with():
    b = Bench(pool_size=1, recycle={"max_memory_mb": 500.0})
    b.feed(adopted(0, "ready"))
    b.boot()
    b.feed(ev.HealthOk("old0", WorkerStatus("old0", 0, "ready", own_mb=600.0)))
    b.obey()
    assert "old0" not in b.members
    assert len(b.members) == 1


def test_workers_with_older_settings_are_replaced_one_at_a_time_each_after_its_replacement_is_warm():
    b = Bench(pool_size=3).boot().obey()
    old = list(b.members)
    b.state.gradual.settings = "new"
    for worker_id in old:
        b.feed(ev.HealthOk(worker_id, WorkerStatus(worker_id, 0, "ready", settings="old")))
    assert [one.settings for one in b.status().workers if one.id in old] == ["old"] * 3
    started = b.of(ev.StartWorker)[len(old) :]
    assert len(started) == 1
    assert b.members == old
    new = started[0].worker_id
    b.obey()
    b.feed(ev.HealthOk(new, WorkerStatus(new, 0, "ready", settings="new")))
    assert new in b.members
    assert all(b.state.roster.get(worker_id) is None for worker_id in old)
    assert len(b.members) == 3


def test_a_worker_that_has_not_said_its_settings_yet_stays():
    b = Bench(pool_size=1).boot().obey()
    b.state.gradual.settings = "new"
    b.feed(ev.HealthOk(b.members[0], WorkerStatus(b.members[0], 0, "ready")))
    assert len(b.of(ev.StartWorker)) == 1


def test_old_workers_are_recycled_one_at_a_time_and_never_below_the_size():
    b = Bench(pool_size=3, recycle={"max_age_s": 60.0}).boot().obey()
    old = set(b.members)
    b.tick(60.0)
    steps = 0
    while b.todo:
        useful = [phase for phase in b.phases().values() if phase in ("starting", "warming", "ready")]
        assert len(b.members) >= 3
        assert len(useful) <= 4
        action = b.todo.pop(0)
        steps += isinstance(action, ORDERS)
        b.carry_out(action)
    assert steps == 3 * len(ORDERS), "each of three workers is started, warmed, drained and stopped"
    assert len(b.members) == 3
    assert not old & set(b.members)


def test_overflow_workers_come_on_top_and_go_again():
    b = Bench(pool_size=2, max_pool_size=4, max_overflow=2).boot().obey()
    b.feed(ev.SizingDecided(2, 2))
    b.obey()
    status = b.status()
    assert (len(b.members), status.desired) == (4, 4)
    assert [w.overflow for w in status.workers] == [False, False, True, True]
    b.feed(ev.SizingDecided(2, 0))
    b.obey()
    assert [m.ordinal for m in b.state.membership.workers] == [0, 1]


def test_a_decision_of_sizing_never_leaves_the_bounds():
    b = Bench(pool_size=2, min_pool_size=1, max_pool_size=4, max_overflow=1).boot()
    b.feed(ev.SizingDecided(99, 99))
    assert (b.state.desired, b.state.overflow) == (4, 1)
    b.feed(ev.SizingDecided(-3, -3))
    assert (b.state.desired, b.state.overflow) == (1, 0)


def test_a_worker_that_died_is_remembered_with_its_cause_and_the_spare_that_took_over():
    b = Bench(pool_size=2, spares=1).boot().obey()
    spare = next(w.id for w in b.state.roster.spares)
    dead = b.members[0]
    b.feed(ev.HealthOk(dead, WorkerStatus(dead, 0, "ready", operations=9, errors=2, rss_mb=300.0)))
    b.tick(5)
    b.feed(ev.WorkerDied(dead, "killed by SIGKILL"))
    (ended,) = b.status().ended
    assert (ended.id, ended.cause, ended.expected) == (dead, "killed by SIGKILL", False)
    assert (ended.operations, ended.errors, ended.rss_mb) == (9, 2, 300.0)
    assert (ended.replaced_by, ended.how, ended.took_s) == (spare, "spare", 0.0)
    assert (b.status().lost, b.status().lost_since) == (0, None)


def test_without_a_spare_the_place_is_empty_until_a_new_worker_is_warm_which_says_how_it_started():
    b = Bench(pool_size=2).boot().obey()
    dead = b.members[0]
    b.feed(ev.WorkerDied(dead, "SIGKILL"))
    assert (b.status().lost, b.status().lost_since) == (1, b.now)
    assert b.status().ended[0].replaced_by is None
    b.tick(3)
    b.obey(ev.StartWorker, ev.WarmWorker)
    new = next(id for id in b.members if id != dead and id != b.id(1))
    b.feed(ev.HealthOk(new, WorkerStatus(new, 0, "ready", start="fork: what it does not share")))
    (ended,) = b.status().ended
    assert (ended.replaced_by, ended.how, ended.took_s) == (new, "fork", 3.0)
    assert b.status().lost == 0


def test_a_worker_that_is_killed_for_its_silence_says_so_and_not_how_its_process_ended():
    b = Bench(pool_size=2).boot().obey()
    dead = b.id(0)
    for _ in range(b.config.max_health_failures):
        b.feed(ev.HealthMissed(dead, "no answer"))
    assert b.status().ended == ()
    b.feed(ev.WorkerDied(dead, "SIGKILL"))
    assert b.status().ended[0].cause == "missed 3 health checks in a row: no answer"
    assert not b.status().ended[0].expected


def test_a_worker_that_was_told_to_go_is_no_loss_and_nothing_takes_over():
    b = Bench(pool_size=2).boot().obey()
    b.feed(ev.DrainRequested(b.id(0)))
    b.obey()
    (ended,) = b.status().ended
    assert (ended.cause, ended.expected, ended.replaced_by) == ("drained by hand", True, None)
    assert b.status().lost == 0


def test_a_pool_that_starts_or_grows_has_lost_nothing_until_a_worker_fails():
    b = Bench(pool_size=2, max_pool_size=4).boot()
    assert (b.status().state, b.status().lost) == ("starting", 0)
    b.obey()
    b.feed(ev.ResizeRequested(4))
    assert (b.status().actual, b.status().lost) == (2, 0)
    b.obey(ev.StartWorker)
    b.feed(ev.WorkerFailed(b.id(3), "out of memory"))
    assert b.status().lost == 1


def test_of_workers_that_ended_the_last_32_are_remembered():
    b = Bench(pool_size=1, restart={"intensity": 1000}).boot().obey()
    for _ in range(40):
        b.feed(ev.WorkerDied(b.members[0], "SIGKILL"))
        b.obey()
        b.tick(60)
    assert len(b.status().ended) == 32


def test_nine_of_ten_of_the_last_starts_took_no_longer_than_sizing_reckons_with():
    bench = Bench(pool_size=1, min_pool_size=1, max_pool_size=20).boot()
    assert facts_of(bench.state).start_delay_s == 1.0
    for size, took_s in enumerate([3.0] * 17 + [40.0, 40.0, 90.0], start=1):
        bench.feed(ev.ResizeRequested(size))
        bench.obey(ev.StartWorker)
        bench.now += took_s
        bench.obey()
    assert facts_of(bench.state).start_delay_s == 40.0
    assert [start_delay([3.0] * 19 + [90.0]), start_delay([5.0])] == [3.0, 5.0]
