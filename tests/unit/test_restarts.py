"""Restart intensity and backoff: the pure parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspool.core.lifecycle.breaker import Breaker, backoff


def breaker(**changes):
    return Breaker(**{"intensity": 3, "period_s": 30.0, "backoff_s": 0.1, "backoff_max_s": 10.0, **changes})


@pytest.mark.parametrize(
    ("attempt", "jitter", "expected"),
    [
        (0, 0.5, 0.0),
        (1, 1.0, 0.1),
        (1, 0.0, 0.05),
        (2, 1.0, 0.2),
        (4, 1.0, 0.8),
        (8, 1.0, 10.0),
        (10**9, 1.0, 10.0),
    ],
)
def test_the_backoff_doubles_up_to_its_cap_and_is_spread_over_its_upper_half(attempt, jitter, expected):
    assert backoff(attempt, 0.1, 10.0, jitter) == pytest.approx(expected)


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_the_backoff_stays_within_half_of_its_step_and_the_cap(attempt, jitter):
    step = min(10.0, 0.1 * 2 ** (attempt - 1))
    assert step / 2 <= backoff(attempt, 0.1, 10.0, jitter) <= step


def test_the_breaker_opens_with_one_failure_more_than_the_intensity():
    b = breaker()
    for now in (0.0, 1.0, 2.0):
        b.failed(now, lived_s=1.0, jitter=0.5)
    assert not b.is_open(2.0)
    b.failed(3.0, lived_s=1.0, jitter=0.5)
    assert b.is_open(3.0)


def test_the_breaker_closes_when_enough_failures_have_left_the_window():
    b = breaker()
    for now in (0.0, 1.0, 2.0, 3.0):
        b.failed(now, lived_s=1.0, jitter=0.5)
    assert b.closes_at(3.0) == 30.0
    assert b.is_open(29.9)
    assert not b.is_open(30.0)
    assert b.closes_at(30.0) is None


def test_a_worker_that_was_warm_is_replaced_at_once_while_the_breaker_is_closed():
    b = breaker()
    b.failed(5.0, lived_s=0.1, jitter=0.5)
    assert b.not_before <= 5.0


def test_a_worker_that_cannot_start_delays_the_next_start_more_each_time():
    b = breaker()
    delays = []
    for now in (0.0, 100.0, 200.0, 300.0):  # far apart: the window never fills, the attempts still count
        b.failed(now, lived_s=None, jitter=1.0)
        delays.append(b.not_before - now)
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_a_crash_loop_of_workers_that_were_warm_is_slowed_once_the_breaker_is_open():
    b = breaker()
    for now in (0.0, 0.1, 0.2):
        b.failed(now, lived_s=0.05, jitter=1.0)
    assert b.not_before == 0.0
    b.failed(0.3, lived_s=0.05, jitter=1.0)
    b.failed(0.5, lived_s=0.05, jitter=1.0)
    assert b.not_before == pytest.approx(0.5 + 0.2)


def test_the_death_of_a_worker_that_had_settled_does_not_delay_its_replacement():
    b = breaker()
    for now in range(6):
        b.failed(float(now), lived_s=None, jitter=1.0)
    waiting = b.not_before
    b.failed(20.0, lived_s=b.settled_s, jitter=1.0)
    assert b.not_before == waiting
    b.failed(21.0, lived_s=None, jitter=1.0)
    assert b.not_before == pytest.approx(21.1), "the backoff began anew"


def test_a_settled_worker_resets_the_backoff():
    b = breaker()
    for _ in range(5):
        b.failed(0.0, lived_s=None, jitter=1.0)
    b.settled()
    b.failed(100.0, lived_s=None, jitter=1.0)
    assert b.not_before == pytest.approx(100.1)
