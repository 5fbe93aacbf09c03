"""What clients and workers report is counted once and never lost, within bounds on how much is told apart."""

from __future__ import annotations

from msgspec.structs import replace

from dspool.core.metrics.metric_store import MAX_WORKERS
from dspool.core.metrics.recorder import ClientRecorder, WorkerRecorder
from dspool.core.metrics.sources import MAX_REPORTERS
from dspool.core.metrics.tally import MAX_PROGRAMS, OTHER
from dspool.messages import PoolStatus
from dspool.telemetry.metrics import encode
from tests.unit.metrics_scene import Scene, counts


def test_counters_agree_with_the_callers_own_count_by_outcome():
    scene = Scene(clients=4)
    for number in range(4):
        scene.run("ok", 10 + number, client=number)
        scene.run("client_error", 2, client=number, code="invalid_request")
        scene.run("timeout", 1, client=number, code="deadline_exceeded")
    scene.flush()
    assert counts(scene) == {
        "ok": 46,
        "error": 0,
        "timeout": 4,
        "client_error": 8,
        "rejected": 0,
        "cancelled": 0,
    }
    assert scene.snapshot().counters.errors_by_code == {"invalid_request": 8, "deadline_exceeded": 4}
    assert scene.snapshot().telemetry.unattributed == 0


def test_a_delta_that_arrives_twice_is_counted_once():
    scene = Scene()
    scene.run(times=5)
    delta = scene.clients[0].take_delta(scene.now)
    scene.metrics.report(delta)
    scene.metrics.report(delta)
    scene.metrics.report_encoded([encode(delta)])
    assert counts(scene)["ok"] == 5
    assert scene.snapshot().telemetry.duplicates == 2


def test_a_delta_that_failed_to_arrive_is_sent_again_and_nothing_is_lost():
    scene = Scene()
    scene.run(times=5)
    recorder = scene.clients[0]
    recorder.give_back(recorder.take_delta(scene.now))
    scene.run(times=3)
    scene.flush()
    scene.flush()
    assert counts(scene)["ok"] == 8
    assert scene.snapshot().programs["qa"].counters.by_outcome["ok"] == 8


def test_a_delta_that_never_arrives_is_made_up_for_by_the_next_and_stated():
    scene = Scene()
    scene.run(times=5)
    scene.clients[0].take_delta(scene.now)
    scene.run("error", times=3)
    scene.flush()
    snapshot = scene.snapshot()
    assert (snapshot.counters.by_outcome["ok"], snapshot.counters.by_outcome["error"]) == (5, 3)
    assert snapshot.telemetry.unattributed == 5
    assert snapshot.programs["qa"].counters.by_outcome["ok"] == 0


def test_reporting_does_not_change_the_delta_that_was_reported():
    scene = Scene()
    scene.run(times=5)
    delta = scene.clients[0].take_delta(scene.now)
    before = encode(delta)
    scene.metrics.report(delta)
    scene.run(times=5)
    scene.flush()
    assert encode(delta) == before


def test_what_is_for_another_pool_is_ignored_and_counted():
    scene = Scene()
    stranger = ClientRecorder("other", "c9", now=scene.now)
    stranger.submitted("qa")
    stranger.record("qa", "ok", 1.0)
    scene.metrics.report(stranger.take_delta(scene.now))
    scene.metrics.report(PoolStatus("other", "ready", True, 9, 9, 0, 1))
    assert counts(scene)["ok"] == 0
    assert (scene.snapshot().telemetry.foreign, scene.snapshot().desired) == (2, 2)


def test_programs_beyond_the_bound_are_counted_together():
    scene = Scene()
    for batch in range(4):
        for number in range(50):
            scene.run(program=f"p{batch}-{number}")
        scene.flush()
    snapshot = scene.snapshot()
    assert len(snapshot.programs) == MAX_PROGRAMS + 1
    assert snapshot.programs[OTHER].counters.by_outcome["ok"] == 200 - MAX_PROGRAMS
    assert snapshot.counters.by_outcome["ok"] == 200


def test_workers_beyond_the_bound_are_counted_together():
    scene = Scene(workers=0)
    for ordinal in range(MAX_WORKERS + 10):
        recorder = WorkerRecorder("default", f"w{ordinal}", ordinal, 4, now=scene.now)
        scene.metrics.report(recorder.take_delta(scene.now + 1))
    assert len(scene.snapshot().workers) == MAX_WORKERS + 1


def test_reporters_are_bounded_and_a_forgotten_one_is_not_counted_twice():
    scene = Scene()
    scene.run(times=5)
    scene.flush()
    for number in range(MAX_REPORTERS + 5):
        scene.metrics.report(ClientRecorder("default", f"x{number}", now=scene.now).take_delta(scene.now))
    scene.run(times=2)
    scene.flush()
    assert counts(scene)["ok"] == 7


def test_of_what_reports_no_more_only_totals_stay():
    scene = Scene()
    scene.run(times=5)
    scene.flush()
    sources = scene.metrics._store.sources._all
    assert all(source.last is not None for source in sources.values())
    scene.now += scene.metrics.options.stale_after_s
    scene.metrics.tick(scene.now)
    assert [source.last for source in sources.values()] == [None] * len(sources)
    scene.run(times=2)
    scene.flush()
    assert counts(scene)["ok"] == 7


def test_a_delta_from_a_defective_sender_is_ignored_and_counted():
    scene = Scene()
    scene.run()
    delta = scene.clients[0].take_delta(scene.now)
    scene.metrics.report(replace(delta, totals=[1, 2]))
    scene.metrics.report_encoded([b"nonsense", encode(delta)])
    assert counts(scene)["ok"] == 1
    assert scene.snapshot().telemetry.foreign == 2
