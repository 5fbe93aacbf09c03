"""What may be said of a ratio: its interval, and which verdict that allows."""

import json
import os
import random
import subprocess
import sys

import pytest

from benchmarks.http_load import Load
from benchmarks.ratios import Ratio, paired
from tests.raw_http import listening


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([2.0, 2.1, 1.9], "ahead"), ([1.0, 1.1, 0.9], "even"), ([0.5, 0.55, 0.45], "behind"), ([9.0], "even")],
)
def test_a_verdict_needs_an_interval_on_one_side(ours, verdict):
    assert paired(ours, [1.0] * len(ours)).verdict == verdict


def test_what_strikes_both_of_a_pair_does_not_count():
    weather = [1.0, 3.0, 0.4, 2.0]
    found = paired([1.2 * one for one in weather], weather)
    assert (found.low, found.high) == (pytest.approx(1.2), pytest.approx(1.2))


def test_nineteen_of_twenty_intervals_hold_the_truth():
    chance = random.Random(3)
    held = 0
    for _ in range(2000):
        found = paired([chance.lognormvariate(0.0, 0.3) for _ in range(4)], [1.0] * 4)
        held += found.low <= 1.0 <= found.high
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


def test_more_pairs_than_the_table_has_make_no_narrower_interval_than_they_may():
    values = [1.1, 0.9] * 50
    assert paired(values, [1.0] * 100).high > 1.0
    assert paired(values[:40], [1.0] * 40).high > paired(values, [1.0] * 100).high


def test_what_is_not_known_is_null_in_json():
    one = paired([2.0], [1.0])
    assert json.loads(json.dumps(one.figures()))["low"] is None
    assert "no interval" in str(one)
    assert paired([1.0, 0.0], [0.0, 1.0]) is None


async def test_the_load_generator_asks_and_counts_what_it_gets():
    async with listening() as server:
        load = Load(server.url, b"{}", connections=2, seconds=30.0, requests=10)
        await load.run()
    assert dict(load.statuses) == {"200": 10}
    assert len(load.latencies) == 10


def test_a_pinned_process_runs_on_one_processor():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; from benchmarks.common import load_processor, pin_threads; pin_threads(load_processor());"
            "print(os.sched_getaffinity(0))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == str({max(os.sched_getaffinity(0))})


def test_of_times_the_smaller_one_is_ahead():
    faster, slower = Ratio(0.8, 0.7, 0.9, 12), Ratio(1.2, 1.1, 1.3, 12)
    assert [one.figures(less_is_better=True)["verdict"] for one in (faster, slower)] == ["ahead", "behind"]
    assert Ratio(1.0, 0.9, 1.1, 12).figures(less_is_better=True)["verdict"] == "even"
