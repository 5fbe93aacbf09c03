"""`dspool sizing simulate` as an operator and a script see it, and beside the study that judges the policy."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from benchmarks.studies.sizing import study
from benchmarks.studies.sizing.workloads import on_off
from dspool.cli import app
from dspool.cli.load_trace import read_trace
from dspool.core.autoscale.simulation import PoolModel
from dspool.core.autoscale.simulation import simulate as run_simulation
from dspool.core.autoscale.sizers import ConstantSizer

WORK = on_off(240.0)


@pytest.fixture
def simulate(tmp_path, monkeypatch):
    """Runs the verb where nothing is configured; returns how it ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSPOOL_CONFIG", raising=False)

    def ended(*line, **more):
        return CliRunner().invoke(app, ["sizing", "simulate", *map(str, line)], **more)

    return ended


@pytest.fixture
def trace(tmp_path):
    """The load of `WORK`: a minute of 40 operations a second, a minute of 2, and so on."""
    file = tmp_path / "load.csv"
    file.write_text("\n".join(["timestamp", *map(repr, WORK.arrivals)]))
    return file


def facts_of(ended):
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def test_json_is_one_object_with_the_load_the_settings_and_both_ways_to_size(simulate, trace):
    facts = facts_of(simulate(trace, "--json", "--max", 20))
    assert set(facts) == {
        "trace", "operations", "span_s", "note", "settings", "automatic", "constant", "saved_pct",
    }  # fmt: skip
    figures = {
        "waited_too_long", "waited_too_long_pct", "worker_seconds", "worker_hours", "mean_size",
        "largest_size", "resizes",
    }  # fmt: skip
    assert set(facts["automatic"]) == set(facts["constant"]) == figures
    assert (facts["trace"], facts["operations"]) == ("load", len(WORK.arrivals))
    assert "read as seconds" in facts["note"]
    constant, span = facts["constant"], facts["span_s"]
    assert constant["resizes"] == 0
    assert constant["worker_seconds"] == pytest.approx(constant["largest_size"] * span, rel=1e-3)
    assert constant["mean_size"] == constant["largest_size"]
    cheaper = 100 * (1 - facts["automatic"]["worker_seconds"] / constant["worker_seconds"])
    assert facts["saved_pct"] == pytest.approx(cheaper, abs=0.1)


def test_the_constant_size_is_the_smallest_with_which_99_percent_wait_no_longer(simulate, trace):
    constant = facts_of(simulate(trace, "--json", "--slots", 1, "--max", 60))["constant"]
    assert constant["waited_too_long_pct"] <= 1.0
    most = constant["largest_size"] - 1
    work, pool = read_trace(trace), PoolModel(slots=1, max_size=60)
    assert run_simulation(work.arrivals, work.services, ConstantSizer(most), pool).over_pct > 1.0
    smaller = facts_of(simulate(trace, "--json", "--slots", 1, "--max", most))
    assert smaller["constant"] is None
    assert smaller["saved_pct"] is None


def test_the_simulation_is_that_of_the_study(simulate, trace, tmp_path):
    work = read_trace(trace)
    pool = PoolModel(slots=4, max_size=40)
    theirs = next(run for run in study._compare(work, pool) if run.policy == "dspool")
    first = study._start(work, pool)[1].size
    (tmp_path / "pool.yaml").write_text(f"pool_size: {first}\nmax_pool_size: 40\nslots_per_worker: 4\n")
    facts = facts_of(simulate(trace, "-f", "pool.yaml", "--json"))
    ours = facts["automatic"]
    assert ours["waited_too_long"] == theirs.over
    assert ours["worker_seconds"] == round(theirs.worker_seconds, 1)
    assert ours["resizes"] == theirs.resizes > 0


def test_bounds_and_goals_come_from_the_file_and_options_count_more(simulate, trace, tmp_path):
    lines = (
        "pool_size: 3", "min_pool_size: 2", "max_pool_size: 9", "max_overflow: 1", "slots_per_worker: 4",
        "max_wait_s: 0.5", "target_utilization: 0.6",
    )  # fmt: skip
    (tmp_path / "pool.yaml").write_text("\n".join(lines))
    from_file = {
        "slots_per_worker": 4, "min_pool_size": 2, "max_pool_size": 9, "max_overflow": 1, "pool_size": 3,
        "start_delay_s": 1.0, "max_wait_s": 0.5, "target_utilization": 0.6,
    }  # fmt: skip
    assert facts_of(simulate(trace, "-f", "pool.yaml", "--json"))["settings"] == from_file
    options = ("--slots", 16, "--min", 4, "--max", 12, "--start-delay", 3, "--max-wait", 0.2)
    assert facts_of(simulate(trace, "-f", "pool.yaml", *options, "--json"))["settings"] == from_file | {
        "slots_per_worker": 16, "min_pool_size": 4, "max_pool_size": 12, "pool_size": 4, "start_delay_s": 3.0,
        "max_wait_s": 0.2,
    }  # fmt: skip


