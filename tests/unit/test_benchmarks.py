"""What benchmarks print is what readers and the report rely on; and what they measure with does not flatter."""

import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import time

import pytest

from benchmarks import common, goals, load, report, report_page, smoke, soak, soak_watch, targets
from benchmarks.charts import line_chart
from benchmarks.studies.scaling import study as scaling
from benchmarks.studies.scaling.curves import Curve
from benchmarks.studies.sizing import utilization
from benchmarks.studies.sizing.utilization import Minute, within
from benchmarks.studies.startup import study as startup

ROW = {"system", "interface", "workload", "concurrency", "ops_per_s", "p50_ms", "p99_ms"}


def test_a_target_says_name_target_value_unit_and_whether_it_is_met_and_on_which_work(capsys):
    found = targets.Findings()
    found.target("x", "< 50", [1.0, 3.0, 2.0], "ms", lambda value: value < 50, "some work", 1000)
    [row] = found.targets
    assert {"name", "target", "value", "unit", "met", "work", "samples", "repetitions"} <= row.keys()
    assert (row["value"], row["lowest"], row["highest"], row["met"]) == (2.0, 1.0, 3.0, True)
    assert "met" in capsys.readouterr().out


def test_a_missed_target_is_printed_as_missed(capsys):
    found = targets.Findings()
    found.target("x", "< 50", [60.0], "ms", lambda value: value < 50, "some work", 1)
    assert found.targets[0]["met"] is False
    assert "MISSED" in capsys.readouterr().out


def test_the_error_rate_counts_the_operations_of_all_parts_together():
    found = targets.Findings()
    found.ended += [(1, 10), (0, 990)]
    targets.error_rate(found)
    assert found.targets[0]["value"] == pytest.approx(0.1)
    assert found.targets[0]["met"] is False


async def test_an_open_loop_counts_from_when_an_operation_was_due():
    stalled = False

    async def call(number: int) -> None:
        nonlocal stalled
        if not stalled:
            stalled = True
            time.sleep(0.2)  # noqa: ASYNC251  (the sender itself cannot run meanwhile)

    taken = await load.open_loop(call, rate=500.0, seconds=0.3)
    due = list(load.schedule(500.0, 0.3))
    assert taken.failed == 0
    assert len(taken.latencies) == len(due)
    held_up = sum(1 for at in due if due[0] < at < due[0] + 0.1)
    assert sum(taken_s > 0.09 for taken_s in taken.latencies.values()) >= held_up


async def test_a_closed_loop_counts_failures_apart():
    async def call(number: int) -> None:
        await asyncio.sleep(0)
        if number % 2:
            raise RuntimeError("refused")

    taken = await load.closed_loop(call, concurrency=4, seconds=0.02)
    assert taken.failed > 0
    assert all(number % 2 == 0 for number in taken.latencies)


def test_every_system_gets_the_same_arrivals():
    assert list(load.schedule(100.0, 1.0)) == list(load.schedule(100.0, 1.0))
    assert len(list(load.schedule(1000.0, 10.0))) == pytest.approx(10_000, rel=0.05)


def test_a_curve_says_where_it_leaves_its_ideal_and_whether_processors_bound_it():
    curve = Curve("x", "X", "slots", "operations/s")
    curve.add(1, 10.0, 10.0, cpu_percent=20.0)
    curve.add(2, 12.0, 20.0, cpu_percent=99.0)
    told = curve.told()
    assert told["bends_at"] == 2
    assert "processors are 99 % busy" in told["note"]


def test_a_curve_that_waits_for_something_else_does_not_blame_the_processors():
    curve = Curve("x", "X", "slots", "operations/s")
    curve.add(1, 5.0, 10.0, cpu_percent=20.0)
    assert "something waits" in curve.told()["note"]


def test_a_memory_slope_is_that_of_the_line_through_the_points():
    points = [(float(second), 100.0 + second / 360) for second in range(100)]
    found = soak_watch.slope(points, 0.0)
    assert found == pytest.approx((10.0, 10.0, 10.0))
    assert soak_watch.slope(points, 95.0) is None


def test_the_interval_of_a_memory_slope_has_its_noise_and_not_what_came_before_it_is_judged():
    chance = random.Random(1)
    points = [
        (float(second), (0.0 if second < 500 else 500.0) + chance.gauss(0, 5)) for second in range(1000)
    ]
    found = soak_watch.slope(points, 500.0)
    assert found.low < 0 < found.high


