"""The pool state machine, one situation at a time. The property test beside it covers the combinations."""

from __future__ import annotations

import itertools

import pytest

from dspool.commands import Member, WorkerStatus
from dspool.config import PoolConfig
from dspool.core.pool import events as ev
from dspool.core.pool.orders import STOP_GRACE_S
from dspool.core.pool.state import PoolState
from dspool.errors import InvalidRequest, UnknownWorker

ORDERS = (ev.StartWorker, ev.WarmWorker, ev.DrainWorker, ev.StopWorker)


class Bench:
    """A pool state whose workers do as they are told, when `obey` is called."""

    def __init__(self, **config):
        self.config = PoolConfig(**config)
        ids = itertools.count()
        self.state = PoolState(self.config, new_id=lambda slot: f"w{slot}.{next(ids)}", jitter=lambda: 1.0)
        self.now = 100.0
        self.actions = []
        self.todo = []

    def feed(self, event):
        out = self.state.handle(event, self.now)
        self.actions += out
        self.todo += out
        return out

    def boot(self):
        self.feed(ev.Booted())
        return self

    def tick(self, seconds):
        self.now += seconds
        return self.feed(ev.Tick())

    def obey(self, *kinds):
        """Carry out the orders given so far (only those of `kinds`, if any are named), and what follows from them."""
        while todo := [a for a in self.todo if not kinds or isinstance(a, kinds)]:
            for action in todo:
                self.todo.remove(action)
                self.carry_out(action)
        return self

    def carry_out(self, action):
        match action:
            case ev.StartWorker(worker_id, slot):
                self.started(worker_id, slot)
            case ev.WarmWorker(worker_id):
                self.feed(ev.WarmFinished(worker_id))
            case ev.DrainWorker(worker_id):
                self.feed(ev.Drained(worker_id))
            case ev.StopWorker(worker_id) | ev.KillWorker(worker_id):
                self.feed(ev.WorkerDied(worker_id, "told to"))

    def started(self, worker_id, slot):
        return self.feed(ev.WorkerStarted(worker_id, Member(worker_id, slot, "host", 1, 8)))

    def of(self, kind, within=None):
        return [a for a in (self.actions if within is None else within) if isinstance(a, kind)]

    def phases(self):
        return {w.slot: w.phase for w in sorted(self.state.roster, key=lambda w: w.slot)}

    def id(self, slot):
        return next(w.id for w in self.state.roster if w.slot == slot)

    @property
    def members(self):
        return [m.worker_id for m in self.state.membership.workers]


def test_a_starting_pool_orders_all_its_workers_at_once():
    b = Bench(pool_size=3, spares=1).boot()
    assert [a.slot for a in b.of(ev.StartWorker)] == [0, 1, 2, 3]


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
    assert b.state.status().state == "starting"
    b.feed(ev.WarmFinished(b.id(1)))
    assert (b.state.status().state, b.state.status().ready) == ("ready", True)


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
    assert b.state.status().spares == 2


def test_a_replacement_gets_a_slot_number_only_after_its_holder_is_gone():
    b = Bench(pool_size=2).boot().obey()
    for _ in range(b.config.max_health_failures):
        b.feed(ev.HealthMissed(b.id(0), "no answer"))
    assert b.phases() == {0: "failed", 1: "ready", 2: "starting"}
    b.obey(ev.StartWorker, ev.WarmWorker)
    assert [m.slot for m in b.state.membership.workers] == [1, 2]


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
    for slot, sessions in ((0, 0), (1, 9), (2, 5)):
        b.feed(ev.HealthOk(b.id(slot), WorkerStatus(b.id(slot), slot, "ready", sessions=sessions)))
    b.feed(ev.ResizeRequested(1))
    assert b.phases() == {0: "draining", 1: "ready", 2: "draining"}
    assert [m.slot for m in b.state.membership.workers] == [1]
    assert not b.of(ev.KillWorker)
    b.obey()
    assert b.phases() == {1: "ready"}


