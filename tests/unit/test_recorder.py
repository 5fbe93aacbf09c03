from __future__ import annotations

import pickle

import msgspec
import pytest

from dspool.core.metrics.recorder import HEARTBEAT_S, ClientDelta, ClientRecorder, Delta, WorkerRecorder
from dspool.core.metrics.tally import MAX_CODES, MAX_PROGRAMS, OTHER, OUTCOMES

USAGE = {
    "model-a": {"prompt_tokens": 10, "completion_tokens": 3},
    "model-b": {"input_tokens": 1, "output_tokens": 2},
}


def client() -> ClientRecorder:
    return ClientRecorder("default", "client-1", now=100.0)


def worker(slots: int = 4) -> WorkerRecorder:
    return WorkerRecorder("default", "default-w0-abc", 0, slots, now=100.0)


def run(recorder: ClientRecorder, outcome: str = "ok", times: int = 1, program: str = "qa", **more) -> None:
    for _ in range(times):
        recorder.submitted(program)
        recorder.record(program, outcome, more.get("latency_s", 0.5), more.get("wait_s", 0.1), **_rest(more))


def _rest(more):
    return {name: value for name, value in more.items() if name not in ("latency_s", "wait_s")}


def test_a_delta_holds_what_happened_since_the_last_one_and_running_totals():
    recorder = client()
    run(recorder, times=3, run_s=0.4, usage=USAGE)
    run(recorder, "timeout", code="deadline_exceeded")
    delta = recorder.take_delta(100.5, queued=2, running=1, oldest_wait_s=0.3)
    tally = delta.programs["qa"]
    assert dict(zip(OUTCOMES, tally.outcomes, strict=True))["ok"] == 3
    assert (tally.arrivals, tally.ended, tally.failed, tally.error_rate) == (4, 4, 1, 0.25)
    assert (tally.input_tokens, tally.output_tokens) == (33, 15)
    assert tally.run_s == pytest.approx(1.2)
    assert tally.errors == {"deadline_exceeded": 1}
    assert (delta.interval_s, delta.queued, delta.running, delta.oldest_wait_s) == (0.5, 2, 1, 0.3)
    run(recorder)
    later = recorder.take_delta(101.0)
    assert later.programs["qa"].ended == 1
    assert sum(later.totals) == 5
    assert (delta.seq, later.seq) == (1, 2)


@pytest.mark.parametrize(
    ("outcome", "served", "failed"),
    [
        ("ok", 1, 0),
        ("error", 1, 1),
        ("timeout", 1, 1),
        ("client_error", 0, 0),
        ("rejected", 0, 0),
        ("cancelled", 0, 0),
    ],
)
def test_only_errors_and_timeouts_count_as_errors_and_only_served_operations_have_a_latency(
    outcome, served, failed
):
    recorder = client()
    run(recorder, outcome)
    tally = recorder.take_delta(101.0).programs["qa"]
    assert (tally.ended, tally.served, tally.failed) == (1, served, failed)
    assert (tally.latency.count, tally.wait.count) == (served, served)


def test_an_outcome_that_is_unknown_counts_as_an_error_rather_than_raise():
    recorder = client()
    run(recorder, "exploded")
    assert recorder.totals["error"] == 1


def test_a_delta_given_back_comes_again_unchanged_before_anything_newer():
    recorder = client()
    run(recorder, times=2)
    first = recorder.take_delta(100.5)
    recorder.give_back(first)
    run(recorder)
    assert recorder.take_delta(101.0) is first
    second = recorder.take_delta(101.5)
    assert (second.seq, second.programs["qa"].ended, sum(second.totals)) == (2, 1, 3)
    assert second.interval_s == 1.0


def test_memory_stays_bounded_however_long_nothing_can_be_delivered():
    recorder = client()
    recorder.give_back(recorder.take_delta(100.5))
    for number in range(5000):
        run(
            recorder,
            "error",
            program=f"program-{number % 500}",
            code=f"code-{number}",
            latency_s=number / 100,
        )
    recorder.take_delta(101.0)
    delta = recorder.take_delta(102.0)
    assert len(delta.programs) <= MAX_PROGRAMS + 1
    assert sum(tally.ended for tally in delta.programs.values()) == 5000
    assert delta.programs[OTHER].ended > 0
    assert max(len(tally.errors) for tally in delta.programs.values()) <= MAX_CODES + 1


