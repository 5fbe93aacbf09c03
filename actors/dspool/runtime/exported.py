"""The table of metrics as `ray.util.metrics`: Ray's own `/metrics` shows them, with `ray_` before the name.

Ray's histogram takes one value at a time, but ours have counts. So a histogram goes out as three gauges with the names
of its parts in Prometheus (`_bucket` with `le`, `_sum`, `_count`): queries stay the same, and a million operations
cost no more than one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from ray.util.metrics import Counter, Gauge

from dspool.core.metrics.histogram import Histogram
from dspool.telemetry.exposition import cumulative
from dspool.telemetry.metric_table import METRICS, Metric
from dspool.telemetry.snapshot import Snapshot

REPEAT_S: Final = 2.0
"""Ray forgets a gauge that nobody sets for two of its export intervals (floor 1 s, default 10 s)."""
_RAY_EXPORTS_EVERY_S: Final = 10.0


def export_interval_s(tick_s: float, environment: Mapping[str, str]) -> float:
    """How often to set Ray's metrics: twice for each of Ray's exports, at most at each tick.

    Setting some hundred gauges costs more than all other work of a pool's metrics in that second. Infinite where Ray
    collects none.
    """
    if environment.get("RAY_enable_metrics_collection") == "0":
        return math.inf
    interval_ms = environment.get("RAY_metrics_report_interval_ms", "")
    ray_s = float(interval_ms) / 1000 if interval_ms.isdecimal() else _RAY_EXPORTS_EVERY_S
    return max(tick_s, ray_s / 2)


class StartedCounter(Counter):
    """A counter that begins at zero: Prometheus sees no increase in the first value of a series."""

    def start(self, tags: dict[str, str]) -> None:
        # `inc` refuses zero.
        self._record(0.0, tags)


class RayMetrics:
    """Sets Ray's metrics from one pool's snapshots. Lives in the metrics actor."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._counters: dict[str, StartedCounter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}
        """The last value of each counter."""
        self._levels: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = {}
        """Value and time of each gauge's last setting, and of each zero of a counter."""
        for metric in METRICS:
            keys = ("pool", *metric.labels)
            if metric.kind == "counter":
                self._counters[metric.name] = StartedCounter(metric.name, metric.help, keys)
            elif metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(metric.name, metric.help, keys)
            else:
                self._gauges[f"{metric.name}_bucket"] = Gauge(
                    f"{metric.name}_bucket", metric.help, (*keys, "le")
                )
                for part in ("sum", "count"):
                    name = f"{metric.name}_{part}"
                    self._gauges[name] = Gauge(name, metric.help, keys)

    def export(self, snapshot: Snapshot, now: float) -> None:
        """Give Ray the changes since the last snapshot; `now` is monotonic seconds."""
        for metric in METRICS:
            for values, value in metric.read(snapshot):
                if isinstance(value, Histogram):
                    self._histogram(metric, values, value, now)
                elif metric.kind == "counter":
                    self._count(metric, values, float(value), now)
                else:
                    self._gauge(metric.name, metric.labels, values, float(value), now)

    def _count(self, metric: Metric, values: tuple[str, ...], value: float, now: float) -> None:
        key = (metric.name, values)
        # Said again while it is zero: the first time may be lost, where Ray's agent is not there yet.
        if key not in self._totals or (not value and now - self._levels[key][1] >= REPEAT_S):
            self._levels[key] = (0.0, now)
            self._counters[metric.name].start(self._tags(metric.labels, values))
        before = self._totals.get(key, 0.0)
        # Less than before: the source began again at zero.
        increase = value - before if value >= before else value
        self._totals[key] = value
        if increase > 0:
            self._counters[metric.name].inc(increase, self._tags(metric.labels, values))

    def _gauge(
        self, name: str, labels: tuple[str, ...], values: tuple[str, ...], value: float, now: float
    ) -> None:
        key = (name, values)
        before, at = self._levels.get(key, (None, 0.0))
        if value != before or now - at >= REPEAT_S:
            self._levels[key] = (value, now)
            self._gauges[name].set(value, self._tags(labels, values))

    def _histogram(self, metric: Metric, values: tuple[str, ...], histogram: Histogram, now: float) -> None:
        for le, number in cumulative(histogram):
            self._gauge(f"{metric.name}_bucket", (*metric.labels, "le"), (*values, le), float(number), now)
        self._gauge(f"{metric.name}_sum", metric.labels, values, histogram.sum, now)
        self._gauge(f"{metric.name}_count", metric.labels, values, float(histogram.count), now)

    def _tags(self, labels: tuple[str, ...], values: tuple[str, ...]) -> dict[str, str]:
        return {"pool": self._pool, **dict(zip(labels, values, strict=True))}
