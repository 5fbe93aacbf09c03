"""A mergeable histogram of durations with a stated relative error.

Buckets grow geometrically, as in DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile
sketch with relative-error guarantees", VLDB 2019): bucket i holds the values in (g**(i-1), g**i] with
g = (1 + e) / (1 - e), and answers 2 * g**i / (g + 1), which is within e of every value in it. Unlike
the paper's sketch, this one never collapses buckets: the range is fixed, and so is the largest number of buckets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, exp, log

from msgspec import Struct, field

from dspool.messages.versioned_pickle import Message

RELATIVE_ERROR = 0.01
"""A quantile differs from the exact one by at most this share of it, between `SMALLEST` and `LARGEST`."""
SMALLEST = 1e-6
"""Values up to this (seconds) count as zero."""
LARGEST = 1e6
"""Larger values count as this one (seconds)."""

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = log(_GAMMA)
_PER_LOG = 1 / _LOG_GAMMA
_MIDDLE = log(2 / (_GAMMA + 1))

MAX_BUCKETS = ceil(log(LARGEST) * _PER_LOG) - ceil(log(SMALLEST) * _PER_LOG) + 1
"""How many entries `counts` can ever have."""


class Histogram(Message, Struct, array_like=True):
    """Counts of durations by size. Plain data: a msgspec struct of numbers and one dict.

    The same values give the same `counts` in any order and however they were split over merged histograms.
    """

    zeros: int = 0
    """Values up to `SMALLEST`; negative ones (a clock went back) are among them."""
    sum: float = 0.0
    high: float = 0.0
    """The largest value, exact."""
    counts: dict[int, int] = field(default_factory=dict)
    """Number of values by bucket index; only buckets that hold something."""

    def record(self, value: float) -> None:
        """Count one value (seconds). Not a number counts as zero."""
        if value > SMALLEST:
            if value > LARGEST:
                value = LARGEST
            self.sum += value
            if value > self.high:
                self.high = value
            bucket = ceil(log(value) * _PER_LOG)
            counts = self.counts
            counts[bucket] = counts.get(bucket, 0) + 1
        else:
            self.zeros += 1

    def merge(self, other: Histogram) -> None:
        """Add all of `other`, as if its values had been recorded here."""
        self.zeros += other.zeros
        self.sum += other.sum
        if other.high > self.high:
            self.high = other.high
        counts = self.counts
        if not counts:
            counts.update(other.counts)
            return
        get = counts.get
        for bucket, number in other.counts.items():
            counts[bucket] = get(bucket, 0) + number

    @property
    def count(self) -> int:
        return self.zeros + sum(self.counts.values())

    @property
    def mean(self) -> float:
        """The exact mean; 0.0 when empty."""
        count = self.count
        return self.sum / count if count else 0.0

    def quantile(self, q: float) -> float:
        """The value of rank ceil(q * count), counted from 1 (nearest rank), within `RELATIVE_ERROR`; 0.0 when empty.

        So p99 of 100 values is the 99th and of 101 values the 100th: never the rank below.
        """
        return self.quantiles((q,))[0]

    def quantiles(self, qs: Iterable[float]) -> list[float]:
        """`quantile` of each of `qs`, in one pass when they ascend."""
        count = self.count
        ordered = sorted(self.counts)
        results: list[float] = []
        total, at, previous = self.zeros, -1, 0.0
        for q in qs:
            if not 0.0 <= q <= 1.0:
                raise ValueError(f"a quantile is between 0 and 1, got {q}")
            if q < previous:
                total, at = self.zeros, -1
            previous = q
            rank = min(count, max(1, _ceil_rank(q, count)))
            while total < rank:
                at += 1
                total += self.counts[ordered[at]]
            results.append(0.0 if at < 0 else min(self.high, exp(ordered[at] * _LOG_GAMMA + _MIDDLE)))
        return results

    def above(self, value: float) -> int:
        """How many values are larger than `value`, with the relative error of a bucket."""
        if value <= SMALLEST:
            return self.count - self.zeros
        limit = _bucket_of(value)
        return sum(number for bucket, number in self.counts.items() if bucket > limit)

    def up_to(self, boundaries: Sequence[float]) -> list[int]:
        """How many values are at most each of `boundaries` (ascending), with the relative error of a bucket.

        For exporters with fixed boundaries: the number never goes down from one boundary to the next, and it is
        `count` less what is `above` it.
        """
        limits = [_bucket_of(boundary) if boundary > SMALLEST else None for boundary in boundaries]
        ordered = sorted(self.counts)
        results, total, at = [], self.zeros, 0
        for limit in limits:
            while limit is not None and at < len(ordered) and ordered[at] <= limit:
                total += self.counts[ordered[at]]
                at += 1
            results.append(total)
        return results

    def copy(self) -> Histogram:
        return Histogram(self.zeros, self.sum, self.high, dict(self.counts))


def _bucket_of(value: float) -> int:
    return ceil(log(min(value, LARGEST)) * _PER_LOG)


def _ceil_rank(q: float, count: int) -> int:
    # 0.07 * 100 is 7.000000000000001 in floating point; the rank is 7.
    return ceil(q * count - 1e-9 * count)


def bucket_bounds(bucket: int) -> tuple[float, float]:
    """The open lower and closed upper bound (seconds) of a bucket: what an exporter with fixed buckets needs."""
    return exp((bucket - 1) * _LOG_GAMMA), exp(bucket * _LOG_GAMMA)
