"""The pool state machine when workers fail: in warm-up, again and again, or silently."""

from __future__ import annotations

import pytest

from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.orders import STOP_GRACE_S
from dspool.messages import WorkerStatus
from tests.unit.pool_bench import Bench

# --- warm-up and its failures ---


def test_a_staged_start_warms_a_canary_alone_and_then_three_stages():
    b = Bench(pool_size=7, warmup={"strategy": "staged"}).boot()
    sizes = []
    while starts := [a for a in b.todo if isinstance(a, ev.StartWorker)]:
        sizes.append(len(starts))
        b.todo = []
        for a in starts:
            b.started(a.worker_id, a.ordinal)
            b.feed(ev.WarmFinished(a.worker_id))
    assert sizes == [1, 1, 2, 3]
    assert len(b.members) == 7


def test_a_sequential_start_warms_one_worker_at_a_time():
    b = Bench(pool_size=3, warmup={"strategy": "sequential"}).boot()
    for ordinal in (0, 1, 2):
        assert len(b.of(ev.StartWorker)) == ordinal + 1
        b.obey(ev.StartWorker)
        b.feed(ev.WarmFinished(b.id(ordinal)))
    assert len(b.members) == 3


def test_a_failed_canary_stops_the_roll_out_and_says_why():
    b = Bench(pool_size=7, warmup={"strategy": "staged"}).boot()
    b.obey(ev.StartWorker)
    out = b.feed(ev.WorkerFailed(b.id(0), "warm-up step 1 (probe) failed: no answer"))
    assert not b.of(ev.StartWorker, out)
    assert b.of(ev.KillWorker, out)
    status = b.status()
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
            b.started(a.worker_id, a.ordinal)
            b.feed(ev.WarmFinished(a.worker_id))
    first, second = (a for a in b.todo if isinstance(a, ev.StartWorker))
    for a in (first, second):
        b.started(a.worker_id, a.ordinal)
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
    assert b.status().state == "ready"


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


@pytest.mark.parametrize("mended", ["warm", "restart"])
def test_why_no_new_worker_starts_is_said_beside_those_that_serve_until_one_is_warm_or_asked_for(mended):
    b = Bench(pool_size=2, restart={"backoff_s": 0.5}).boot().obey()
    b.feed(ev.RestartRequested(b.id(0), "other settings"))
    b.obey(ev.StartWorker)
    (fresh,) = (w.id for w in b.state.roster if w.phase == "warming")
    b.feed(ev.WorkerFailed(fresh, "not warm in time"))
    assert b.status().cannot_start == "", "it may go well the next time"
    b.obey(ev.KillWorker)
    b.tick(0.6)
    b.obey(ev.StartWorker)
    (fresh,) = (w.id for w in b.state.roster if w.phase == "warming")
    b.feed(ev.WorkerFailed(fresh, "no module shop", lasts=True))
    assert (b.status().cannot_start, b.status().ready, len(b.members)) == ("no module shop", True, 2)
    b.obey(ev.KillWorker)
    if mended == "restart":
        b.feed(ev.RestartRequested(b.id(1), "it is there now"))
    else:
        b.tick(60.0)
        b.obey()
    assert b.status().cannot_start == ""


# --- crash loop ---


def test_a_start_on_which_worker_after_worker_dies_is_given_up_as_one_that_cannot_go_well():
    b = Bench(pool_size=1, restart={"intensity": 5, "period_s": 30.0, "backoff_s": 0.01}).boot()
    for died in range(1, 7):
        assert b.status().cannot_start == ""
        b.obey(ev.StartWorker)
        b.feed(ev.WorkerDied(b.id(0), "exit code 3"))
        b.tick(1.0) if died < 6 else None
    assert "6 workers failed within 30 s (more than 5); last: " in b.status().cannot_start
    assert "exit code 3" in b.status().cannot_start
    # It is said for as long as none is warm, also in the pause before the next try.
    b.tick(29.0)
    assert b.status().cannot_start
    b.tick(60.0)
    b.obey()
    b.tick(60.0)
    b.obey()
    assert (b.status().cannot_start, b.status().ready) == ("", True)


def test_one_on_which_each_fails_of_what_may_pass_is_not():
    b = Bench(pool_size=1, restart={"intensity": 5, "period_s": 30.0, "backoff_s": 0.01}).boot()
    for _ in range(8):
        b.obey(ev.StartWorker)
        b.feed(ev.WorkerFailed(b.id(0), "connection refused"))
        b.obey(ev.KillWorker)
        b.tick(1.0)
    assert (b.status().state, b.status().cannot_start) == ("degraded", "")


def test_workers_that_die_after_they_were_warm_keep_no_new_one_from_starting():
    b = Bench(pool_size=3, restart={"intensity": 5, "period_s": 30.0, "backoff_s": 1.0}).boot()
    crash_loop(b, 6)
    assert (b.status().state, b.status().cannot_start) == ("degraded", "")


def crash_loop(b, times):
    for _ in range(times):
        b.obey()
        b.feed(ev.WorkerDied(b.id(min(b.phases())), "exit 1"))
        b.now += 0.01


def test_a_crash_loop_opens_the_breaker_and_the_pool_serves_with_what_is_left():
    b = Bench(pool_size=3, restart={"intensity": 5, "period_s": 30.0, "backoff_s": 1.0}).boot()
    crash_loop(b, 6)
    status = b.status()
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
    assert b.state.condition.degraded
    b.tick(10.0)
    b.obey()
    assert len(b.members) == 2
    assert b.state.condition.degraded, "full again, but it may be the same loop"
    b.tick(20.1)
    assert b.state.condition.degraded == ""
    assert b.of(ev.DeclareDegraded)[-1].reason == ""


# --- health ---


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
        while not (found := [w for w in b.state.roster if w.ordinal == 0]):
            b.tick(0.05)
            b.feed(ev.HealthOk(survivor, WorkerStatus(survivor, 1, "ready")))
        waits.append(b.now - began)
        b.feed(ev.WorkerDied(found[0].id, "exit 1"))
    assert waits[-1] > 3.0


def test_a_kill_that_does_not_show_is_repeated_and_the_ordinal_stays_taken():
    b = Bench(pool_size=1).boot().obey()
    b.feed(ev.HealthMissed(b.id(0), "gone", certain=True))
    b.todo = []
    b.tick(STOP_GRACE_S)
    b.tick(STOP_GRACE_S)
    assert len(b.of(ev.KillWorker)) == 3
    assert b.phases()[0] == "failed"
