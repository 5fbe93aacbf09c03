"""What sizing sees of a pool's metrics: its own spans, each burst, and whether anybody reports."""

from __future__ import annotations

import pytest

from dspool.core.autoscale.inputs import SizingInputs
from tests.unit.metrics_scene import Scene, status


def test_sizing_sees_what_clients_and_workers_measured():
    scene = Scene(workers=2, slots=4, max_wait_s=0.1)
    scene.metrics.report(status("ready", "warming"))

    def work():
        scene.run("ok", 3, worker=0, wait_s=0.5, run_s=0.25)
        scene.run("error", 1, worker=0, wait_s=0.05, run_s=0.25, code="model_unreachable")

    scene.workers[0].started(scene.now)
    scene.pass_time(60, each_half_second=work)
    scene.metrics.report(status("ready", "warming"))
    scene.metrics.report(scene.clients[0].take_delta(scene.now + 2, queued=5, running=2, oldest_wait_s=0.7))
    seen = scene.metrics.sizing_inputs(1.0, 60.0)
    assert isinstance(seen, SizingInputs)
    assert (seen.desired, seen.actual, seen.starting, seen.overflow) == (2, 1, 1, 0)
    assert (seen.queued, seen.running, seen.oldest_wait_s, seen.age_s) == (5, 1, 0.7, 0.0)
    assert seen.short.span_s == 1.0
    assert seen.short.arrivals == seen.short.finished == seen.short.started == 8
    assert (seen.short.over_wait, seen.short.model_errors) == (6, 2)
    assert seen.short.run_s == pytest.approx(2.0)
    assert seen.short.busy_slot_s == pytest.approx(1.0)
    assert seen.short.wait_p99_s == pytest.approx(0.5, rel=0.01)
    assert seen.short.peak_demand == 1
    assert 50 <= seen.long.span_s <= 70
    assert seen.long.arrivals == pytest.approx(8 * seen.long.span_s)
    assert seen.long.busy_slot_s == pytest.approx(seen.long.span_s)


def test_sizing_sees_a_burst_before_the_tick_that_ends_its_interval():
    scene = Scene()
    scene.pass_time(10, each_half_second=scene.run)
    for _ in range(40):
        scene.clients[0].submitted("qa")
    scene.metrics.report(scene.clients[0].take_delta(scene.now + 0.3, queued=30, running=10))
    assert scene.metrics.sizing_inputs(1.0, 60.0).short.peak_demand == 40


def test_sizing_does_not_see_what_was_before_the_last_resize():
    scene = Scene()
    scene.pass_time(10, each_half_second=scene.run)
    resized_at = scene.now
    scene.pass_time(3)
    seen = scene.metrics.sizing_inputs(10.0, 60.0, resized_s_ago=scene.now - resized_at)
    assert (seen.short.span_s, seen.short.arrivals) == (3.0, 0)


def test_sizing_knows_when_nobody_reports():
    scene = Scene()
    assert scene.metrics.sizing_inputs(1, 60).age_s is None
    scene.pass_time(2)
    scene.now += 30
    seen = scene.metrics.sizing_inputs(1, 60)
    assert seen.age_s == 30.0
    assert (seen.queued, seen.running) == (0, 0)


def test_an_operation_that_a_worker_sent_elsewhere_is_no_run():
    scene = Scene()
    scene.workers[0].started(scene.now)
    scene.workers[0].finished(scene.now, "rejected", 0.0)
    scene.pass_time(1)
    assert scene.metrics.sizing_inputs(1, 60).short.finished == 0