def test_growing_while_draining_starts_new_workers_and_lets_the_draining_ones_finish():
    b = Bench(pool_size=3).boot().obey()
    b.feed(ev.ResizeRequested(1))
    b.feed(ev.ResizeRequested(3))
    draining = [slot for slot, phase in b.phases().items() if phase == "draining"]
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
        ({"max_memory_mb": 500}, {"rss_mb": 512.0}, "recycled at 512 MB"),
        ({}, {"state": "failed", "reason": "an operation will not end"}, "an operation will not end"),
    ],
)
def test_a_worn_out_worker_is_replaced_warm_first(limits, status, reason):
    b = Bench(pool_size=2, recycle=limits).boot().obey()
    old = b.id(1)
    b.feed(ev.HealthOk(old, WorkerStatus(old, 1, "ready", rss_mb=100.0)))
    b.feed(ev.HealthOk(old, WorkerStatus(**{"id": old, "slot": 1, "state": "ready", **status})))
    assert old in b.members
    assert b.state.roster.get(old).leaving == reason
    b.obey()
    assert old not in b.members
    assert len(b.members) == 2


def test_a_memory_limit_below_what_a_fresh_worker_has_recycles_nothing_and_is_said_once():
    b = Bench(pool_size=2, spares=1, recycle={"max_memory_mb": 100.0, "max_operations": 50}).boot().obey()
    workers = set(b.phases())
    for rss_mb in (120.0, 130.0, 99.0, 900.0):
        for w in b.state.roster:
            b.feed(ev.HealthOk(w.id, WorkerStatus(w.id, w.slot, w.phase, rss_mb=rss_mb)))
        b.obey()
    assert set(b.phases()) == workers
    assert not any(w.leaving for w in b.state.roster)
    (said,) = [a.metadata for a in b.of(ev.Emit) if a.name == "pool.error"]
    assert said["code"] == "memory_limit_too_low"
    assert "recycle.max_memory_mb is 100" in said["reason"]
    assert "120 MB" in said["reason"]
    old = b.id(0)
    b.feed(ev.HealthOk(old, WorkerStatus(old, 0, "ready", rss_mb=900.0, operations=50)))
    assert b.of(ev.DrainWorker)[-1].worker_id == old, "the other limits hold"


def test_an_adopted_worker_over_the_memory_limit_is_recycled_because_nobody_knows_what_it_began_with():
    b = Bench(pool_size=1, recycle={"max_memory_mb": 500.0})
    b.feed(adopted(0, "ready"))
    b.boot()
    b.feed(ev.HealthOk("old0", WorkerStatus("old0", 0, "ready", rss_mb=600.0)))
    b.obey()
    assert "old0" not in b.members
    assert len(b.members) == 1


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
    status = b.state.status()
    assert (len(b.members), status.desired) == (4, 4)
    assert [w.overflow for w in status.workers] == [False, False, True, True]
    b.feed(ev.SizingDecided(2, 0))
    b.obey()
    assert [m.slot for m in b.state.membership.workers] == [0, 1]


def test_a_decision_of_sizing_never_leaves_the_bounds():
    b = Bench(pool_size=2, min_pool_size=1, max_pool_size=4, max_overflow=1).boot()
    b.feed(ev.SizingDecided(99, 99))
    assert (b.state.desired, b.state.overflow) == (4, 1)
    b.feed(ev.SizingDecided(-3, -3))
    assert (b.state.desired, b.state.overflow) == (1, 0)


# --- warm-up and its failures --------------------------------------------------------------------------


def test_a_staged_start_warms_a_canary_alone_and_then_three_stages():
    b = Bench(pool_size=7, warmup={"strategy": "staged"}).boot()
    sizes = []
    while starts := [a for a in b.todo if isinstance(a, ev.StartWorker)]:
        sizes.append(len(starts))
        b.todo = []
        for a in starts:
            b.started(a.worker_id, a.slot)
            b.feed(ev.WarmFinished(a.worker_id))
    assert sizes == [1, 1, 2, 3]
    assert len(b.members) == 7


def test_a_sequential_start_warms_one_worker_at_a_time():
    b = Bench(pool_size=3, warmup={"strategy": "sequential"}).boot()
    for slot in (0, 1, 2):
        assert len(b.of(ev.StartWorker)) == slot + 1
        b.obey(ev.StartWorker)
        b.feed(ev.WarmFinished(b.id(slot)))
    assert len(b.members) == 3


def test_a_failed_canary_stops_the_roll_out_and_says_why():
    b = Bench(pool_size=7, warmup={"strategy": "staged"}).boot()
    b.obey(ev.StartWorker)
    out = b.feed(ev.WorkerFailed(b.id(0), "warm-up step 1 (probe) failed: no answer"))
    assert not b.of(ev.StartWorker, out)
    assert b.of(ev.KillWorker, out)
    status = b.state.status()
    assert status.state == "degraded"
    assert "warm-up step 1 (probe) failed: no answer" in status.reason
    stopped = [a for a in b.of(ev.Emit, out) if a.metadata.get("code") == "warmup_stopped"]
    assert "6 more workers" in stopped[0].metadata["reason"]


