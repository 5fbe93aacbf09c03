"""What `benchmarks.peers` tells of systems that work, fail, cannot, and are faster."""

import contextlib
import re
import subprocess
import sys

import pytest

from benchmarks.studies.peers import drivers, tables
from benchmarks.studies.peers import study as peers
from benchmarks.studies.peers.abilities import ABILITIES
from benchmarks.studies.peers.workloads import LATENCIES, WORKLOADS, dspool_settings
from dspool import PoolConfig

ROW = {"system", "interface", "workload", "concurrency", "ops_per_s", "p50_ms", "p99_ms"}


def test_a_row_of_peers_has_the_keys_that_readers_rely_on():
    taken = [{"done": 10, "failed": 1, "seconds": 2.0, "latencies_ms": [1.0, 2.0, 3.0]}]
    row = tables.row(tables.Cell("cheapest", 8), "dspool", "handle", taken)
    assert row.keys() >= ROW
    assert (row["ops_per_s"], row["p50_ms"], row["failed"]) == (5.0, 2.0, 1)


def test_what_a_peer_cannot_do_is_a_row_without_figures_that_says_why():
    row = tables.row(tables.Cell("sessions", 8), "litserve", "http", [{"note": "no sessions"}])
    assert row.keys() >= ROW
    assert row["ops_per_s"] is row["p50_ms"] is row["p99_ms"] is None
    assert row["note"] == "no sessions"
    systems = [*drivers.HANDLES, *drivers.SERVERS]
    told = tables.cannot([(name, "http") for name in systems])
    assert {row["system"] for row in told} == set(systems)
    assert all(row["note"] for row in told)
    assert all(ABILITIES[name]["sessions"] for name in systems)


def test_a_system_that_fails_is_a_row_that_says_so_and_keeps_what_was_measured():
    cell = tables.Cell("cheapest", 8)
    gone = tables.row(cell, "litserve", "http", [{"error": "no answer"}])
    assert gone.keys() >= ROW
    assert (gone["ops_per_s"], gone["note"]) == (None, "FAILED in 1 of 1 rounds: no answer")
    taken = {"done": 10, "failed": 0, "seconds": 2.0, "latencies_ms": [1.0]}
    once = tables.row(cell, "litserve", "http", [taken, {"error": "no answer"}])
    assert once["ops_per_s"] == 5.0
    assert "1 of 2" in once["note"]
    tables.show([cell], [gone, once], [])


class Broken:
    asked = 0

    def measure(self, *_: object) -> dict[str, object]:
        self.asked += 1
        raise drivers.Failed("no answer within 1 s")


def test_a_system_that_fails_twice_in_a_row_is_left_alone():
    stand, broken = drivers.Standing(), Broken()
    stand.systems["litserve", "http"] = broken
    told = [stand.measure(("litserve", "http"), tables.Cell("cheapest", 8), 1.0) for _ in range(4)]
    assert broken.asked == 2
    assert all("no answer" in one["error"] for one in told)
    assert "left alone" in told[-1]["error"]


def test_a_driver_that_does_not_answer_is_a_failure_and_not_asked_again():
    silent = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        handles = drivers.Handles(silent)
        with pytest.raises(drivers.Failed, match="within 0 s"):
            handles.ready(limit_s=0.0)
        with pytest.raises(drivers.Failed, match="within 0 s"):
            handles.measure("x", tables.Cell("cheapest", 8), 60.0)
    finally:
        silent.kill()
        silent.communicate()