def test_of_a_file_with_several_pools_one_is_named(simulate, trace, tmp_path):
    (tmp_path / "pool.yaml").write_text("pools: {a: {max_pool_size: 3}, b: {max_pool_size: 5}}")
    assert facts_of(simulate(trace, "-f", "pool.yaml", "--json"))["settings"]["max_pool_size"] == 3
    second = facts_of(simulate(trace, "-f", "pool.yaml", "--pool", "b", "--json"))
    assert second["settings"]["max_pool_size"] == 5


def test_a_dash_reads_stdin_and_finds_what_the_file_says(simulate, trace):
    from_file = facts_of(simulate(trace, "--json"))
    for mark in ("", "\ufeff"):
        from_stdin = facts_of(simulate("-", "--json", input=mark + trace.read_text()))
        assert from_stdin == from_file | {"trace": "stdin"}


def test_time_is_compressed_and_operations_take_what_is_said(simulate, trace):
    plain = facts_of(simulate(trace, "--json", "--max", 40))
    pressed = facts_of(simulate(trace, "--json", "--max", 40, "--compress", 2))
    assert pressed["span_s"] == pytest.approx(plain["span_s"] / 2, abs=0.01)
    longer = facts_of(simulate(trace, "--json", "--max", 40, "--service", 1.5))
    assert longer["constant"]["largest_size"] > plain["constant"]["largest_size"]


def test_people_get_a_row_for_each_way_and_what_follows(simulate, trace):
    said = simulate(trace, "--max", 20).stdout
    assert "1 to 20 workers of 8 slots, 2 at first" in said
    assert "\nautomatic " in said
    assert "\nconstant " in said
    assert "the smallest constant size that keeps 99 % within 0.1 s" in said
    said = simulate(trace, "--max", 2).stdout
    assert "no constant size up to 2 keeps 99 % within 0.1 s, and neither does automatic sizing" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,x\n1,2\n2,3\n", "load.csv: line 1 has no column 'timestamp', only ['time', 'x']"),
        ("timestamp\n1\nlater\n", "load.csv: line 3: 'later' is not a time in seconds or milliseconds"),
        ('{"timestamp": 1}\n{"time": 2}\n', "load.csv: line 2 has no column 'timestamp', only ['time']"),
        ("timestamp" * 20_000, "load.csv: line 1 is not CSV: field larger than field limit"),
        ("timestamp\n2024-01-01T00:00:00.²\n", "need at least 2 rows"),
        (
            "timestamp\n2024-01-01T00:00:00.²\n2024-01-01\n",
            "load.csv: line 2: '2024-01-01T00:00:00.²' is neither",
        ),
        ('{"timestamp": 1, "x": ' + "[" * 100_000, "load.csv: line 1 is not JSON"),
        ("timestamp\n0.5\n1e7\n", "the trace spans 115.7 days; a simulation takes at most 7"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_place_and_exit_code_2(simulate, tmp_path, text, says):
    (tmp_path / "load.csv").write_text(text)
    ended = simulate("load.csv")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert says in ended.stderr
    assert json.loads(simulate("load.csv", "--json").stderr)["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("nowhere.csv",), "cannot read nowhere.csv: No such file"),
        (("load.csv", "--min", 9), "the fewest workers are more than the most: 9 and 8"),
        (("load.csv", "-f", "nowhere.yaml"), "nowhere.yaml"),
        (("load.csv", "--compress", 0), "--compress"),
        *(
            (("load.csv", option, value), f"{option} must be at most")
            for option in ("--compress", "--service", "--start-delay", "--max-wait", "--slots", "--max")
            for value in ([10**9] if option in ("--slots", "--max") else ["inf", 1e9])
        ),
        ((), "TRACE"),
    ],
)
def test_a_missing_file_and_impossible_bounds_are_refused_with_exit_code_2(simulate, trace, line, says):
    ended = simulate(*line)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert says in ended.stderr
