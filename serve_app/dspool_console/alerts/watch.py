"""The alerts of one pool as a Prometheus would see them, where there is none: evaluated here from the same table."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from msgspec import Struct

from dspool.core.metrics.histogram import Histogram
from dspool.errors import PoolError
from dspool.telemetry.event_log import Seen
from dspool.telemetry.exposition import REACHABLE, cumulative
from dspool.telemetry.metric_table import METRICS
from dspool.telemetry.snapshot import Snapshot
from dspool_console.alerts import ALERTS, RECORDED, RUNBOOK, Alert
from dspool_console.alerts.promql import Expression, Labels, PromSeries, Sample, Vector, parse

log = logging.getLogger("dspool.http")

EVERY_S: Final = 15.0
ANSWER_S: Final = 5.0
SPAN_S: Final = 660.0
"""Longest window of any alert, and a little."""
CHANGES_KEPT: Final = 200
LEVELS: Final = {"critical": "error", "warning": "warning", "info": "info"}

AlertState = Literal["ok", "pending", "firing", "unknown"]
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_PLACE: Final = re.compile(r"\{\{\s*\$(value|labels\.pool)\s*(?:\|\s*(\w+)\s*)?\}\}")


class AlertNow(Struct, frozen=True, kw_only=True):
    """One alert as it stands."""

    name: str
    state: AlertState
    severity: str
    value: float | None
    when: str
    lasting_s: float
    since: float | None
    """Wall-clock seconds; when it became pending, or fired."""
    summary: str
    description: str
    runbook: str = RUNBOOK


class _Rule:
    def __init__(self, alert: Alert) -> None:
        recorded = {rule.name: rule.expr for rule in RECORDED}
        self.alert = alert
        self.lasting_s = int(alert.lasting[:-1]) * _UNITS[alert.lasting[-1]]
        self.fires: Expression = parse(alert.expr, recorded)
        self.value: Expression = parse(alert.value, recorded)


_RULES: Final = tuple(map(_Rule, ALERTS))
NEEDED: Final = frozenset().union(*(rule.fires.names | rule.value.names for rule in _RULES))
_BASES: Final = frozenset(name.removesuffix("_bucket") for name in NEEDED)


class AlertWatch:
    """Asks `read` every 15 s and remembers eleven minutes of what the alerts need."""

    def __init__(
        self,
        pool: str,
        read: Callable[[], Awaitable[Snapshot]],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.pool = pool
        self._read, self._clock, self._wall = read, clock, wall
        self._series = PromSeries(SPAN_S)
        self._since: dict[str, tuple[float, float]] = {}
        """Since when an alert's condition holds: monotonic, wall."""
        self._firing: set[str] = set()
        self.evaluated_at: float | None = None
        self.alerts: tuple[AlertNow, ...] = ()
        self.changes: deque[Seen] = deque(maxlen=CHANGES_KEPT)
        """Firing and ending, as events."""
        self.told = 0
        """How many changes there were, also those that are no longer kept."""
        self.version = 0
        """Grows when an alert changes its state."""

    async def run(self) -> None:
        while True:
            reading = None
            with contextlib.suppress(PoolError, TimeoutError):
                reading = await asyncio.wait_for(self._read(), ANSWER_S)
            try:
                self.take(reading)
            except Exception:
                # One reading that cannot be judged must not end the watch.
                log.exception("the alerts of pool %s could not be evaluated", self.pool)
            await asyncio.sleep(EVERY_S)

    def take(self, reading: Snapshot | None) -> None:
        """Evaluate with one more reading; None: the metrics do not answer."""
        now, at = self._clock(), self._wall()
        self._series.add(now, sample_of(self.pool, reading))
        before = {alert.name: alert.state for alert in self.alerts}
        self.alerts = tuple(self._judge(rule, reading is not None, now, at) for rule in _RULES)
        self.evaluated_at = at
        for alert in self.alerts:
            was = before.get(alert.name, "ok")
            if alert.state == was:
                continue
            self.version += 1
            if alert.state == "firing":
                self._firing.add(alert.name)
                self._tell("alert.firing", alert, at)
            elif alert.name in self._firing and alert.state == "ok":
                self._firing.discard(alert.name)
                self._tell("alert.resolved", alert, at)

    def _judge(self, rule: _Rule, known: bool, now: float, at: float) -> AlertNow:
        alert = rule.alert
        holds = _own(rule.fires.vector(self._series), self.pool)
        value = _own(rule.value.vector(self._series), self.pool)
        state: AlertState = "ok"
        since: float | None = None
        if holds is not None and not math.isnan(holds):
            began, began_at = self._since.setdefault(alert.name, (now, at))
            state = "firing" if now - began >= rule.lasting_s else "pending"
            since = began_at
        elif known or REACHABLE in rule.fires.names:
            self._since.pop(alert.name, None)
        else:
            # What it would need is away: whether it holds is not known, and not that it is over.
            state, since = "unknown", None
        shown = holds if holds is not None else value
        return AlertNow(
            name=alert.name,
            state=state,
            severity=alert.severity,
            value=None if shown is None or not math.isfinite(shown) else shown,
            when=alert.when,
            lasting_s=rule.lasting_s,
            since=since,
            summary=_filled(alert.summary, self.pool, shown) if state in ("pending", "firing") else "",
            description=alert.description,
        )

    def summary(self) -> dict[str, Any]:
        """How many there are, and how bad the worst is."""
        firing = [alert for alert in self.alerts if alert.state == "firing"]
        order = ("critical", "warning", "info")
        worst = min((alert.severity for alert in firing), key=order.index, default=None)
        pending = sum(alert.state == "pending" for alert in self.alerts)
        return {"firing": len(firing), "pending": pending, "worst": worst}

    def _tell(self, event: str, alert: AlertNow, at: float) -> None:
        about = {"alert": alert.name, "severity": alert.severity, "summary": alert.summary, "pool": self.pool}
        numbers = {} if alert.value is None else {"value": alert.value}
        level = LEVELS[alert.severity] if event == "alert.firing" else "info"
        self.told += 1
        # Below all numbers of the event log: these are this process's own.
        self.changes.append(Seen(-self.told, at, event, level, "alerts", numbers, about))