def test_time_within_the_band_counts_both_edges():
    assert within([0.59, 0.6, 0.8, 0.81]) == 50.0


def test_with_few_busy_slots_no_whole_number_of_workers_is_within_the_band():
    assert not Minute(0.25, busy_slots=2.0).reachable(8)
    assert not Minute(0.5, busy_slots=8.0).reachable(8)
    assert Minute(0.7, busy_slots=11.2).reachable(8)


def test_the_report_is_one_page_that_needs_nothing_from_elsewhere():
    entry = {
        "name": "peers", "command": "c", "seconds": 1.0, "quick": True, "commit": "c0ffee", "machine": "2 cores",
        "python": "3.11", "ray": "2", "dspy": "3", "date": "2026-01-01", "cpu_load": 0.1, "ok": False,
        "printed": ["<b>"],
        "figures": {
            "rows": [{"system": "<x>", "interface": "http", "workload": "w", "concurrency": n, "ops_per_s": 5.0 * n}
                     for n in (1, 8)],
            "curves": [Curve("x", "X", "x", "y").told()],
        },
    }  # fmt: skip
    html = report_page.page({**entry, "benchmarks": {"peers": entry}})
    assert "<svg" in html
    assert "&lt;x&gt;" in html
    assert "<b>" not in html
    assert "failed" in html
    for foreign in ("<script", "<link", "src=", "@import"):
        assert foreign not in html


def test_a_chart_without_points_is_nothing_and_one_point_is_drawn():
    assert line_chart("t", "x", "y", {"a": []}) == ""
    assert "<circle" in line_chart("t", "x", "y", {"a": [(1.0, 1.0)]}, log_x=True)


def test_a_benchmark_that_fails_is_in_the_report_as_failed(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "bad.py").write_text("print('so far'); raise SystemExit(3)")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    entry = report.run("bad", quick=True)
    assert entry["ok"] is False
    assert entry["figures"] == {}
    json.dumps(entry)


def test_forked_workers_are_judged_by_their_slowest_kind_of_operation_and_not_by_one_odd_pair():
    found = startup.compared({"program": [1.01, 0.99, 1.3], "change": [1.02, 1.03, 1.04]})
    assert (found["program_slower_percent"], found["change_slower_percent"]) == (1.0, 3.0)
    assert found["program_slower_percents"] == [1.0, -1.0, 30.0]
    assert found["slower_percent"] == 3.0


def test_forked_and_executed_workers_take_turns_in_coming_first():
    assert startup.turns(3) == [("fork", "exec"), ("exec", "fork"), ("fork", "exec")]


def test_a_goal_is_met_or_missed_by_the_figure_it_names_and_has_none_without_it():
    entries = {"throughput": {"figures": {"vs_actor_pool": 7.6, "vs_limit": 0.5}}}
    told = {row["where"]: (row["value"], row["met"]) for row in goals.rows(entries)}
    assert told["throughput: vs_actor_pool"] == (7.6, True)
    assert told["throughput: vs_limit"] == (0.5, False)
    assert told["throughput: vs_bare_actor"] == (None, None)
    assert all(where.startswith("throughput") for where in told)


def test_every_goal_is_of_a_benchmark_that_the_report_has():
    assert {goal.benchmark for goal in goals.GOALS} <= set(report.NAMES)


def test_the_simulated_goals_are_among_the_cases_that_are_simulated():
    names = {
        utilization.Share(name, times, hours, 1.0, False, [], 0).name
        for name, times, hours, _ in utilization.CASES
    }
    simulated = {goal.key for goal in goals.GOALS if re.search(r"_x\d", goal.key)}
    assert len(simulated) == 2
    assert simulated <= names


def test_a_legend_has_a_place_of_its_own_for_every_line():
    lines = {f"system {number}": [(1.0, 1.0), (2.0, 2.0)] for number in range(11)}
    drawn = line_chart("t", "x", "y", lines)
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>system', drawn)
    assert len(set(places)) == 11
    assert all(float(down) > 300 for _, down in places)
    strokes = re.findall(r'<polyline[^>]*(stroke="#[^>]*)/>', drawn)
    assert len(set(strokes)) == 11


