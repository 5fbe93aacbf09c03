"""The history behind the charts, and what comes back of it and of the counters after the metrics themselves died."""

from __future__ import annotations

import gc
import weakref

import pytest

from dspool.core.metrics.metric_store import ENDED_LIVES
from dspool.core.metrics.recorder import WorkerRecorder
from dspool.telemetry import events as telemetry
from dspool.telemetry.event_log import EventLog
from dspool.telemetry.metrics import Metrics
from tests.unit.metrics_scene import WALL, Scene, counts, status

# --- history ---


def test_history_is_in_order_in_wall_time_even_when_the_wall_clock_steps_back():
    scene = Scene()
    scene.pass_time(5, each_half_second=scene.run)
    scene.wall_step = -1000.0
    scene.pass_time(5, each_half_second=scene.run)
    times = [point.at for point in scene.metrics.history(60).points]
    assert times == sorted(times)
    assert len(times) == 10
    assert times[-1] == pytest.approx(WALL - 1000.0 + scene.now)
    assert times[1] - times[0] == pytest.approx(1.0)


def test_history_answers_exactly_the_duration_asked_for():
    scene = Scene()
    scene.pass_time(30, each_half_second=scene.run)
    view = scene.metrics.history(10)
    assert (view.pool, view.resolution_s, len(view.points)) == ("default", 1.0, 10)
    assert len(scene.metrics.history(3600).points) == 30
    coarse = scene.metrics.history(7200)
    assert (coarse.resolution_s, len(coarse.points)) == (10.0, 3)
    assert coarse.points[0].throughput == pytest.approx(2.0)


def test_a_pool_of_which_nothing_is_known_has_an_empty_history_and_empty_figures():
    scene = Scene()
    assert scene.metrics.history(60).points == ()
    seen = scene.snapshot()
    assert (seen.throughput, seen.error_rate, seen.p99_s, seen.window_s) == (0.0, 0.0, 0.0, 0.0)


def test_levels_in_history_are_means_over_time():
    scene = Scene(fine_interval_s=2.0)
    scene.pass_time(1)
    scene.metrics.report(status("ready", "ready", "ready", "ready", desired=4))
    scene.pass_time(1)
    (point,) = scene.metrics.history(60).points
    assert (point.duration_s, point.size) == (2.0, 3.0)


def test_each_tick_emits_queue_depth_and_utilization():
    log = telemetry.attach(EventLog())
    try:
        scene = Scene()
        scene.pass_time(1)
    finally:
        telemetry.detach(log)
    assert [seen.event for seen in log.after()] == ["queue.depth", "pool.utilization"]
    assert all(not telemetry.undeclared(seen.event, seen.measurements, seen.metadata) for seen in log.after())


def test_figures_belong_to_a_workers_life_and_counters_to_its_ordinal():
    scene = Scene(workers=1)
    scene.pass_time(
        10, each_half_second=lambda: (scene.workers[0].started(scene.now), scene.run(worker=0, run_s=2.16))
    )
    assert scene.snapshot().workers[0].recent.p99_s > 2
    dead, scene.workers[0] = scene.workers[0], WorkerRecorder("default", "w-new", 0, 4, now=scene.now)
    scene.pass_time(2)
    seen = scene.snapshot().workers[0]
    assert (seen.worker, seen.recent.operations, seen.recent.p99_s, seen.recent.utilization) == (
        "w-new", 0, 0.0, 0.0
    )  # fmt: skip
    assert seen.counters.by_outcome["ok"] == 20, "what exporters count goes on"
    assert sum(scene.metrics.table(60, worker=dead.reporter).column("operations")) == 20
    assert sum(scene.metrics.table(60, worker="w-new").column("operations")) == 0
    assert sum(scene.metrics.table(60, ordinal=0).column("operations")) == 0, "the one that has it now"
    scene.pass_time(5)
    rows = len(scene.metrics.table(60, worker=dead.reporter).times())
    scene.pass_time(10)
    assert len(scene.metrics.table(60, worker=dead.reporter).times()) == rows, "its history has ended"


def test_a_history_goes_with_its_worker_and_waits_for_no_search_for_cycles():
    scene = Scene(workers=0)
    gc.disable()
    try:
        series = scene.metrics._store.worker_series("w0")
        gone = weakref.ref(series.history)
        del series, scene.metrics._store.workers["w0"]
        assert gone() is None
    finally:
        gc.enable()