def sample_of(pool: str, reading: Snapshot | None) -> Sample:
    """The values that alerts read, as a scrape of `GET /metrics` would have them."""
    found: dict[str, dict[Labels, float]] = {REACHABLE: {_labels(pool): float(reading is not None)}}
    if reading is None:
        return found
    for metric in METRICS:
        if metric.name not in _BASES:
            continue
        for values, value in metric.read(reading):
            named = dict(zip(metric.labels, values, strict=True))
            if isinstance(value, Histogram):
                buckets = found.setdefault(f"{metric.name}_bucket", {})
                for le, number in cumulative(value):
                    buckets[_labels(pool, **named, le=le)] = float(number)
            else:
                found.setdefault(metric.name, {})[_labels(pool, **named)] = float(value)
    return found


def _labels(pool: str, **more: str) -> Labels:
    return frozenset({"pool": pool, **more}.items())


def _own(vector: Vector, pool: str) -> float | None:
    return next((value for labels, value in vector.items() if dict(labels).get("pool") == pool), None)


def _filled(text: str, pool: str, value: float | None) -> str:
    def fill(found: re.Match[str]) -> str:
        if found[1] == "labels.pool":
            return pool
        return "?" if value is None else _HUMAN.get(found[2] or "", _plain)(value)

    return _PLACE.sub(fill, text)


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _duration(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


_HUMAN: Final[dict[str, Callable[[float], str]]] = {
    "humanizePercentage": lambda value: f"{value * 100:.3g} %",
    "humanizeDuration": _duration,
}

__all__ = ["EVERY_S", "AlertNow", "AlertWatch", "sample_of"]