def test_after_a_stopped_roll_out_the_next_try_begins_with_a_canary_again():
    b = Bench(pool_size=7, warmup={"strategy": "staged"}, restart={"backoff_s": 1.0}).boot()
    b.obey(ev.StartWorker)
    b.feed(ev.WorkerFailed(b.id(0), "no"))
    b.obey(ev.KillWorker)
    assert not b.of(ev.StartWorker, b.tick(0.9))
    assert len(b.of(ev.StartWorker, b.tick(0.2))) == 1


def test_a_failing_stage_stops_the_roll_out_but_keeps_what_is_warm():
    b = Bench(pool_size=7, warmup={"strategy": "staged"}).boot()
    for size in (1, 1):
        starts = [a for a in b.todo if isinstance(a, ev.StartWorker)]
        assert len(starts) == size
        b.todo = []
        for a in starts:
            b.started(a.worker_id, a.slot)
            b.feed(ev.WarmFinished(a.worker_id))
    first, second = (a for a in b.todo if isinstance(a, ev.StartWorker))
    for a in (first, second):
        b.started(a.worker_id, a.slot)
    b.feed(ev.WorkerFailed(first.worker_id, "no"))
    out = b.feed(ev.WarmFinished(second.worker_id))
    assert len(b.members) == 3
    assert not b.of(ev.StartWorker, out)
    b.obey(ev.KillWorker)
    assert len(b.of(ev.StartWorker, b.tick(1.0))) == 1, "the next roll-out begins with a canary again"


def test_a_worker_that_never_starts_listening_is_killed_after_its_time():
    b = Bench(pool_size=1, init_timeout_s=60.0).boot()
    assert b.state.next_due(b.now) == b.now + 60.0
    out = b.tick(60.0)
    assert "not warm in time" in b.of(ev.KillWorker, out)[0].why
    assert b.phases() == {0: "failed"}


def test_a_worker_killed_in_warm_up_is_replaced_after_a_backoff():
    b = Bench(pool_size=2, restart={"backoff_s": 0.5}).boot()
    b.obey(ev.StartWorker)
    out = b.feed(ev.WorkerDied(b.id(0), "SIGKILL"))
    assert not b.of(ev.StartWorker, out)
    assert len(b.of(ev.StartWorker, b.tick(0.51))) == 1


def test_a_worker_killed_while_draining_is_not_replaced_twice_and_counts_as_no_failure():
    b = Bench(pool_size=2, restart={"intensity": 1}).boot().obey()
    going = b.id(0)
    b.feed(ev.DrainRequested(going))
    b.obey(ev.StartWorker, ev.WarmWorker)
    out = b.feed(ev.WorkerDied(going, "SIGKILL"))
    assert not b.of(ev.StartWorker, out)
    assert ev.FreeLeases(going) in out
    assert len(b.members) == 2
    assert b.state.status().state == "ready"


def test_a_spare_killed_in_the_moment_of_its_promotion_is_a_death_like_any_other():
    b = Bench(pool_size=2, spares=1).boot().obey()
    spare = b.state.roster.spares[0].id
    b.feed(ev.WorkerDied(b.members[0], "SIGKILL"))
    assert spare in b.members
    b.feed(ev.WorkerDied(spare, "SIGKILL"))
    assert spare not in b.members
    b.obey()
    assert len(b.members) == 2
    assert len(b.state.roster.spares) == 1


# --- crash loop ----------------------------------------------------------------------------------------


def crash_loop(b, times):
    for _ in range(times):
        b.obey()
        b.feed(ev.WorkerDied(b.id(min(b.phases())), "exit 1"))
        b.now += 0.01


def test_a_crash_loop_opens_the_breaker_and_the_pool_serves_with_what_is_left():
    b = Bench(pool_size=3, restart={"intensity": 5, "period_s": 30.0, "backoff_s": 1.0}).boot()
    crash_loop(b, 6)
    status = b.state.status()
    assert status.state == "degraded"
    assert "6 workers failed within 30 s (more than 5)" in status.reason
    assert "exit 1" in status.reason
    assert b.of(ev.DeclareDegraded)[-1].reason == status.reason
    assert len(b.members) == 2
    assert status.ready


