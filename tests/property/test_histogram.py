"""The histogram against exact answers: nearest rank, that is the value of rank ceil(q * n), counted from 1."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, inf, nan

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspool.core.metrics.histogram import (
    LARGEST,
    MAX_BUCKETS,
    RELATIVE_ERROR,
    SMALLEST,
    Histogram,
    bucket_bounds,
)

durations = st.floats(min_value=0.0, max_value=LARGEST, allow_subnormal=False)
shares = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


def filled(values) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def exact(values, q) -> float:
    rank = max(1, ceil(Fraction(str(q)) * len(values)))
    return sorted(values)[rank - 1]


def close(found: float, true: float) -> bool:
    return abs(found - true) <= max(RELATIVE_ERROR * true * 1.000001, SMALLEST)


@given(st.lists(durations, min_size=1, max_size=200), shares)
def test_every_quantile_is_within_the_stated_relative_error_of_the_exact_one(values, q):
    assert close(filled(values).quantile(q), exact(values, q))


@given(st.lists(st.lists(durations, max_size=50), min_size=1, max_size=6))
def test_merging_is_the_same_as_recording_everything_in_one_place(parts):
    merged = Histogram()
    for part in parts:
        merged.merge(filled(part))
    whole = filled([value for part in parts for value in part])
    assert (merged.counts, merged.zeros, merged.high) == (whole.counts, whole.zeros, whole.high)
    assert merged.sum == pytest.approx(whole.sum)


@given(st.lists(durations, max_size=50), st.lists(durations, max_size=50))
def test_merging_leaves_the_other_histogram_alone(one, two):
    first, second = filled(one), filled(two)
    before = second.copy()
    first.merge(second)
    first.record(1.0)
    assert second == before


@given(st.lists(durations, max_size=100))
def test_count_and_sum_are_exact(values):
    histogram = filled(values)
    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(sum(value for value in values if value > SMALLEST))
    assert histogram.high == max((value for value in values if value > SMALLEST), default=0.0)


@given(st.lists(durations, min_size=1, max_size=100), st.lists(shares, min_size=2, max_size=8))
def test_quantiles_never_fall_as_the_share_grows_and_agree_with_one_by_one(values, qs):
    histogram = filled(values)
    assert histogram.quantiles(qs) == [histogram.quantile(q) for q in qs]
    ascending = histogram.quantiles(sorted(qs))
    assert ascending == sorted(ascending)


@given(st.lists(durations, max_size=100), durations)
def test_above_counts_larger_values_up_to_the_relative_error(values, limit):
    found = filled(values).above(limit)
    slack = 2 * RELATIVE_ERROR + 1e-9
    assert sum(v > limit * (1 + slack) + SMALLEST for v in values) <= found
    assert found <= sum(v > limit * (1 - slack) - SMALLEST for v in values)


@given(st.lists(durations, max_size=50))
def test_it_is_plain_data_and_survives_msgpack(values):
    histogram = filled(values)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(histogram), type=Histogram) == histogram


@given(st.floats(min_value=SMALLEST * 1.1, max_value=LARGEST))
def test_a_value_lies_within_the_bounds_of_its_bucket(value):
    (bucket,) = filled([value]).counts
    low, high = bucket_bounds(bucket)
    assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


@pytest.mark.parametrize("value", [0.0, -1.0, nan, -inf, SMALLEST])
def test_what_is_not_a_duration_counts_as_zero(value):
    histogram = filled([value])
    assert (histogram.count, histogram.sum, histogram.quantile(0.5)) == (1, 0.0, 0.0)


@pytest.mark.parametrize("value", [inf, LARGEST * 10])
def test_what_is_too_long_counts_as_the_longest(value):
    assert filled([value]).quantile(1.0) == pytest.approx(LARGEST, rel=RELATIVE_ERROR)


def test_p99_is_never_the_rank_below():
    assert filled(range(1, 101)).quantile(0.99) == pytest.approx(99, rel=RELATIVE_ERROR)
    assert filled(range(1, 102)).quantile(0.99) == pytest.approx(100, rel=RELATIVE_ERROR)
    assert filled([1.0, 100.0]).quantile(0.99) == pytest.approx(100, rel=RELATIVE_ERROR)
    assert filled([1.0] * 7 + [9.0] * 93).quantile(0.07) == pytest.approx(1.0, rel=RELATIVE_ERROR)


def test_the_number_of_buckets_is_bounded_over_the_whole_range():
    value, histogram = SMALLEST, Histogram()
    while value < LARGEST * 2:
        histogram.record(value)
        value *= 1.005
    assert len(histogram.counts) <= MAX_BUCKETS < 1400


def test_an_empty_histogram_answers_zero():
    assert (Histogram().quantile(0.99), Histogram().mean, Histogram().count) == (0.0, 0.0, 0)


@pytest.mark.parametrize("q", [-0.1, 1.1, nan])
def test_a_share_outside_0_to_1_is_refused(q):
    with pytest.raises(ValueError, match="between 0 and 1"):
        filled([1.0]).quantile(q)