@pytest.mark.parametrize("benchmark", [targets, scaling])
async def test_a_part_that_fails_or_hangs_does_not_take_the_others_with_it(
    benchmark, monkeypatch, capsys, tmp_path
):
    async def fails(*_):
        raise RuntimeError("no such luck")

    async def hangs(*_):
        await asyncio.Event().wait()

    async def works(*_):
        return []

    parts = {"one": fails, "two": hangs, "three": works}
    monkeypatch.setattr(benchmark, "PARTS", parts)
    monkeypatch.setattr(benchmark, "PART_LIMIT_S", 0.01)
    monkeypatch.setattr(benchmark, "ray_cluster", lambda _: contextlib.nullcontext(tmp_path))
    monkeypatch.setattr(sys, "argv", ["x", "--json"])
    assert await benchmark.main() == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["failed_parts"].keys() == {"one", "two"}
    assert "no such luck" in told["failed_parts"]["one"]


def test_a_part_that_there_is_not_is_refused_with_those_that_there_are(capsys):
    parser = common.arguments("what", ("one", "two", "three"))
    assert parser.parse_args([]).only == ["one", "two", "three"]
    assert parser.parse_args(["--only", "three,one"]).only == ["one", "three"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--only", "one,four"])
    assert "no part four; there are one, two, three" in capsys.readouterr().err


@pytest.mark.parametrize("deaf", [False, True])
def test_a_benchmark_that_hangs_is_ended_and_in_the_report_as_failed(tmp_path, monkeypatch, deaf):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "hung.py").write_text(
        "import signal, time\n"
        f"signal.signal(signal.SIGINT, {'signal.SIG_IGN' if deaf else 'signal.default_int_handler'})\n"
        "print('so far', flush=True)\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "LIMIT_S", 0.5)
    monkeypatch.setattr(report, "GRACE_S", 1.0)
    entry = report.run("hung", quick=True)
    assert entry["ok"] is False
    assert entry["seconds"] < 30


def test_the_study_of_http_layers_runs():
    command = [sys.executable, "-m", "benchmarks.studies.http_layers", "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    rows = json.loads(run.stdout.splitlines()[-1])["rows"]
    assert {row["layer"] for row in rows} == {"ours", "starlette", "starlette_lean"}
    assert all(row["more_us"] == 0 for row in rows if row["layer"] == "ours")


def test_every_benchmark_has_a_smoke_check():
    assert set(smoke.CHECKS) == set(report.NAMES)


@pytest.mark.parametrize(
    ("ok", "figures", "verdict"),
    [
        (True, {"targets": [], "also": [], "failed_parts": {}, "quick": True}, "ok"),
        (True, {"targets": [], "also": [], "quick": True}, "FAILED, without ['failed_parts']"),
        (False, {"targets": [], "also": [], "failed_parts": {"served": "gone"}, "quick": True}, "FAILED"),
    ],
)
def test_a_smoke_check_fails_without_a_key_and_shows_what_was_printed(
    monkeypatch, capsys, ok, figures, verdict
):
    def run(name, quick, more, *, show):
        assert (name, quick, more, show) == ("targets", True, ["--only", "served"], False)
        return {"ok": ok, "figures": figures, "seconds": 1.0, "printed": ["so far"]}

    monkeypatch.setattr(smoke, "run", run)
    monkeypatch.setattr(smoke, "shared_cluster", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(sys, "argv", ["smoke", "targets"])
    assert smoke.main() == (verdict != "ok")
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith(verdict)
    assert ("so far" in said) == (verdict != "ok")


async def test_a_batch_is_so_many_operations_and_raises_what_fails():
    seen = []

    async def call(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    await load.batch(call, operations=10, concurrency=3)
    assert sorted(seen) == list(range(10))

    async def fails(number: int) -> None:
        raise RuntimeError(f"number {number}")

    with pytest.raises(RuntimeError, match="number 0"):
        await load.batch(fails, operations=1, concurrency=3)


def test_a_soak_compares_the_last_quarter_of_its_operations_with_the_first():
    told = soak.drift([(1.0, 0.01), (30.0, 9.0), (60.0, 9.0), (99.0, 0.02)], 100.0)
    assert (told["p50_first_ms"], told["p50_last_ms"], told["p50_drift"]) == (10.0, 20.0, 2.0)
    assert soak.drift([], 100.0) == {}
