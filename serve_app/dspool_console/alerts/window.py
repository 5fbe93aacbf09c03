"""What a service without a Prometheus remembers of a pool, and the questions that alerts ask of it. Pure.

Each question means what it means in PromQL, but for one thing: `increase` does not extrapolate to the edges of its
time as Prometheus does, so five deaths are five. With a sample every 15 s, 5 minutes come out up to 5 % lower.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from dspool.core.metrics.histogram import Histogram
from dspool.telemetry.exposition import REACHABLE, cumulative
from dspool.telemetry.metric_table import BY_NAME, UNATTRIBUTED
from dspool.telemetry.snapshot import Snapshot

Labels = tuple[str, ...]
"""Values of a metric's labels, in the order of the table of metrics; a bucket's `le` comes last."""
Sample = Mapping[str, Mapping[Labels, float]]
"""Metric -> labels -> value, at one moment."""

ABSENT: Final = math.nan
"""Nothing was measured. No comparison with it is true, so no alert fires on it."""


def sample_of(snapshot: Snapshot | None, metrics: frozenset[str]) -> Sample:
    """The values of these metrics; None: the pool's metrics do not answer."""
    sample: dict[str, dict[Labels, float]] = {REACHABLE: {(): float(snapshot is not None)}}
    if snapshot is None:
        return sample
    for name in metrics - {REACHABLE}:
        series = sample[name] = {}
        for labels, value in BY_NAME[name].read(snapshot):
            if isinstance(value, Histogram):
                series.update({(*labels, le): float(count) for le, count in cumulative(value)})
            else:
                series[labels] = float(value)
    return sample


class SampleWindow:
    """What alerts see at `now`: the samples until then, oldest first, each with its monotonic seconds.

    `where` chooses by labels: a value, or several with `|` between them. Operations whose end is found out late
    (`UNATTRIBUTED`) are left out, as in `dspool_console.promql`.
    """

    def __init__(self, samples: Sequence[tuple[float, Sample]], now: float) -> None:
        self._samples, self._now = samples, now

    def level(self, metric: str, **where: str) -> float:
        """A gauge."""
        series = self._samples[-1][1].get(metric, {}) if self._samples else {}
        return next((series[labels] for labels in _chosen(metric, series, where)), ABSENT)

    def increase(self, metric: str, seconds: float, **where: str) -> float:
        """By how much a counter grew; the first value of a series is no growth."""
        grown = self._increases(metric, seconds, where)
        return sum(grown.values()) if grown else ABSENT

    def quantile(self, q: float, metric: str, seconds: float) -> float:
        """A quantile of what a histogram measured, as Prometheus' `histogram_quantile` finds it."""
        buckets: dict[float, float] = {}
        for labels, count in self._increases(metric, seconds, {}).items():
            bound = float(labels[-1])
            buckets[bound] = buckets.get(bound, 0.0) + count
        return _in_buckets(q, sorted(buckets.items()))

    def _increases(self, metric: str, seconds: float, where: Mapping[str, str]) -> dict[Labels, float]:
        samples = [sample.get(metric, {}) for at, sample in self._samples if at >= self._now - seconds]
        increases = {}
        for labels in _chosen(metric, dict.fromkeys(itertools.chain(*samples)), where):
            values = [sample[labels] for sample in samples if labels in sample]
            # A counter that fell began anew.
            increases[labels] = sum(b - a if b >= a else b for a, b in itertools.pairwise(values))
        return increases


def _chosen(metric: str, series: Iterable[Labels], where: Mapping[str, str]) -> Iterator[Labels]:
    names = BY_NAME[metric].labels if metric in BY_NAME else ()
    wanted = [(names.index(label), values.split("|")) for label, values in where.items()]
    for labels in series:
        if UNATTRIBUTED not in labels and all(labels[place] in values for place, values in wanted):
            yield labels


def _in_buckets(q: float, buckets: Sequence[tuple[float, float]]) -> float:
    """`buckets`: (upper bound, number of values up to it)."""
    if len(buckets) < 2 or buckets[-1][1] <= 0:
        return ABSENT
    rank, lower, below = q * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if math.isinf(bound):
                break
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


__all__ = ["ABSENT", "Labels", "Sample", "SampleWindow", "sample_of"]
