"""Go on, wait, or go back: the comparison of a canary with what ran before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspool.core.lifecycle.canary import ENOUGH_OPERATIONS, MIN_OPERATIONS, judge
from dspool.messages import VersionNumbers

WELL = VersionNumbers(1000, 10, 0.2)


@pytest.mark.parametrize(
    ("old", "new", "time_over", "decision", "why"),
    [
        (WELL, VersionNumbers(ENOUGH_OPERATIONS, 0, 0.2), False, "go", "error rate 0.0%"),
        (WELL, VersionNumbers(ENOUGH_OPERATIONS - 1, 0, 0.2), False, "wait", "199 of 200"),
        (WELL, VersionNumbers(MIN_OPERATIONS, 0, 0.2), True, "go", "error rate 0.0%"),
        (WELL, VersionNumbers(MIN_OPERATIONS - 1, 0, 0.2), False, "wait", "19 of 20"),
        (WELL, VersionNumbers(3, 0, 0.2), True, "go", "error rate 0.0%"),
        (WELL, VersionNumbers(), True, "go", "no operation to compare"),
        (WELL, None, False, "wait", "0 of 20"),
        (None, None, True, "go", "no operation to compare"),
        (WELL, VersionNumbers(100, 7, 0.2), False, "back", "error rate 7.0%, before 1.0%"),
        (WELL, VersionNumbers(400, 20, 0.2), False, "go", "error rate 5.0%"),
        (WELL, VersionNumbers(100, 0, 0.31), False, "back", "mean run time 0.310 s, before 0.200 s"),
        (WELL, VersionNumbers(400, 0, 0.29), False, "go", "mean run time"),
        (VersionNumbers(100, 0, 0.001), VersionNumbers(400, 0, 0.04), False, "go", "mean run time"),
        (None, VersionNumbers(400, 0, 9.0), False, "go", "mean run time"),
        (VersionNumbers(1000, 990, 0.2), VersionNumbers(400, 400, 0.2), False, "go", "error rate 100.0%"),
        (WELL, VersionNumbers(10, 10, 0.2), False, "wait", "10 of 20"),
        (VersionNumbers(100, 0, 0.2), VersionNumbers(10, 10, 0.2), False, "back", "all of its first 10"),
        # One failure more than the other version had may be chance: not before the time is over.
        (
            VersionNumbers(20, 2, 0.2),
            VersionNumbers(20, 4, 0.2),
            False,
            "wait",
            "error rate 20.0%, before 10.0%",
        ),
        (
            VersionNumbers(20, 2, 0.2),
            VersionNumbers(20, 4, 0.2),
            True,
            "back",
            "error rate 20.0%, before 10.0%",
        ),
        (VersionNumbers(2000, 200, 0.2), VersionNumbers(200, 40, 0.2), False, "back", "error rate 20.0%"),
        # What hangs ends nothing, but it runs.
        (
            WELL,
            VersionNumbers(running=8, running_s=9.0),
            True,
            "back",
            "mean run time 9.000 s (8 still running)",
        ),
        (WELL, VersionNumbers(running=8, running_s=0.1), True, "go", "no operation to compare"),
        (WELL, VersionNumbers(30, 0, 0.1, 8, 9.0), False, "back", "8 still running"),
    ],
)
def test_the_verdict(old, new, time_over, decision, why):
    verdict = judge(old, new, time_over=time_over)
    assert verdict.decision == decision
    assert why in verdict.reason


numbers = st.builds(
    lambda operations, share, run_s: VersionNumbers(operations, int(operations * share), run_s),
    st.integers(0, 200),
    st.floats(0, 1),
    st.floats(0, 10),
)


@given(numbers, numbers)
def test_once_the_time_is_over_there_is_no_more_waiting(old, new):
    assert judge(old, new, time_over=True).decision != "wait"


@given(numbers, st.booleans())
def test_a_version_that_does_exactly_as_the_one_before_is_never_rolled_back(same, time_over):
    assert judge(same, same, time_over=time_over).decision != "back"