def test_of_workers_that_report_no_more_a_bounded_number_of_histories_stays():
    scene = Scene(workers=0)
    for number in range(ENDED_LIVES + 20):
        worker = WorkerRecorder("default", f"life-{number}", 0, 4, now=scene.now)
        scene.now += 1
        scene.metrics.report(worker.take_delta(scene.now, final=True))
        scene.metrics.tick()
    assert len(scene.metrics.table(60, worker="life-0").times()) == 0
    assert len(scene.metrics.table(60, worker=f"life-{ENDED_LIVES + 19}").times()) == 1
    again = scene.new_metrics()
    again.restore(scene.metrics.checkpoint())
    assert len(again.table(60, worker=f"life-{ENDED_LIVES + 19}").times()) == 1


# --- death of the metrics themselves ---


def test_counters_are_exact_after_the_metrics_died_and_came_back_with_nothing():
    scene = Scene(clients=2)
    scene.pass_time(5, each_half_second=lambda: scene.run(client=1))
    scene.metrics = scene.new_metrics()
    scene.pass_time(5, each_half_second=lambda: scene.run(client=1))
    assert counts(scene)["ok"] == 20
    assert scene.snapshot().telemetry.unattributed == 10


def test_history_and_counters_come_back_from_a_checkpoint_and_nothing_counts_twice():
    scene = Scene()
    scene.pass_time(20, each_half_second=lambda: scene.run(worker=0))
    late = scene.clients[0].take_delta(scene.now + 5)
    scene.metrics.report(late)
    before = scene.metrics.history(3600).points
    saved = scene.metrics.checkpoint()
    scene.run(times=3)
    scene.flush()
    scene.now += 7.0
    scene.metrics = scene.new_metrics()
    scene.metrics.restore(saved)
    scene.metrics.report(late)
    scene.run(times=2)
    scene.flush()
    seen = scene.snapshot()
    assert seen.counters.by_outcome["ok"] == 45
    assert seen.workers[0].counters.by_outcome["ok"] == 40
    assert (seen.telemetry.unattributed, seen.telemetry.duplicates) == (3, 1)
    again = scene.metrics.history(3600).points
    assert [point.throughput for point in again] == [point.throughput for point in before]
    assert [point.at for point in again] == pytest.approx([point.at for point in before])
    scene.metrics.tick(scene.now + 1)
    assert len(scene.metrics.history(3600, now=scene.now + 1).points) == 21


def test_a_new_pool_of_an_old_name_shows_the_charts_of_the_one_before_and_counts_from_zero():
    scene = Scene()
    scene.pass_time(20, each_half_second=lambda: scene.run(worker=0))
    before = scene.metrics.history(3600).points
    saved = scene.metrics.checkpoint()
    scene.now += 100.0
    scene.metrics = scene.new_metrics()
    scene.metrics.restore(saved, history_only=True)
    again = scene.metrics.history(3600).points
    assert [point.throughput for point in again] == [point.throughput for point in before]
    assert scene.metrics.history(3600, program="qa").points
    assert scene.metrics.history(3600, ordinal=0).points == ()
    seen = scene.snapshot()
    assert (seen.counters.by_outcome["ok"], seen.workers, seen.throughput) == (0, {}, 0.0)


def test_a_checkpoint_on_another_monotonic_clock_keeps_its_wall_times():
    scene = Scene()
    scene.pass_time(5, each_half_second=scene.run)
    saved = scene.metrics.checkpoint()
    wall_at_end = scene.metrics.history(60).points[-1].at
    other = Metrics("default", clock=lambda: 7.0, wall=lambda: wall_at_end + 3.0)
    other.restore(saved)
    assert [round(point.at - wall_at_end, 6) for point in other.history(60).points] == [-4, -3, -2, -1, 0]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b"", lambda b: b"\xff" + b, lambda b: b"\x00" * 50]
)
def test_a_damaged_checkpoint_is_refused(damage):
    scene = Scene()
    scene.pass_time(2)
    with pytest.raises(ValueError, match="checkpoint"):
        scene.new_metrics().restore(damage(scene.metrics.checkpoint()))


def test_a_checkpoint_of_another_pool_is_refused():
    with pytest.raises(ValueError, match="'default' cannot be restored to 'other'"):
        Metrics("other").restore(Scene().metrics.checkpoint())


def test_a_client_that_kept_adding_up_while_the_metrics_were_away_loses_nothing():
    scene = Scene()
    recorder = scene.clients[0]
    for _ in range(600):
        scene.run(times=10)
        scene.now += 0.5
        delta = recorder.take_delta(scene.now)
        if delta is not None:
            recorder.give_back(delta)
    scene.flush()
    scene.flush()
    seen = scene.snapshot()
    assert seen.counters.by_outcome["ok"] == 6000
    assert seen.counters.latency_count == 6000
    assert seen.telemetry.unattributed == 0
