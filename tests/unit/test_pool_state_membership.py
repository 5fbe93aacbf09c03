"""What the pool state machine publishes, takes over from a dead supervisor, and how it ends."""

from __future__ import annotations

import pytest

from dspool.core.lifecycle import events as ev
from dspool.errors import UnknownWorker
from dspool.messages import Member, WorkerStatus
from tests.unit.pool_bench import Bench, adopted


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


def test_of_two_adopted_workers_with_one_ordinal_the_second_is_killed():
    b = Bench(pool_size=1)
    b.feed(adopted(0, "ready"))
    out = b.feed(ev.WorkerAdopted("twin", 0, Member("twin", 0, "host", 2, 8), "ready"))
    assert [a.worker_id for a in b.of(ev.KillWorker, out)] == ["twin"]
    b.boot()
    assert b.members == ["old0"]


# --- for whom clients are to wait ---


def test_a_worker_that_drains_is_named_as_finishing_until_it_is_gone():
    b = Bench(pool_size=2).boot().obey()
    going = b.id(0)
    assert b.state.membership.finishing == ()
    b.feed(ev.DrainRequested(going))
    assert (going in b.members, b.state.membership.finishing) == (False, (going,))
    b.feed(ev.Drained(going))
    assert b.state.membership.finishing == (going,), "its last results may be on their way"
    b.feed(ev.WorkerDied(going, "stopped"))
    assert b.state.membership.finishing == ()


@pytest.mark.parametrize("drains", [False, True])
def test_a_worker_that_was_declared_dead_is_named_nowhere_from_then_on_though_its_process_may_live(drains):
    b = Bench(pool_size=2, max_health_failures=1).boot().obey()
    hung = b.id(0)
    if drains:
        b.feed(ev.DrainRequested(hung))
    version = b.state.membership.version
    out = b.feed(ev.HealthMissed(hung, "no answer"))
    assert [a.worker_id for a in b.of(ev.KillWorker, out)] == [hung]
    assert out[0] == ev.PublishMembership(b.state.membership), "before anything else is done"
    assert b.state.membership.version > version
    assert not b.state.membership.lives(hung)
    for event in (
        ev.HealthOk(hung, WorkerStatus(hung, 0, "ready")),
        ev.WarmFinished(hung),
        ev.Drained(hung),
        ev.WorkerStarted(hung, Member(hung, 0, "host", 1, 8)),
    ):
        b.feed(event)
        assert not b.state.membership.lives(hung), "it thawed"


def test_a_drained_worker_that_does_not_stop_is_not_waited_for_for_ever():
    b = Bench(pool_size=2).boot().obey()
    going = b.id(0)
    b.feed(ev.DrainRequested(going))
    b.feed(ev.Drained(going))
    b.tick(60.0)
    assert not b.state.membership.lives(going)


def test_a_worker_that_never_took_traffic_is_of_no_interest_to_clients():
    b = Bench(pool_size=1, spares=1).boot().obey()
    spare = next(w.id for w in b.state.roster.spares)
    b.feed(ev.DrainRequested(spare))
    assert b.state.membership.finishing == ()


def test_an_adopted_worker_is_waited_for_even_if_nobody_wrote_down_that_it_takes_traffic():
    b = Bench(pool_size=1)
    b.feed(adopted(0, "starting"))
    b.feed(adopted(1, "draining"))
    b.boot()
    assert b.state.membership.finishing == ("old0", "old1")
    b.obey()
    assert (b.members, b.state.membership.finishing) == (["old0"], ())


def test_a_successor_hears_who_was_given_up():
    b = Bench(pool_size=2, max_health_failures=1).boot().obey()
    b.feed(ev.HealthMissed(b.id(0), "no answer"))
    roster = [a.value for a in b.of(ev.Persist) if a.key == "roster"][-1]
    assert roster[b.id(0)] == "failed"


# --- lazy, closing ---


def test_a_lazy_pool_starts_nothing_until_it_is_woken_and_is_ready_to_be():
    b = Bench(pool_size=2, lazy=True, spares=1).boot()
    assert not b.of(ev.StartWorker)
    assert b.state.is_ready
    assert "lazy" in b.status().reason
    b.feed(ev.Woken())
    assert len(b.of(ev.StartWorker)) == 2
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
    assert b.status().state == "closed"


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
    from dspool.telemetry.events import undeclared

    b = Bench(pool_size=3, restart={"intensity": 1}, warmup={"strategy": "staged"}).boot()
    b.obey(ev.StartWorker)
    b.feed(ev.WorkerFailed(b.id(0), "no"))
    b.tick(30.0)
    b.obey()
    b.feed(ev.ResizeRequested(2))
    b.obey()
    b.feed(ev.WorkerDied(b.id(b.state.membership.workers[0].ordinal), "SIGKILL"))
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
