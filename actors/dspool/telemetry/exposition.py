"""Metrics as Prometheus reads them: the text exposition format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from dspool.core.metrics.histogram import Histogram
from dspool.telemetry.metric_table import BOUNDARIES, METRICS, Metric
from dspool.telemetry.snapshot import Snapshot

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

REACHABLE: Final = "dspool_metrics_reachable"
"""The one metric that does not come from a `Snapshot`: whether there is one."""

_REACHABLE_HELP: Final = "1 if the pool's metrics actor answered; its other metrics are missing if not."


def expose(snapshots: Mapping[str, Snapshot | None]) -> bytes:
    """The metrics of these pools. None: a pool's metrics actor does not answer."""
    lines = [*_head(REACHABLE, "gauge", _REACHABLE_HELP)]
    lines += [
        f"{REACHABLE}{_labels(('pool',), (pool,))} {int(snapshot is not None)}"
        for pool, snapshot in snapshots.items()
    ]
    for metric in METRICS:
        lines += _head(metric.name, metric.kind, metric.help)
        for pool, snapshot in snapshots.items():
            if snapshot is not None:
                lines += _lines(metric, pool, snapshot)
    return ("\n".join(lines) + "\n").encode()


def cumulative(histogram: Histogram) -> list[tuple[str, int]]:
    """(le, number of values up to it), "+Inf" last.

    A value up to 2 % above a boundary may count as within it: the histogram's own buckets are that wide.
    """
    numbers = [*histogram.up_to(BOUNDARIES), histogram.count]
    return list(zip(LE, numbers, strict=True))


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    escaped = text.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"


def _lines(metric: Metric, pool: str, snapshot: Snapshot) -> Iterable[str]:
    names = ("pool", *metric.labels)
    for values, value in metric.read(snapshot):
        labels = (pool, *values)
        if isinstance(value, Histogram):
            for le, number in cumulative(value):
                yield f"{metric.name}_bucket{_labels((*names, 'le'), (*labels, le))} {number}"
            yield f"{metric.name}_sum{_labels(names, labels)} {_number(value.sum)}"
            yield f"{metric.name}_count{_labels(names, labels)} {value.count}"
        else:
            yield f"{metric.name}{_labels(names, labels)} {_number(value)}"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return "{" + ",".join(f'{n}="{_escape(v)}"' for n, v in zip(names, values, strict=True)) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    number = float(value)
    # Counters stay exact: 12345678.0 becomes 12345678, not 1.23457e+07.
    return str(int(number)) if number.is_integer() else repr(number)


LE: Final = (*(_number(boundary) for boundary in BOUNDARIES), "+Inf")
"""The values of the label `le`."""
