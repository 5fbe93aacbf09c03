from __future__ import annotations

import pytest
from msgspec.structs import replace

from dspool.core.autoscale.sizing import SizingInputs
from dspool.core.metrics.metric_store import ENDED_LIVES, MAX_WORKERS, MetricsOptions
from dspool.core.metrics.recorder import ClientRecorder, WorkerRecorder
from dspool.core.metrics.sources import MAX_REPORTERS
from dspool.core.metrics.tally import MAX_PROGRAMS, OTHER
from dspool.messages import PoolStatus, WorkerStatus
from dspool.telemetry import events as telemetry
from dspool.telemetry.event_log import EventLog
from dspool.telemetry.metrics import Metrics, encode

WALL = 1_000_000.0


class Scene:
    """A pool's metrics with clients and workers that flush twice a second, on a clock of their own."""

    def __init__(self, clients: int = 1, workers: int = 2, slots: int = 4, **options) -> None:
        self.now = 100.0
        self.wall_step = 0.0
        options.setdefault("pool_size", workers)
        options.setdefault("slots_per_worker", slots)
        self.options = MetricsOptions(**options)
        self.metrics = self.new_metrics()
        self.clients = [ClientRecorder("default", f"c{n}", now=self.now) for n in range(clients)]
        self.workers = [WorkerRecorder("default", f"w{n}", n, slots, now=self.now) for n in range(workers)]

    def new_metrics(self) -> Metrics:
        return Metrics(
            "default", self.options, clock=lambda: self.now, wall=lambda: WALL + self.wall_step + self.now
        )

    def run(self, outcome="ok", times=1, *, client=0, worker=None, program="qa", **more) -> None:
        """Operations from beginning to end at this moment; on a worker as well if one is named."""
        recorder = self.clients[client]
        for _ in range(times):
            recorder.submitted(program)
            if worker is not None:
                self.workers[worker].started(self.now)
                self.workers[worker].finished(self.now, outcome, more.get("run_s", 0.0))
            recorder.record(program, outcome, more.get("latency_s", 0.2), more.get("wait_s", 0.01),
                            more.get("run_s", 0.0), more.get("usage"), more.get("code"))  # fmt: skip

    def flush(self, clients=True, workers=True) -> None:
        for recorder in (self.clients if clients else []) + (self.workers if workers else []):
            delta = recorder.take_delta(self.now)
            if delta is not None:
                self.metrics.report(delta)

    def pass_time(self, seconds: float, *, each_half_second=None) -> None:
        for half in range(round(seconds * 2)):
            if each_half_second is not None:
                each_half_second()
            self.now += 0.5
            self.flush()
            if half % 2:
                self.metrics.tick()

    def snapshot(self):
        return self.metrics.snapshot()


def counts(scene: Scene) -> dict[str, int]:
    return scene.snapshot().counters.by_outcome


# --- counters ---


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


def status(*states: str, desired: int = 2, spares: int = 0) -> PoolStatus:
    workers = tuple(WorkerStatus(f"w{n}", n, state) for n, state in enumerate(states))
    return PoolStatus("default", "ready", True, desired, len(workers), spares, 1, workers)


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


# --- for sizing: one schema for both ends ---


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


def test_a_delta_from_a_defective_sender_is_ignored_and_counted():
    scene = Scene()
    scene.run()
    delta = scene.clients[0].take_delta(scene.now)
    scene.metrics.report(replace(delta, totals=[1, 2]))
    scene.metrics.report_encoded([b"nonsense", encode(delta)])
    assert counts(scene)["ok"] == 1
    assert scene.snapshot().telemetry.foreign == 2


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