def test_a_degraded_pool_tries_one_worker_at_a_time_and_waits_longer_each_time():
    b = Bench(pool_size=3, restart={"intensity": 2, "period_s": 1000.0, "backoff_s": 1.0}).boot()
    crash_loop(b, 3)
    b.todo = []
    waits = []
    for _ in range(4):
        began = b.now
        while not b.of(ev.StartWorker, b.todo):
            b.tick(0.1)
        waits.append(b.now - began)
        (start,) = b.of(ev.StartWorker, b.todo)
        b.todo = []
        b.feed(ev.WorkerDied(start.worker_id, "exit 1"))
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


def test_a_degraded_pool_that_misses_several_workers_starts_one_and_waits_for_it():
    b = Bench(pool_size=3, restart={"intensity": 2, "period_s": 1000.0, "backoff_s": 1.0}).boot().obey()
    for worker_id in b.members:
        b.feed(ev.WorkerDied(worker_id, "exit 1"))
    for worker in b.state.roster.pending:
        b.feed(ev.WorkerDied(worker.id, "exit 1"))
    assert b.phases() == {}
    b.tick(20.0)
    assert b.phases() == {0: "starting"}
    b.tick(20.0)
    assert b.phases() == {0: "starting"}
    b.todo = [ev.StartWorker(b.id(0), 0)]
    b.obey()
    assert len(b.members) == 3, "one after the other, as long as they start"


def test_the_pool_is_no_longer_degraded_once_the_failures_are_old():
    b = Bench(pool_size=2, restart={"intensity": 2, "period_s": 30.0}).boot()
    crash_loop(b, 3)
    assert b.state.degraded
    b.tick(10.0)
    b.obey()
    assert len(b.members) == 2
    assert b.state.degraded, "full again, but it may be the same loop"
    b.tick(20.1)
    assert b.state.degraded == ""
    assert b.of(ev.DeclareDegraded)[-1].reason == ""


# --- health --------------------------------------------------------------------------------------------


def test_missed_health_checks_in_a_row_get_a_worker_killed_and_its_leases_freed():
    b = Bench(pool_size=2, max_health_failures=3).boot().obey()
    stuck = b.id(0)
    b.feed(ev.HealthMissed(stuck, "late"))
    b.feed(ev.HealthMissed(stuck, "late"))
    assert stuck in b.members
    out = b.feed(ev.HealthMissed(stuck, "late"))
    assert stuck not in b.members
    assert {type(a) for a in out} >= {ev.KillWorker, ev.FreeLeases, ev.StartWorker, ev.PublishMembership}


def test_one_good_answer_forgives_missed_checks():
    b = Bench(pool_size=1, max_health_failures=2).boot().obey()
    w = b.id(0)
    for _ in range(5):
        b.feed(ev.HealthMissed(w, "late"))
        b.feed(ev.HealthOk(w, WorkerStatus(w, 0, "ready")))
    assert b.members == [w]


def test_a_check_that_fails_for_certain_after_a_clients_report_acts_at_once():
    b = Bench(pool_size=1).boot().obey()
    assert b.of(ev.KillWorker, b.feed(ev.HealthMissed(b.id(0), "connection refused", certain=True)))


def suspect(b, worker_id, pauses):
    for pause in pauses:
        b.now += pause
        b.feed(ev.Suspected(worker_id, "refused"))


def test_clients_that_cannot_talk_to_a_healthy_worker_for_several_intervals_get_it_replaced():
    b = Bench(pool_size=1, max_health_failures=3, health_check_interval_s=5.0).boot().obey()
    w = b.id(0)
    suspect(b, w, [0.0, 5.0])
    assert w in b.members
    suspect(b, w, [5.0])
    assert w not in b.members


@pytest.mark.parametrize("pauses", [[0.01] * 50, [20.0] * 10])
def test_reports_in_one_burst_or_once_in_a_while_do_not_kill_a_healthy_worker(pauses):
    b = Bench(pool_size=1, max_health_failures=3, health_check_interval_s=5.0).boot().obey()
    w = b.id(0)
    suspect(b, w, pauses)
    assert b.members == [w]


