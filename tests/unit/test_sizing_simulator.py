"""The parts of benchmarks/sizing: the simulator against closed forms, the traces, the baselines' rules by
hand."""

from __future__ import annotations

import json
import math
import random
from collections import deque

import pytest

from benchmarks.studies.sizing import study
from benchmarks.studies.sizing.oracle import Scheduled, needed, oracle
from benchmarks.studies.sizing.policies import HPA, KPA, Seed, Serve, erlang_static, mean_in_system
from benchmarks.studies.sizing.workloads import spike
from dspool.cli.load_trace import Workload, read_trace
from dspool.core.autoscale.simulation import STEP_S, PoolModel, Sample, View, simulate
from dspool.core.autoscale.sizers import AutomaticSizer, ConstantSizer
from dspool.errors import InvalidRequest

POOL = PoolModel(slots=8, min_size=1, initial_size=2, max_size=20)


def poisson(rate, service_s, span_s, seed):
    draw = random.Random(seed)
    arrivals, t = [], 0.0
    while (t := t + draw.expovariate(rate)) < span_s:
        arrivals.append(t)
    return arrivals, [draw.expovariate(1 / service_s) for _ in arrivals]


def samples(in_system, seconds, *, busy=None, arrivals=0):
    """`seconds` of samples with a constant mean number in the system."""
    return deque(
        Sample(
            in_system_s=in_system * STEP_S,
            busy_s=(in_system if busy is None else busy) * STEP_S,
            arrivals=arrivals,
        )
        for _ in range(round(seconds / STEP_S))
    )


def view(now=0.0, *, data=None, desired=2, ready=2, starting=0, queued=0):
    return View(now, data if data is not None else deque(), desired, ready, starting, 0, 0, queued, 0.0)


# --- the simulator against queueing theory ---


def erlang_c(slots, load):
    top = load**slots / math.factorial(slots) * slots / (slots - load)
    return top / (sum(load**k / math.factorial(k) for k in range(slots)) + top)