def test_an_idle_client_sends_one_idle_delta_and_then_a_heartbeat_now_and_then():
    recorder = client()
    run(recorder)
    assert recorder.take_delta(100.5) is not None
    assert recorder.take_delta(101.0).programs == {}
    assert recorder.take_delta(101.5) is None
    assert recorder.take_delta(102.0) is None
    assert recorder.take_delta(101.0 + HEARTBEAT_S) is not None


def test_time_in_which_an_idle_client_said_nothing_does_not_dilute_its_next_delta():
    recorder = client()
    recorder.take_delta(100.5)
    for tick in range(3):
        assert recorder.take_delta(101.0 + tick / 2) is None
    run(recorder)
    assert recorder.take_delta(102.5).interval_s == 0.5


def test_a_closing_client_always_says_goodbye():
    recorder = client()
    recorder.take_delta(100.5)
    assert recorder.take_delta(100.6, final=True).final


def test_peak_demand_is_the_most_that_was_open_at_once_and_begins_anew_from_what_is_open():
    recorder = client()
    for _ in range(5):
        recorder.submitted("qa")
    for _ in range(3):
        recorder.record("qa", "ok", 0.1)
    assert recorder.take_delta(100.5).peak_demand == 5
    assert recorder.demand == 2
    assert recorder.take_delta(101.0).peak_demand == 2


def test_a_retry_is_counted_and_is_not_another_operation():
    recorder = client()
    recorder.submitted("qa")
    recorder.retried("qa")
    recorder.record("qa", "ok", 0.1)
    tally = recorder.take_delta(101.0).programs["qa"]
    assert (tally.retries, tally.arrivals, tally.ended) == (1, 1, 1)


def test_dropped_samples_are_told_once():
    recorder = client()
    recorder.dropped(7)
    assert recorder.take_delta(100.5).dropped == 7
    assert recorder.take_delta(101.0).dropped == 0


def test_a_worker_integrates_busy_slot_seconds_over_what_still_runs():
    recorder = worker()
    recorder.started(100.0)
    recorder.started(101.0)
    recorder.finished(102.0, "ok", 2.0, USAGE)
    first = recorder.take_delta(103.0, sessions=5, rss_mb=80.0)
    assert (first.busy_s, first.running, first.peak_running) == (4.0, 1, 2)
    assert (first.interval_s, first.slots, first.sessions, first.rss_mb) == (3.0, 4, 5, 80.0)
    assert (first.tally.ended, first.tally.input_tokens) == (1, 11)
    second = recorder.take_delta(104.0)
    assert (second.busy_s, second.peak_running, second.tally.ended) == (1.0, 1, 0)
    assert recorder.busy_s(104.0) == 5.0


def test_an_idle_worker_reports_too_because_idle_slots_count():
    assert worker().take_delta(101.0).interval_s == 1.0


def test_a_worker_knows_its_operations_and_errors():
    recorder = worker()
    for outcome in ("ok", "error", "timeout", "client_error"):
        recorder.started(100.0)
        recorder.finished(100.0, outcome, 0.0, code=None if outcome == "ok" else outcome)
    assert (recorder.operations, recorder.errors, recorder.running) == (4, 2, 0)


def test_a_workers_delta_given_back_keeps_its_number():
    recorder = worker()
    first = recorder.take_delta(101.0)
    recorder.give_back(first)
    assert recorder.take_delta(102.0) is first
    assert recorder.take_delta(103.0).interval_s == 2.0


def test_deltas_cross_processes_as_msgpack_and_as_pickle():
    recorder, other = client(), worker()
    run(recorder, "error", code="program_error", usage=USAGE)
    other.started(100.0)
    for delta in (recorder.take_delta(101.0, queued=1), other.take_delta(101.0)):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(delta), type=Delta) == delta
        assert pickle.loads(pickle.dumps(delta)) == delta


def test_a_delta_does_not_change_after_it_was_taken():
    recorder = client()
    run(recorder)
    delta = recorder.take_delta(100.5)
    before = msgspec.msgpack.decode(msgspec.msgpack.encode(delta), type=ClientDelta)
    run(recorder, times=10)
    assert delta == before
