"""PromQL over the table of metrics. A name, label or kind that the table does not have is refused.

A pool may be scraped at several endpoints: each replica of the service, and Ray. So each query takes the largest of
what they say before it adds anything up, and a pool counts once.
"""

from __future__ import annotations

from typing import Final

from dspool.telemetry.metric_table import BY_NAME, UNATTRIBUTED

WINDOW: Final = "$__rate_interval"
"""Grafana puts in what suits the panel and the scrape interval."""
ATTRIBUTED: Final = f'program!="{UNATTRIBUTED}"'
"""Operations whose time is known. The others are counted when their end is found out, not when they ended."""


def selector(name: str, where: str = "", *, pool: str = "") -> str:
    """`name{...}`; `pool` narrows to a pool (a regular expression or a Grafana variable)."""
    parts = [f'pool=~"{pool}"'] if pool else []
    return f"{name}{{{','.join([*parts, *([where] if where else [])])}}}" if parts or where else name


def rate(name: str, *by: str, where: str = "", pool: str = "", window: str = WINDOW) -> str:
    """The increase of a counter a second, by pool and the labels `by`."""
    _check(name, "counter", by)
    if "program" in BY_NAME[name].labels and not where.startswith("program"):
        where = f"{ATTRIBUTED},{where}" if where else ATTRIBUTED
    return _summed(name, by, f"rate({selector(name, where, pool=pool)}[{window}])")


def increase(name: str, *, window: str, where: str = "") -> str:
    """The increase of a counter, by pool."""
    _check(name, "counter", ())
    return _summed(name, (), f"increase({selector(name, where)}[{window}])")


def level(name: str, *by: str, where: str = "", pool: str = "") -> str:
    """A gauge, by pool and the labels `by`."""
    _check(name, "gauge", by)
    return f"max by ({_by(by)}) ({selector(name, where, pool=pool)})"


def quantile(q: float, name: str, *by: str, pool: str = "", window: str = WINDOW) -> str:
    """A quantile of a histogram over `window`, by pool and the labels `by`."""
    _check(name, "histogram", by)
    buckets = f"rate({selector(f'{name}_bucket', pool=pool)}[{window}])"
    return f"histogram_quantile({q:g}, {_summed(name, (*by, 'le'), buckets, 'le')})"


def mean(name: str, *by: str, pool: str = "", window: str = WINDOW) -> str:
    """The mean of a histogram over `window`, by pool and the labels `by`."""
    _check(name, "histogram", by)
    return " / ".join(
        _summed(name, by, f"rate({selector(f'{name}_{part}', pool=pool)}[{window}])")
        for part in ("sum", "count")
    )


def _summed(name: str, by: tuple[str, ...], expr: str, *extra: str) -> str:
    every = (*BY_NAME[name].labels, *extra)
    once = f"max by ({_by(every)}) ({expr})"
    return once if set(by) == set(every) else f"sum by ({_by(by)}) ({once})"


def _by(labels: tuple[str, ...]) -> str:
    return ", ".join(("pool", *labels))


def _check(name: str, kind: str, by: tuple[str, ...]) -> None:
    metric = BY_NAME.get(name)
    if metric is None or metric.kind != kind:
        raise ValueError(f"there is no {kind} called {name}")
    unknown = set(by) - set(metric.labels)
    if unknown:
        raise ValueError(f"{name} has no label {', '.join(sorted(unknown))}; it has {metric.labels}")
