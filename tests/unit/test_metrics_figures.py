"""Rates and latencies of the last measured seconds, and levels: who waits, who runs, and how many workers live."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dspool.core.metrics.recorder import WorkerRecorder
from tests.unit.metrics_scene import Scene, counts, status

# --- figures ---


def test_a_snapshot_has_rate_latency_wait_and_error_rate_of_the_last_measured_seconds():
    scene = Scene()
    usage = {"m": {"prompt_tokens": 2, "completion_tokens": 1}}

    def work():
        scene.run("ok", 8, latency_s=0.2, wait_s=0.05, usage=usage)
        scene.run("error", 1, latency_s=1.0, wait_s=0.05)
        scene.run("timeout", 1, latency_s=1.0, wait_s=0.05)
        scene.run("client_error", 10)
        scene.run("rejected", 2)

    scene.pass_time(20, each_half_second=work)
    seen = scene.snapshot()
    assert seen.window_s == 10.0
    assert seen.throughput == pytest.approx(20.0)
    assert seen.error_rate == pytest.approx(0.2)
    assert (seen.rejected, seen.timeouts) == (40, 20)
    assert seen.mean_s == pytest.approx(0.36)
    assert (seen.p50_s, seen.p95_s, seen.p99_s) == pytest.approx((0.2, 1.0, 1.0), rel=0.01)
    assert seen.wait_p95_s == pytest.approx(0.05, rel=0.01)
    assert (seen.input_tokens, seen.output_tokens) == (320, 160)
    assert seen.counters.input_tokens == 640
    assert seen.health.score < 60
    assert seen.health.parts[0].name == "errors"


def test_utilization_is_busy_time_over_available_time_of_all_workers():
    scene = Scene(workers=2, slots=4)
    for _ in range(4):
        scene.workers[0].started(scene.now)
    scene.pass_time(10)
    seen = scene.snapshot()
    assert seen.utilization == pytest.approx(0.5)
    assert (seen.running, seen.active, seen.idle, seen.size) == (4, 1, 1, 2)
    assert [seen.workers[ordinal].recent.utilization for ordinal in (0, 1)] == pytest.approx([1.0, 0.0])
    assert seen.workers[0].busy_s == pytest.approx(40.0)


def test_throughput_is_divided_by_measured_time_however_late_the_tick():
    scene = Scene()
    for _ in range(7):
        scene.run(times=50)
        scene.now += 0.5
        scene.flush()
    scene.metrics.tick()
    (point,) = scene.metrics.history(60).points
    assert point.duration_s == 3.5
    assert point.throughput == pytest.approx(100.0)


def test_the_beat_between_flushes_and_ticks_makes_no_saw_tooth():
    scene = Scene()
    # Flushes each 0.6 s, ticks each 1 s: one or two flushes fall into a tick.
    next_flush, next_tick = 100.6, 101.0
    while scene.now < 140.0:
        scene.now = min(next_flush, next_tick)
        if scene.now == next_flush:
            scene.run(times=60)
            scene.flush()
            next_flush += 0.6
        else:
            scene.metrics.tick()
            next_tick += 1.0
    rates = [point.throughput for point in scene.metrics.history(30).points]
    assert rates == pytest.approx([100.0] * len(rates))


def test_a_single_operation_of_a_quiet_client_is_one_a_second_not_two():
    scene = Scene()
    scene.pass_time(5)
    scene.now += 0.5
    scene.flush()
    scene.run()
    scene.now += 0.5
    scene.flush()
    scene.metrics.tick()
    assert max(point.throughput for point in scene.metrics.history(60).points) == pytest.approx(1.0)


def test_reading_between_two_ticks_shows_the_last_full_window():
    scene = Scene()
    scene.pass_time(10, each_half_second=lambda: scene.run(times=10))
    before = scene.snapshot()
    scene.now += 0.4
    after = scene.snapshot()
    assert (after.throughput, after.window_s) == (before.throughput, before.window_s)


def test_a_tick_that_comes_twice_at_the_same_time_changes_nothing():
    scene = Scene()
    scene.pass_time(2, each_half_second=scene.run)
    scene.metrics.tick()
    scene.metrics.tick(scene.now - 5)
    assert len(scene.metrics.history(60).points) == 2


def test_figures_come_by_program_and_by_worker():
    scene = Scene()

    def work():
        scene.run(times=2, program="a", worker=0, latency_s=0.1)
        scene.run(times=4, program="b", worker=1, latency_s=0.4)

    scene.pass_time(10, each_half_second=work)
    seen = scene.snapshot()
    assert seen.programs["a"].recent.throughput == pytest.approx(4.0)
    assert seen.programs["b"].recent.p50_s == pytest.approx(0.4, rel=0.01)
    assert seen.workers[1].counters.by_outcome["ok"] == 80
    assert scene.metrics.history(5, program="b").points[-1].throughput == pytest.approx(8.0)
    assert scene.metrics.history(5, ordinal=0).points[-1].throughput == pytest.approx(4.0)
    assert scene.metrics.history(5, program="nobody").points == ()


# --- levels ---


def test_an_idle_healthy_pool_scores_100_and_one_with_a_dead_worker_does_not():
    scene = Scene()
    scene.pass_time(3)
    assert scene.snapshot().health.score == 100.0
    scene.metrics.report(status("ready", "warming"))
    seen = scene.snapshot()
    assert (seen.size, seen.starting, seen.desired) == (1, 1, 2)
    assert seen.health.score == 100.0, "it grows"
    scene.metrics.report(replace(status("ready", "warming"), lost=1))
    assert scene.snapshot().health.score == 50.0


def test_a_pool_that_starts_is_neither_healthy_nor_in_trouble_and_history_has_no_zero_of_it():
    scene = Scene(workers=0, pool_size=3)
    scene.pass_time(3)
    assert scene.snapshot().health.state == "starting"
    scene.metrics.report(replace(status("warming", "warming", desired=3), state="starting", ready=False))
    scene.pass_time(3)
    assert scene.snapshot().health.state == "starting"
    assert min(point.health for point in scene.metrics.history(60).points) == 100.0
    scene.metrics.report(status("ready", "ready", "ready", desired=3))
    assert scene.snapshot().health.state == "healthy"
    scene.now += 60
    assert scene.snapshot().health.state == "unhealthy", "the supervisor is silent, and so are the workers"


def test_levels_are_those_of_everybody_who_reported_lately():
    scene = Scene(clients=2)
    for number, client in enumerate(scene.clients):
        client.submitted("qa")
        scene.metrics.report(client.take_delta(scene.now, queued=3 + number, running=1, oldest_wait_s=number))
    seen = scene.snapshot()
    assert (seen.queue_depth, seen.oldest_wait_s, seen.clients) == (7, 1, 2)


def test_a_reporter_that_vanished_no_longer_counts_for_levels_but_its_operations_stay():
    scene = Scene(clients=2)
    scene.run(times=5, client=1)
    scene.metrics.report(scene.clients[1].take_delta(scene.now, queued=9))
    gone_worker = scene.workers.pop()
    gone_worker.started(scene.now)
    scene.metrics.report(gone_worker.take_delta(scene.now))
    scene.clients.pop()
    assert (scene.snapshot().queue_depth, scene.snapshot().running) == (9, 1)
    scene.pass_time(6)
    seen = scene.snapshot()
    assert (seen.queue_depth, seen.running, seen.clients, seen.size) == (0, 0, 1, 1)
    assert seen.workers[1].worker is None
    assert seen.counters.by_outcome["ok"] == 5


def test_a_client_that_said_goodbye_counts_for_no_level_at_once():
    scene = Scene()
    scene.run()
    scene.metrics.report(scene.clients[0].take_delta(scene.now, queued=4, final=True))
    assert (scene.snapshot().queue_depth, scene.snapshot().clients) == (0, 0)
    assert counts(scene)["ok"] == 1


def test_a_worker_that_the_supervisor_knows_dead_counts_at_once():
    scene = Scene()
    scene.workers[0].started(scene.now)
    scene.flush()
    scene.metrics.report(status("failed", "ready"))
    assert (scene.snapshot().running, scene.snapshot().size) == (0, 1)


def test_without_a_supervisor_the_workers_own_reports_tell_the_size():
    scene = Scene()
    scene.metrics.report(status("ready", "ready", "ready", desired=3))
    assert scene.snapshot().size == 3
    scene.pass_time(20)
    assert (scene.snapshot().size, scene.snapshot().desired) == (2, 3)


def test_an_ordinal_taken_over_by_another_worker_goes_on_counting():
    scene = Scene(workers=1)
    scene.run(times=3, worker=0)
    scene.flush()
    scene.workers[0] = WorkerRecorder("default", "w-new", 0, 4, now=scene.now)
    scene.run(times=4, worker=0)
    scene.now += 0.5
    scene.flush()
    worker = scene.snapshot().workers[0]
    assert (worker.worker, worker.counters.by_outcome["ok"]) == ("w-new", 7)