def test_a_worker_that_lives_on_beside_a_crash_loop_does_not_keep_the_backoff_short():
    b = Bench(pool_size=2, restart={"intensity": 2, "period_s": 20.0, "backoff_s": 0.1}).boot().obey()
    survivor = b.id(1)
    waits = []
    for _ in range(8):
        began = b.now
        while not (found := [w for w in b.state.roster if w.slot == 0]):
            b.tick(0.05)
            b.feed(ev.HealthOk(survivor, WorkerStatus(survivor, 1, "ready")))
        waits.append(b.now - began)
        b.feed(ev.WorkerDied(found[0].id, "exit 1"))
    assert waits[-1] > 3.0


def test_a_kill_that_does_not_show_is_repeated_and_the_slot_number_stays_taken():
    b = Bench(pool_size=1).boot().obey()
    b.feed(ev.HealthMissed(b.id(0), "gone", certain=True))
    b.todo = []
    b.tick(STOP_GRACE_S)
    b.tick(STOP_GRACE_S)
    assert len(b.of(ev.KillWorker)) == 3
    assert b.phases()[0] == "failed"


# --- membership, adoption, life ------------------------------------------------------------------------


def test_the_version_grows_with_each_change_and_only_then():
    b = Bench(pool_size=2).boot().obey()
    version = b.state.membership.version
    b.tick(1.0)
    b.feed(ev.HealthOk(b.id(0), WorkerStatus(b.id(0), 0, "ready")))
    assert b.state.membership.version == version
    b.feed(ev.PauseRequested(True))
    assert (b.state.membership.version, b.state.membership.paused) == (version + 1, True)
    b.feed(ev.ProgramsChanged({"qa": 2}))
    assert (b.state.membership.version, b.state.membership.programs) == (version + 2, {"qa": 2})


def test_a_restarted_supervisor_continues_above_every_version_that_was_published():
    b = Bench(pool_size=2).boot().obey()
    ceiling = next(a.value for a in b.of(ev.Persist) if a.key == "version_ceiling")
    assert b.state.membership.version < ceiling
    again = Bench(pool_size=2)
    again.feed(ev.Restored(desired=3, version=ceiling))
    again.boot()
    assert again.state.membership.version >= ceiling > b.state.membership.version
    assert again.state.desired == 3
    assert again.obey().state.membership.version > ceiling


def test_a_new_ceiling_is_written_down_long_before_the_old_one_is_reached():
    b = Bench(pool_size=1).boot().obey()
    for n in range(3000):
        b.feed(ev.PauseRequested(n % 2 == 0))
        ceiling = [a.value for a in b.of(ev.Persist) if a.key == "version_ceiling"][-1]
        assert b.state.membership.version + 400 < ceiling


def test_a_client_that_knows_a_later_version_gets_one_above_it():
    b = Bench(pool_size=1).boot().obey()
    b.feed(ev.VersionSeen(5000))
    assert b.state.membership.version == 5001


def test_written_desired_size_outside_new_bounds_is_brought_within():
    b = Bench(pool_size=2, max_pool_size=4)
    b.feed(ev.Restored(desired=8))
    assert b.state.desired == 4


def adopted(slot, state):
    return ev.WorkerAdopted(f"old{slot}", slot, Member(f"old{slot}", slot, "host", 1, 8), state)


def test_adopted_workers_are_kept_as_they_were_and_no_duplicate_is_started():
    b = Bench(pool_size=2, spares=1)
    for event in (adopted(0, "ready"), adopted(1, "ready"), adopted(2, "spare")):
        b.feed(event)
    assert not b.of(ev.PublishMembership), "nothing is published before all are adopted"
    b.boot()
    assert b.members == ["old0", "old1"]
    assert not b.of(ev.StartWorker)


def test_adopted_spares_beyond_the_configured_number_are_stopped():
    b = Bench(pool_size=1, spares=1)
    for event in (adopted(0, "ready"), adopted(1, "spare"), adopted(2, "spare")):
        b.feed(event)
    b.boot()
    assert b.of(ev.StopWorker) == [ev.StopWorker("old2")]
    assert b.obey().phases() == {0: "ready", 1: "spare"}


def test_an_adopted_worker_that_was_never_warm_is_warmed_before_it_takes_traffic():
    b = Bench(pool_size=1)
    b.feed(adopted(0, "starting"))
    b.boot()
    assert b.members == []
    assert b.of(ev.WarmWorker) == [ev.WarmWorker("old0")]
    b.obey()
    assert b.members == ["old0"]
    assert not b.of(ev.StartWorker)