@pytest.mark.parametrize(("slots", "load"), [(4, 2.0), (8, 6.0), (16, 12.0)])
def test_a_constant_pool_waits_as_erlang_c_says(slots, load):
    service_s, objective = 0.5, 0.1
    arrivals, services = poisson(load / service_s, service_s, 12_000, seed=slots)
    pool = PoolModel(slots=slots // 2, max_wait_s=objective)
    run = simulate(arrivals, services, ConstantSizer(2), pool)
    expected = erlang_c(slots, load) * math.exp(-(slots - load) * objective / service_s)
    assert run.over_pct / 100 == pytest.approx(expected, rel=0.12)
    assert run.worker_seconds == pytest.approx(2 * arrivals[-1])
    assert run.resizes == 0


def test_the_number_in_the_system_follows_littles_law():
    arrivals, services = poisson(20, 0.5, 4_000, seed=3)
    run = simulate(arrivals, services, ConstantSizer(4), PoolModel(slots=8))
    # 32 slots for 10 erlangs: no one waits, so the mean in the system is the offered load.
    assert sum(n for _, n, _, _ in run.series) / len(run.series) == pytest.approx(10, rel=0.03)


def test_a_new_worker_takes_traffic_only_after_the_start_delay_and_is_paid_for_from_the_start():
    pool = PoolModel(slots=1, min_size=1, start_delay_s=2.0)
    grow = Scheduled([1, 1, 1, 1, 2], initial_size=1)  # asks for the second worker at 1 s
    run = simulate([0.1, 0.2], [10.0, 0.1], grow, pool, horizon=5.0)
    assert run.over == 1
    assert max(wait for _, _, _, wait in run.series) == pytest.approx(3.0 - 0.2)
    assert run.worker_seconds == pytest.approx(5.0 + 4.0)


def test_a_worker_told_to_go_finishes_what_it_runs_and_is_paid_for_until_then():
    pool = PoolModel(slots=1, min_size=1, start_delay_s=1.0)
    shrink = Scheduled([2, 2, 2, 2, 1], initial_size=2)  # at 1 s, while both run
    run = simulate([0.0, 0.0], [3.0, 2.5], shrink, pool, horizon=5.0)
    assert run.over == 0
    assert run.worker_seconds == pytest.approx(5.0 + 3.0) or run.worker_seconds == pytest.approx(5.0 + 2.5)


def test_an_operation_that_never_starts_counts_as_over():
    run = simulate(
        [0.0, 1.0], [10_000.0, 1.0], ConstantSizer(1), PoolModel(slots=1, initial_size=1), horizon=2.0
    )
    assert run.over == 1


# --- the oracle ---


def test_the_oracle_keeps_every_wait_within_the_objective_and_costs_less_than_any_constant_size():
    draw = random.Random(5)
    arrivals = sorted(draw.uniform(100 * k, 100 * k + 10) for k in range(4) for _ in range(600))
    work = Workload("bursts", arrivals, [0.5] * len(arrivals))
    best = oracle(work, POOL)
    assert best.over == 0
    constant = next(
        run
        for n in range(1, 20)
        if (run := simulate(arrivals, work.services, ConstantSizer(n), POOL)).over == 0
    )
    assert best.worker_seconds < 0.5 * constant.worker_seconds


def test_the_oracle_asks_one_start_delay_ahead_and_bridges_gaps_as_long_as_it_is_told_to():
    need = [1] * 8 + [3] * 4 + [1] * 8 + [3] * 4 + [1] * 8  # a gap of 2 s
    pool = PoolModel(start_delay_s=1.0)
    bridged, stopped = Scheduled.of(need, pool, keep_s=2.0), Scheduled.of(need, pool, keep_s=1.5)
    assert bridged.sizes[3:5] == stopped.sizes[3:5] == [1, 3]
    assert set(bridged.sizes[4:24]) == {3}
    assert stopped.sizes[12:20] == [1] * 4 + [3] * 4
    assert bridged.sizes[24] == 1


def test_the_need_lets_operations_wait_up_to_the_objective():
    # 9 at once on 8 slots: the ninth starts when the first ends, 0.05 s later, within the objective.
    work = Workload("w", [1.0] * 9 + [5.0], [0.05] * 9 + [0.1])
    assert max(needed(work, POOL)) == 1
    slow = Workload("w", [1.0] * 9 + [5.0], [0.5] * 9 + [0.1])
    assert max(needed(slow, POOL)) == 2


# --- the baselines, by hand ---


def test_hpa_follows_the_ratio_outside_its_tolerance():
    hpa = HPA(POOL)  # the goal is 5.6 operations a pod
    assert hpa.desired(12.0, ready=2, starting=0, current=2) == 2  # ratio 1.07
    assert hpa.desired(13.0, ready=2, starting=0, current=2) == 3  # 1.16 * 2 = 2.3
    assert hpa.desired(5.0, ready=2, starting=0, current=2) == 1


def test_hpa_counts_pods_that_are_not_ready_as_empty_when_it_grows():
    assert HPA(POOL).desired(28.0, ready=2, starting=2, current=4) == 5
    assert HPA(POOL).desired(20.0, ready=2, starting=2, current=4) == 4


def test_hpa_grows_by_at_most_four_pods_or_double_and_shrinks_to_the_largest_recommendation_of_five_minutes():
    hpa = HPA(POOL)
    assert hpa.decide(view(15, data=samples(100, 15)))[0] == 6
    assert hpa.decide(view(30, data=samples(100, 15), desired=6, ready=6))[0] == 12
    assert hpa.decide(view(45, data=samples(5, 15), desired=12, ready=12))[0] == 12
    # The last recommendation of 18 pods was made at 30 s.
    assert hpa.decide(view(315, data=samples(5, 15), desired=12, ready=12))[0] == 12
    assert hpa.decide(view(345, data=samples(5, 15), desired=12, ready=12))[0] == 1


def test_kpa_panics_at_twice_the_ready_pods_and_then_only_grows_for_a_minute():
    kpa = KPA(POOL)
    assert kpa.desired(stable=10, panic=10, ready_pods=2, now=0) == 2
    assert (
        kpa.desired(stable=10, panic=22.5, ready_pods=2, now=2) == 5
    )  # ceil(22.5 / 5.6) = 5 of 2 ready: panic
    assert kpa.desired(stable=10, panic=6, ready_pods=5, now=10) == 5
    assert kpa.desired(stable=10, panic=6, ready_pods=5, now=62) == 5
    assert kpa.desired(stable=10, panic=6, ready_pods=5, now=62.5) == 2


def test_kpa_shrinks_by_at_most_half_at_once():
    assert KPA(POOL).desired(stable=1, panic=1, ready_pods=9, now=0) == 4


def test_kpa_starts_in_panic_so_that_it_does_not_shrink_before_it_has_data():
    kpa = KPA(POOL)
    assert kpa.decide(view(2, data=samples(0, 2), desired=4, ready=4)) == (4, 0)
    assert kpa.decide(view(64, data=samples(0, 60), desired=4, ready=4)) == (2, 0)


def test_serve_decides_as_the_installed_ray_serve_does():
    policy = pytest.importorskip("ray.serve.autoscaling_policy")
    config = policy.AutoscalingConfig(min_replicas=1, max_replicas=20, target_ongoing_requests=5.6)
    draw = random.Random(8)
    ours, state, target, wanted = Serve(POOL), {}, 2, 2
    moved = 0
    for tick in range(8_000):
        if draw.random() < 0.004:
            wanted = draw.randint(1, 8)
        theirs, state = policy._apply_delay_logic(wanted, target, config, state, _now=tick * 0.25)
        assert ours.delayed(wanted, target, tick * 0.25) == theirs
        moved += theirs != target
        target = theirs
    assert moved > 3


def test_serve_averages_over_its_look_back_period_and_grows_after_its_delay():
    serve = Serve(POOL)
    busy = samples(28, 40)
    assert serve.decide(view(40, data=busy)) == (2, 0)
    assert serve.decide(view(69, data=busy)) == (2, 0)
    assert serve.decide(view(70, data=busy)) == (5, 0)  # 28 / 5.6


def test_the_seed_grows_above_ninety_percent_with_a_queue_and_shrinks_by_one_below_thirty():
    seed = Seed(POOL)
    assert seed.decide(view(60, data=samples(26, 60, busy=16, arrivals=5)))[0] == 5  # queue 10: 1 + 2 more
    assert seed.decide(view(60, data=samples(4, 60, arrivals=1)))[0] == 1
    assert seed.decide(view(60, data=samples(10, 60, arrivals=1)))[0] == 2
    assert seed.decide(view(5, data=samples(26, 5, busy=16)))[0] == 2


def test_the_seed_raises_overflow_when_waits_are_long_but_utilization_is_not():
    seed = Seed(POOL)
    assert seed.decide(view(60, data=samples(14, 60, busy=12, arrivals=1))) == (2, 1)


def test_the_static_size_is_erlangs():
    # 10 erlangs: 16 slots are too few for 1 % over 0.1 s with 0.5 s operations, 17 suffice.
    slots = next(n for n in range(11, 40) if erlang_c(n, 10.0) * math.exp(-(n - 10) * 0.1 / 0.5) <= 0.01)
    assert erlang_static(20.0, 0.5, POOL).size == math.ceil(slots / 8)


def test_means_are_taken_over_the_asked_window_only():
    data = samples(10, 30)
    data.extend(samples(2, 10))
    assert mean_in_system(view(data=data), 10) == pytest.approx(2)
    assert mean_in_system(view(data=data), 40) == pytest.approx(8)


# --- traces ---


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_iso_times_with_seven_digits_are_read_to_the_last_digit(tmp_path):
    rows = (
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:17:03.9799600,48,10",
        "2023-11-16 18:17:04.0319607,31,30",
    )
    work = read_trace(write(tmp_path, "t.csv", "\n".join(rows)), service_mean_s=0.5)
    assert work.arrivals == pytest.approx([0.0, 0.0520007], abs=1e-7)
    assert "ISO time" in work.note


def test_generated_tokens_scale_the_service_time_and_keep_its_mean(tmp_path):
    path = write(tmp_path, "t.csv", "Timestamp,GeneratedTokens\n0.0,10\n1.5,30\n")
    work = read_trace(path, service_mean_s=0.5)
    assert work.services == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize(
    ("rows", "unit", "span"),
    [
        (("0.5", "2.5"), "seconds", 2.0),
        (("1700000000", "1700000004"), "seconds", 4.0),
        (("1700000000000", "1700000004000"), "milliseconds", 4.0),
        (("2024-05-12T00:00:01Z", "2024-05-12T02:00:03+02:00"), "ISO time", 2.0),
        (("2024-05-12 00:00:00.009930+00:00", "2024-05-12 00:00:01.009930+00:00"), "ISO time", 1.0),
    ],
)
def test_the_unit_of_the_times_is_found_and_said(tmp_path, rows, unit, span):
    work = read_trace(write(tmp_path, "t.csv", "timestamp\n" + "\n".join(rows) + "\n"))
    assert work.span_s == pytest.approx(span)
    assert f"read as {unit}" in work.note


def test_jsonl_is_read_and_rows_are_sorted_and_compressed(tmp_path):
    lines = "\n".join(json.dumps({"TimeStamp": t, "x": 1}) for t in (30, 10, 20))
    work = read_trace(write(tmp_path, "t.jsonl", lines), compress=10)
    assert work.arrivals == [0.0, 1.0, 2.0]
    assert "exponential" in work.note
    assert "x10" in work.note


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,x\n1,2\n2,3\n", "no column 'timestamp'"),
        ("timestamp\nyesterday\ntoday\n", "'yesterday' is neither"),
        ("timestamp\n1\n", "at least 2 rows"),
        ("timestamp\n1\n1\n", "equal"),
        ("timestamp\n1\nnan\n", "line 3: 'nan' is not a time"),
        ("timestamp,x\n1,1\n,2\n", "line 3: '' is not a time"),
        ("x,timestamp\n1,2024-05-12T00:00:01Z\n2\n", "line 3: None is neither ISO time"),
        ("x,time\n", "line 1 has no column 'timestamp', only \\['time', 'x'\\]"),
        ("timestamp,GeneratedTokens\n1,2\n2,many\n", "'many' is not a number of tokens"),
        ('{"timestamp": 1}\n{"timestamp": \n', "line 2 is not JSON"),
        ('{"timestamp": 1}\n[1]\n', "line 2 is not a JSON object"),
        ("", "at least 2 rows"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_the_place(tmp_path, text, says):
    with pytest.raises(InvalidRequest, match=says):
        read_trace(write(tmp_path, "t.txt", text))


def test_a_compression_of_zero_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="compress"):
        read_trace(write(tmp_path, "t.csv", "timestamp\n1\n2\n"), compress=0)


# --- the program ---


def test_the_last_line_is_one_json_object_with_a_row_for_each_policy_and_the_picture_is_one_file(
    tmp_path, capsys
):
    draw = random.Random(2)
    t, rows = 0.0, ["timestamp"]
    for _ in range(400):
        t += draw.expovariate(10)
        rows.append(f"{t}")
    trace = write(tmp_path, "mine.csv", "\n".join(rows))
    picture = tmp_path / "p.html"
    code = study.main(
        ["--json", "--only-traces", "--trace", str(trace), "--compress", "2", "--picture", str(picture)]
    )
    assert code == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["policy"] for row in result["rows"]] == [
        "dspool", "seed", "hpa", "kpa", "serve", "erlang_static", "oracle",
    ]  # fmt: skip
    assert set(result["rows"][0]) == {
        "workload", "policy", "waits_over_pct", "worker_seconds_vs_oracle", "resizes", "oscillation",
    }  # fmt: skip
    assert result["rows"][-1]["worker_seconds_vs_oracle"] == 1.0
    page = picture.read_text()
    assert page.count("<svg") == 7
    assert "http" not in page


def test_a_pool_that_knows_what_is_needed_but_not_before_is_late_to_the_first_burst_and_not_to_the_next():
    arrivals = sorted([*map(float, range(181)), *[60.25] * 40, *[120.25] * 40])
    bound = study._bounds(Workload("bursts", arrivals, [0.5] * len(arrivals)), PoolModel(), 181.0)
    late = round(bound["no_foresight_waits_over_pct"] * len(arrivals) / 100)
    assert 0 < late < 40
    assert bound["no_foresight_vs_oracle"] > 1.0


def test_a_missing_trace_ends_with_a_message_and_status_two(capsys):
    assert study.main(["--json", "--trace", "/nowhere/t.csv"]) == 2
    assert "cannot read the trace" in capsys.readouterr().err


def test_a_spike_that_the_pool_can_drain_adds_at_most_one_worker_for_a_while():
    work = spike(120)  # 50 at once on 16 slots, 0.05 s each
    pool = PoolModel(initial_size=2)
    config = study.SizingConfig(min_size=2, max_size=64)
    run = simulate(work.arrivals, work.services, AutomaticSizer(pool, config), pool)
    assert max(size for _, _, size, _ in run.series) <= 3
    assert run.series[-1][2] == 2
