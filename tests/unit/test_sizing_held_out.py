"""The loads nothing was chosen on, the count of who is dominated on them, and the search in hindsight."""

from __future__ import annotations

import json

import pytest

from benchmarks.studies.sizing import study
from benchmarks.studies.sizing.held_out import SHAPES, dominates, dominators, held_out, summary
from benchmarks.studies.sizing.hindsight import best_plan
from benchmarks.studies.sizing.workloads import on_off
from dspool.core.autoscale.inputs import SizingConfig
from dspool.core.autoscale.policies import Policy
from dspool.core.autoscale.simulation import PoolModel, simulate
from dspool.core.autoscale.sizers import AutomaticSizer


def row(policy, late, cost, workload="w"):
    return {
        "workload": workload,
        "policy": policy,
        "waits_over_pct": late,
        "worker_seconds_vs_oracle": cost,
        "resizes": 0,
        "oscillation": 0,
    }


def test_every_shape_is_a_load_and_a_seed_gives_the_same_one_each_time():
    first, again = list(held_out([7], span_s=120)), list(held_out([7], span_s=120))
    assert first == again
    assert [work.name for work in first] == [f"{shape} 7" for shape in SHAPES]
    for work in first:
        assert work.arrivals == sorted(work.arrivals)
        assert len(work.arrivals) == len(work.services) > 0
        assert 0 <= work.arrivals[0] <= work.arrivals[-1] < 120
        assert min(work.services) > 0
        assert work.note


def test_two_seeds_are_two_loads():
    assert all(
        one.arrivals != other.arrivals
        for one, other in zip(held_out([1], span_s=120), held_out([2], span_s=120), strict=True)
    )


@pytest.mark.parametrize(
    ("late", "cost", "does"),
    [
        (0.5, 0.9, True),
        (1.0, 0.9, True),
        (0.5, 1.0, True),
        (1.0, 1.0, False),
        (0.5, 1.1, False),
        (1.1, 0.5, False),
    ],
)
def test_a_policy_dominates_if_it_is_nowhere_worse_and_somewhere_better(late, cost, does):
    assert dominates(row("hpa", late, cost), row("dspool", 1.0, 1.0)) is does


def test_the_oracle_knows_the_future_and_dominates_nobody():
    rows = [row("dspool", 1.0, 1.2), row("kpa", 0.9, 1.3), row("oracle", 0.0, 1.0)]
    assert dominators(rows) == []
    assert [r["policy"] for r in dominators([*rows, row("hpa", 0.9, 1.1)])] == ["hpa"]


def test_the_summary_counts_workloads_and_names_the_middle_and_the_worst():
    rows = [
        row("dspool", late, cost, w) for w, late, cost in (("a", 0.5, 1.0), ("b", 3.0, 2.0), ("c", 0.9, 1.5))
    ]
    rows += [row("hpa", 2.0, 1.9, "b"), row("kpa", 2.5, 1.8, "b"), row("kpa", 0.1, 9.0, "c")]
    mine = summary(rows)[0]
    assert mine == {
        "policy": "dspool",
        "workloads": 3,
        "dominated_on": 1,
        "under_1_pct_on": 2,
        "median_waits_over_pct": 0.9,
        "worst_waits_over_pct": 3.0,
        "median_vs_oracle": 1.5,
        "worst_vs_oracle": 2.0,
    }


def test_a_plan_that_is_followed_holds_from_beginning_to_end():
    work, pool = on_off(120), PoolModel(initial_size=1)
    policy = AutomaticSizer(pool, SizingConfig(min_size=1, max_size=64), follow=Policy(5.0, 4.0))
    simulate(work.arrivals, work.services, policy, pool)
    seen = {(d.numbers["plan_hold_s"], d.numbers["plan_spare"]) for d in policy.decisions if d.numbers}
    assert seen == {(5.0, 4.0)}
    assert policy.decisions[-1].target >= 4


def test_the_best_plan_in_hindsight_keeps_the_budget_and_more_tries_find_none_that_is_dearer():
    work, pool, config = on_off(120), PoolModel(initial_size=4), SizingConfig(min_size=1, max_size=64)
    few, more = (best_plan(work, pool, config, 100.0, tries=tries) for tries in (4, 12))
    assert more["waits_over_pct"] < 1.0
    assert more["worker_seconds_vs_oracle"] <= (few["worker_seconds_vs_oracle"] or 1e9)


def test_the_program_sums_up_the_held_out_loads(capsys, monkeypatch):
    monkeypatch.setattr(study, "held_out", lambda seeds, service_s: [next(held_out(seeds, span_s=30))])
    assert study.main(["--json", "--held-out", "1", "--first-seed", "3", "--hindsight", "2"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [line["workloads"] for line in said["summary"]] == [1] * 7
    assert {row["workload"] for row in said["rows"]} == {"bursts 3"}
    assert said["hindsight"][0]["tries"] == 2