def test_an_adopted_worker_that_was_draining_goes_on_draining():
    b = Bench(pool_size=1)
    b.feed(adopted(0, "draining"))
    b.boot()
    b.obey()
    assert b.phases() == {1: "ready"}


def test_of_two_adopted_workers_with_one_slot_number_the_second_is_killed():
    b = Bench(pool_size=1)
    b.feed(adopted(0, "ready"))
    out = b.feed(ev.WorkerAdopted("twin", 0, Member("twin", 0, "host", 2, 8), "ready"))
    assert [a.worker_id for a in b.of(ev.KillWorker, out)] == ["twin"]
    b.boot()
    assert b.members == ["old0"]


def test_a_lazy_pool_starts_nothing_until_it_is_woken_and_is_ready_to_be():
    b = Bench(pool_size=2, lazy=True, spares=1).boot()
    assert not b.of(ev.StartWorker)
    assert b.state.is_ready
    assert "lazy" in b.state.status().reason
    b.feed(ev.Woken())
    assert len(b.of(ev.StartWorker)) == 3
    assert not b.state.is_ready


def test_a_lazy_pool_that_was_woken_stays_awake_under_the_next_supervisor():
    b = Bench(pool_size=2, lazy=True).boot()
    b.feed(ev.Woken())
    assert ev.Persist("awake", True) in b.actions
    again = Bench(pool_size=2, lazy=True)
    again.feed(ev.Restored(awake=True))
    assert len(again.of(ev.StartWorker, again.feed(ev.Booted()))) == 2


def test_closing_drains_those_with_traffic_stops_the_rest_and_starts_nothing():
    b = Bench(pool_size=2, spares=1, max_pool_size=4).boot().obey()
    b.feed(ev.ResizeRequested(3))
    out = b.feed(ev.CloseRequested(10.0))
    assert (b.state.membership.closed, b.members) == (True, [])
    assert not b.of(ev.StartWorker, out)
    b.obey()
    assert len(b.state.roster) == 0
    assert b.state.status().state == "closed"


def test_closing_kills_what_is_left_when_its_time_is_over():
    b = Bench(pool_size=2).boot().obey()
    b.feed(ev.CloseRequested(10.0))
    out = b.tick(10.0)
    assert len(b.of(ev.KillWorker, out)) == 2


def test_events_about_a_worker_that_is_gone_change_nothing():
    b = Bench(pool_size=1).boot().obey()
    before = b.state.membership
    gone = "w9.99"
    for event in (
        ev.WorkerStarted(gone, Member(gone, 9, "host", 1, 8)),
        ev.WarmFinished(gone),
        ev.WorkerFailed(gone, "no"),
        ev.WorkerDied(gone, "no"),
        ev.HealthOk(gone, WorkerStatus(gone, 9, "ready")),
        ev.HealthMissed(gone, "no"),
        ev.Suspected(gone, "no"),
        ev.Drained(gone),
    ):
        assert b.feed(event) == []
    assert b.state.membership == before
    for request in (ev.DrainRequested(gone), ev.RestartRequested(gone)):
        with pytest.raises(UnknownWorker, match=gone):
            b.feed(request)


def test_recovery_is_measured_from_the_death_to_full_strength():
    b = Bench(pool_size=2).boot().obey()
    b.feed(ev.WorkerDied(b.id(0), "SIGKILL"))
    b.now += 0.7
    b.obey()
    (recovery,) = [a for a in b.of(ev.Emit) if a.name == "pool.recovery"]
    assert recovery.measurements["duration_s"] == pytest.approx(0.7)


def test_every_event_it_emits_is_in_the_table_with_its_names():
    from dspool.telemetry import undeclared

    b = Bench(pool_size=3, restart={"intensity": 1}, warmup={"strategy": "staged"}).boot()
    b.obey(ev.StartWorker)
    b.feed(ev.WorkerFailed(b.id(0), "no"))
    b.tick(30.0)
    b.obey()
    b.feed(ev.ResizeRequested(2))
    b.obey()
    b.feed(ev.WorkerDied(b.id(b.state.membership.workers[0].slot), "SIGKILL"))
    b.tick(31.0)
    b.obey()
    emitted = b.of(ev.Emit)
    assert {a.name for a in emitted} >= {
        "pool.init",
        "pool.error",
        "pool.resize",
        "pool.recovery",
        "worker.init",
    }
    for a in emitted:
        assert undeclared(a.name, a.measurements, {"pool": "p", **a.metadata}) == set()
