"""What is looked at while a change goes step by step, and what is reason enough to go back."""

from __future__ import annotations

import pytest

from dspool.core.lifecycle.gradual_watch import Course, GradualWatch, HeldAlert, course_of
from dspool.errors import ConfigError
from dspool.messages import EndedWorker, PoolStatus, WorkerStatus

NEW, OLD = "new", "old"


def worker(id, settings, operations=0, errors=0, state="ready"):
    return WorkerStatus(id, 0, state, settings=settings, operations=operations, errors=errors)


def status(*workers, ended=()):
    return PoolStatus("p", "ready", True, 2, len(workers), 0, 1, workers, ended=ended)


def watch(*, alerts=(), base=(1000, 0)):
    """A step just began; two workers with the old settings did `base` each before."""
    w = GradualWatch(status(worker("a", OLD, *base), worker("b", OLD, *base)), NEW, alerts=alerts)
    w.begin(10, 0.0)
    return w


def looked(w, new=(0, 0), old=(1000, 0), held=(), replaced=True, time_over=False, ended=()):
    seen = status(worker("a", OLD, *old), worker("b", OLD, *old), worker("c", NEW, *new), ended=ended)
    return w.look(seen, held, replaced=replaced, time_over=time_over)


@pytest.mark.parametrize(
    ("steps", "hold_s", "said"),
    [
        ("0,100", 60, "from 1 to 100, got '0'"),
        ("10,101", 60, "from 1 to 100, got '101'"),
        ("ten,100", 60, "got 'ten'"),
        ("", 60, "got ''"),
        ("-5,100", 60, "got '-5'"),
        ("50,10,100", 60, "more than the one before, got 50,10"),
        ("10,10,100", 60, "more than the one before, got 10,10"),
        ("10,50", 60, "the last must be 100, got 50"),
        ("10,100", 0, "more than 0, got 0"),
        ("10,100", -1, "more than 0, got -1"),
        ("10,100", float("nan"), "more than 0, got nan"),
        ("10,100", float("inf"), "more than 0, got inf"),
    ],
)
def test_steps_that_are_none_are_refused_with_the_value(steps, hold_s, said):
    with pytest.raises(ConfigError, match=said):
        course_of(steps, hold_s)


def test_steps_are_read_with_or_without_spaces():
    assert course_of("10, 50,100", 1.5) == Course((10, 50, 100), 1.5)
    assert course_of("100", 1.0).steps == (100,)


def test_new_workers_that_fail_as_seldom_as_those_before_are_no_reason():
    w = watch()
    assert looked(w, new=(500, 5), old=(3000, 20)) == ""
    assert looked(w, new=(500, 5), old=(3000, 20), time_over=True) == ""


def test_a_new_worker_that_fails_always_is_found_after_ten_operations():
    assert looked(watch(), new=(9, 9)) == ""
    assert "all of its first 10 operations failed" in looked(watch(), new=(10, 10))


def test_new_workers_that_fail_more_are_found_however_well_the_pool_does_as_a_whole():
    assert "error rate 20.0%" in looked(watch(), new=(100, 20), old=(90_000, 10))


def test_at_the_end_of_a_hold_what_there_is_decides():
    assert looked(watch(), new=(5, 1)) == ""
    assert "error rate 20.0%" in looked(watch(), new=(5, 1), time_over=True)


def test_what_old_workers_did_before_stands_in_for_a_step_in_which_they_did_little():
    often = watch(base=(1000, 200))
    assert looked(often, new=(100, 20), old=(1001, 200)) == ""
    assert looked(watch(base=(1000, 0)), new=(100, 20), old=(1001, 0)) != ""


def test_only_the_step_itself_counts():
    w = watch()
    assert looked(w, new=(1000, 0), old=(9000, 0)) == ""
    w.begin(50, 0.0)
    assert "error rate 50.0%" in looked(w, new=(1100, 50), old=(9100, 0))


def test_how_a_worker_that_is_gone_had_done_still_counts():
    w = watch()
    looked(w, new=(15, 3), old=(2000, 0))
    seen = status(worker("a", OLD, 3000), worker("d", NEW, 15, 3))
    assert "error rate 20.0%" in w.look(seen, (), replaced=True)
    facts = w.facts(4.0)
    assert (facts.operations_new, facts.errors_new, facts.operations_old) == (30, 6, 3000)
    assert (facts.workers_new, facts.workers_old, facts.held_s, facts.percent) == (1, 1, 4.0, 10)


def test_an_alert_counts_when_it_holds_twice_in_a_row():
    alert = HeldAlert("DspoolErrorRate", 0.0712, "> 0.05")
    w = watch()
    assert looked(w, held=[alert]) == ""
    assert looked(w) == ""
    assert looked(w, held=[alert]) == ""
    assert looked(w, held=[alert]) == "alert DspoolErrorRate: 0.0712 > 0.05"


def test_an_alert_that_held_before_is_not_the_changes_fault():
    w = watch(alerts=["DspoolErrorRate"])
    alert = HeldAlert("DspoolErrorRate", 0.07, "> 0.05")
    assert (looked(w, held=[alert]), looked(w, held=[alert])) == ("", "")


def test_a_missing_spare_counts_only_once_all_workers_of_the_step_are_there():
    w = watch()
    alert = HeldAlert("DspoolNoWarmSpare", 0.0, "== 0")
    assert [looked(w, held=[alert], replaced=False) for _ in range(3)] == ["", "", ""]
    assert looked(w, held=[alert]) == ""
    assert looked(w, held=[alert]) == "alert DspoolNoWarmSpare: 0 == 0"


def test_a_new_worker_that_cannot_start_is_a_reason_and_an_old_one_that_dies_is_none():
    def gone(id, expected):
        return EndedWorker(id, 0, 1.0, 2.0, "its program does not load", expected)

    assert looked(watch(), ended=[gone("a", False), gone("d", True)]) == ""
    said = looked(watch(), ended=[gone("d", False)])
    assert said == "worker d, which had the new settings, failed: its program does not load"
