"""Rates and quotas, with the time as an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspool.core.admission.rates import Allowance, Allowances, Quota, Rate, RateLimits


def test_a_burst_passes_and_then_the_rate_holds():
    rate = Rate(2.0, 3.0, now=0.0)
    assert [rate.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert rate.take(0.0) == pytest.approx(0.5)
    assert rate.take(0.49) > 0
    assert rate.take(0.5) == 0.0


def test_waiting_as_long_as_it_says_is_enough():
    rate = Rate(0.3, 1.0, now=5.0)
    assert rate.take(5.0) == 0.0
    wait_s = rate.take(6.0)
    assert rate.take(6.0 + wait_s + 1e-9) == 0.0


def test_a_clock_that_steps_back_gives_nothing_away():
    rate = Rate(1.0, 1.0, now=100.0)
    assert rate.take(100.0) == 0.0
    assert rate.take(50.0) > 0
    assert rate.take(50.5) > 0


@given(st.lists(st.floats(0, 5), max_size=200), st.floats(0.1, 50), st.integers(1, 20))
def test_never_more_than_burst_plus_rate_times_time(pauses, per_s, burst):
    rate, now, passed = Rate(per_s, burst, now=0.0), 0.0, 0
    for pause in pauses:
        now += pause
        passed += rate.take(now) == 0.0
    assert passed <= burst + per_s * now + 1e-6


def test_a_quota_is_for_one_period_and_says_when_the_next_begins():
    quota = Quota(2, 86_400.0)
    day = 20_000 * 86_400.0
    assert [quota.take(day), quota.take(day + 10)] == [0.0, 0.0]
    assert quota.take(day + 86_000) == pytest.approx(400.0)
    assert quota.take(day + 86_400) == 0.0


def test_a_quota_of_a_day_that_is_over_does_not_come_back_when_the_clock_does():
    quota = Quota(1, 10.0)
    assert quota.take(20.0) == 0.0
    assert quota.take(19.0) > 0


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (-1, 1), (1, 0.5), (float("nan"), 1)])
def test_limits_that_could_never_be_met_are_refused(per_s, burst):
    with pytest.raises(ValueError, match="need per_s"):
        Rate(per_s, burst, now=0.0)


def test_what_is_wanted_is_granted_up_to_the_limits():
    counted = Allowances()
    limits = RateLimits(rate_per_s=10.0, burst=5.0, quota_per_day=7)
    assert counted.take("a", limits, 3, now=0.0, wall=0.0) == Allowance(3)
    found = counted.take("a", limits, 3, now=0.0, wall=0.0)
    assert (found.granted, found.wait_s) == (2, pytest.approx(0.1))
    assert counted.take("b", limits, 1, now=0.0, wall=0.0) == Allowance(1)
    found = counted.take("a", limits, 5, now=10.0, wall=10.0)
    assert (found.granted, found.wait_s, "7 operations" in found.why) == (2, 86_390.0, True)
    # What the quota refuses does not use up the rate.
    assert counted.take("a", RateLimits(rate_per_s=10.0), 1, now=10.0, wall=10.0).granted == 1