def test_a_driver_that_ended_is_a_failure():
    with (
        subprocess.Popen(
            [sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as ended,
        pytest.raises(drivers.Failed, match="ended"),
    ):
        drivers.Handles(ended).ready()


def test_the_pool_that_is_compared_is_configured_as_a_pool_can_be():
    config = PoolConfig(**dspool_settings(dict.fromkeys(LATENCIES, 8000)))
    assert set(config.programs) | {"sessions"} == set(WORKLOADS)


def taken(done, p99_ms=1.0):
    return {"done": done, "failed": 0, "seconds": 1.0, "latencies_ms": [p99_ms], "load_cpu_s": 0.01}


def compared(cell, ours, *peers):
    """dspool's rounds over HTTP and those of peers."""
    seen = {("dspool", "http"): ours} | {(f"peer{n}", "http"): one for n, one in enumerate(peers)}
    return tables.standings(cell, seen)


def test_where_dspool_is_behind_is_said_with_the_interval(capsys):
    cell = tables.Cell("cheapest", 8)
    rounds = [taken(100), taken(101), taken(99)]
    faster = [taken(130), taken(131), taken(129)]
    stand = compared(cell, rounds, faster)
    rows = [tables.row(cell, "dspool", "http", rounds), tables.row(cell, "peer0", "http", faster)]
    [sentence] = tables.show([cell], rows, stand)
    assert re.fullmatch(r"cheapest, 8 callers, http: 0\.77 \(0\.7\d to 0\.7\d\) of peer0", sentence)
    printed = capsys.readouterr().out
    assert sentence in printed
    assert "load 100 us" in printed
    assert tables.verdicts(stand) == {"ahead": 0, "even": 0, "behind": 1}


def test_a_load_counts_by_the_best_of_its_peers():
    rounds = [taken(100), taken(101), taken(99)]
    slower, same = [taken(50), taken(51), taken(49)], [taken(99), taken(103), taken(98)]
    assert tables.verdicts(compared(tables.Cell("noop", 8), rounds, slower))["ahead"] == 1
    assert tables.verdicts(compared(tables.Cell("noop", 8), rounds, slower, same))["even"] == 1
    assert (
        tables.verdicts(compared(tables.Cell("noop", 8), rounds, slower, same, [taken(200)] * 3))["behind"]
        == 1
    )


def test_an_open_loop_is_compared_by_the_slowest_hundredth():
    cell = tables.Cell("cheapest", rate=100.0)
    ours, theirs = [[taken(100, p99) for p99 in of] for of in ((10.0, 11.0, 9.0), (20.0, 22.0, 18.0))]
    [one] = compared(cell, ours, theirs)
    assert one.ratio.value == pytest.approx(2.0)
    assert one.ratio.verdict == "ahead"


def test_a_round_in_which_either_failed_is_no_pair():
    cell = tables.Cell("cheapest", 8)
    ours = [taken(100), {"error": "x"}, taken(100), taken(100)]
    theirs = [taken(50), taken(50), {"error": "x"}, taken(50)]
    [one] = compared(cell, ours, theirs)
    assert one.ratio.pairs == 2
    assert compared(cell, ours, [{"error": "x"}] * 4) == []


def test_a_system_that_does_not_start_is_that_in_each_cell_and_is_left_alone(tmp_path, monkeypatch):
    starts = []

    @contextlib.contextmanager
    def started(one, *_):
        starts.append(one)
        raise drivers.Failed("no answer")
        yield

    monkeypatch.setattr(drivers, "started", started)
    stand, cells = drivers.Standing(), [tables.Cell("noop", 1), tables.Cell("noop", 2)]
    found = [stand.cells(("litserve", "http"), cells, 1.0, tmp_path, {}) for _ in range(3)]
    assert all("did not start: no answer" in one["error"] for of in found for one in of)
    assert [len(of) for of in found] == [2, 2, 2]
    assert len(starts) == drivers.FAILURES


def test_head_of_line_blocking_is_the_p99_of_fast_ones_with_slow_ones_over_that_without():
    rows = [
        {"workload": workload, "system": "dspool", "interface": "handle", "p99_ms": p99}
        for workload, p99 in (("none_slow", 10.0), ("one_slow", 11.0), ("cheapest", 5.0))
    ]
    assert tables.fast_beside_slow(rows) == {"dspool (handle)": 1.1}


def test_every_workload_is_in_the_usual_run_of_peers():
    assert {cell.workload for cell in peers.USUAL} == set(WORKLOADS)
