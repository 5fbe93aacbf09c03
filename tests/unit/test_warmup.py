"""The warm-up plan and its report: the pure parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspool.core.lifecycle.warmup import StepRun, report, stages


@pytest.mark.parametrize(
    ("strategy", "workers", "expected"),
    [
        ("parallel", 0, ()),
        ("parallel", 5, (5,)),
        ("sequential", 3, (1, 1, 1)),
        ("staged", 0, ()),
        ("staged", 1, (1,)),
        ("staged", 2, (1, 1)),
        ("staged", 3, (1, 1, 1)),
        ("staged", 4, (1, 1, 1, 1)),
        ("staged", 7, (1, 1, 2, 3)),
        ("staged", 13, (1, 2, 4, 6)),
        ("staged", 61, (1, 10, 20, 30)),
    ],
)
def test_a_roll_out_has_a_canary_and_then_at_most_three_growing_stages(strategy, workers, expected):
    assert stages(strategy, workers) == expected


@given(st.integers(0, 500))
def test_a_staged_roll_out_reaches_every_worker_once_and_starts_with_one(workers):
    sizes = stages("staged", workers)
    assert sum(sizes) == workers
    assert len(sizes) <= 4
    assert all(size > 0 for size in sizes)
    assert not workers or sizes[0] == 1


def test_the_report_of_an_empty_pool_is_safe():
    done = report("staged", [], expected_steps=3)
    assert (done.runs, done.failures, done.success_rate, done.workers, done.steps) == (0, 0, 1.0, (), ())


def test_the_report_counts_each_step_and_each_worker():
    runs = [
        StepRun("w0", 0, "import_modules", 0.1),
        StepRun("w0", 1, "probe", 0.4),
        StepRun("w1", 0, "import_modules", 0.3),
        StepRun("w1", 1, "probe", 2.0, error="no answer"),
    ]
    done = report("parallel", runs, expected_steps=2, planned=(2,), duration_s=2.3)
    imports, probe = done.steps
    assert (imports.count, imports.failures, imports.success_rate) == (2, 0, 1.0)
    assert imports.mean_s == pytest.approx(0.2)
    assert (imports.p99_s, imports.max_s) == (0.3, 0.3)
    assert (probe.count, probe.failures, probe.success_rate, probe.last_error) == (2, 1, 0.5, "no answer")
    assert (probe.mean_s, probe.max_s) == (0.4, 0.4), (
        "a step that failed says nothing about how long it takes"
    )
    assert [(w.worker_id, w.ok, w.steps, w.error) for w in done.workers] == [
        ("w0", True, 2, ""),
        ("w1", False, 1, "no answer"),
    ]
    assert (done.workers_warm, done.workers_failed, done.runs, done.failures) == (1, 1, 4, 1)
    assert done.success_rate == 0.75
    first, second = done.workers
    assert (first.mean_s, first.p99_s, first.max_s) == (0.25, 0.4, 0.4)
    assert (second.failures, second.success_rate, second.max_s) == (1, 0.5, 0.3)
    assert done.mean_s == pytest.approx(0.8 / 3)
    assert (done.p99_s, done.max_s) == (0.4, 0.4)


def test_two_steps_of_one_name_are_told_apart_by_their_place():
    runs = [StepRun("w0", 0, "probe", 0.1), StepRun("w0", 3, "probe", 0.9)]
    assert [(s.index, s.count, s.max_s) for s in report("parallel", runs, expected_steps=2).steps] == [
        (0, 1, 0.1),
        (3, 1, 0.9),
    ]


def test_a_worker_that_stopped_half_way_is_not_warm_though_nothing_failed_on_it():
    done = report("parallel", [StepRun("w0", 0, "import_modules", 0.1)], expected_steps=2)
    assert (done.workers_warm, done.workers_failed) == (0, 1)


def test_p99_is_the_rank_above_never_the_one_below():
    runs = [StepRun(f"w{i}", 0, "probe", float(i)) for i in range(1, 11)]
    assert report("parallel", runs, expected_steps=1).steps[0].p99_s == 10.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.floats(0, 100), st.booleans())))
def test_the_report_loses_no_run(found):
    runs = [StepRun(f"w{w}", i, "step", d, "error" if bad else "") for w, i, d, bad in found]
    done = report("parallel", runs, expected_steps=4)
    assert sum(step.count for step in done.steps) == done.runs == len(runs)
    assert sum(step.failures for step in done.steps) == done.failures
    assert {w.worker_id for w in done.workers} == {run.worker_id for run in runs}
    assert len(done.workers) == done.workers_warm + done.workers_failed
