"""The alerts of one pool as Prometheus would see them, for a service that has none: pending, firing, resolved."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from dspool.core.admission.silences import AlertSilence, Silences, silence_of
from dspool.errors import PoolError
from dspool.telemetry.event_log import LoggedEvent
from dspool.telemetry.exposition import REACHABLE
from dspool.telemetry.snapshot import Snapshot
from dspool_console.alerts import ALERTS, METRICS_READ, MINUTE, RUNBOOK, Alert
from dspool_console.alerts.window import Sample, SampleWindow, sample_of

log = logging.getLogger("dspool.http")

EVERY_S: Final = 15.0
ANSWER_S: Final = 5.0
SPAN_S: Final = 15 * MINUTE
"""The longest window of any alert."""
CHANGES_KEPT: Final = 200
LEVELS: Final = {"critical": "error", "warning": "warning", "info": "info"}

AlertState = Literal["ok", "pending", "firing", "unknown"]
_PLACE: Final = re.compile(r"\{\{\s*\$(value|labels\.pool)\s*(?:\|\s*(\w+)\s*)?\}\}")


class AlertNow(Struct, frozen=True, kw_only=True):
    """One alert as it stands."""

    name: str
    state: AlertState
    severity: Literal["info", "warning", "critical"]
    value: float | None
    when: str
    lasting_s: float
    since: float | None
    """Wall-clock seconds; when it became pending, or fired."""
    summary: str
    description: str
    runbook: str = RUNBOOK
    silence: AlertSilence | None = None
    """It fires all the same, but alarms nobody meanwhile."""


class AlertWatch:
    """Reads a snapshot every so often and keeps 15 minutes of what the alerts are about."""

    def __init__(
        self,
        pool: str,
        read: Callable[[], Awaitable[Snapshot]],
        *,
        read_silences: Callable[[], Awaitable[Silences]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.pool = pool
        self._read, self._clock, self._wall = read, clock, wall
        self._read_silences = read_silences
        self._silences: Silences = {}
        self._samples: deque[tuple[float, Sample]] = deque()
        self._since: dict[str, tuple[float, float]] = {}
        """Since when an alert's condition holds: monotonic, wall."""
        self._firing: set[str] = set()
        self.evaluated_at: float | None = None
        self.alerts: tuple[AlertNow, ...] = ()
        self.changes: deque[LoggedEvent] = deque(maxlen=CHANGES_KEPT)
        """Firing and ending, as events."""
        self.told = 0
        """How many changes there were, also those that are no longer kept."""
        self.version = 0
        """Grows when an alert changes its state."""

    async def run(self, every_s: float = EVERY_S) -> None:
        while True:
            snapshot = None
            with contextlib.suppress(PoolError, TimeoutError):
                # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the answer.
                async with asyncio.timeout(ANSWER_S):
                    snapshot = await self._read()
            await self.read_silences()
            try:
                self.take(snapshot)
            except Exception:
                # One snapshot that cannot be judged must not end the watch.
                log.exception("the alerts of pool %s could not be evaluated", self.pool)
            await asyncio.sleep(every_s)

    async def read_silences(self) -> None:
        """Hear what others silenced, also through other processes; if the store is away, what is known stays."""
        if self._read_silences is not None:
            with contextlib.suppress(PoolError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    silences = await self._read_silences()
                self.hear(silences)

    def hear(self, silences: Silences) -> None:
        """These are silenced from now on."""
        self._silences = silences
        alerts = tuple(self._silenced(alert, self._wall()) for alert in self.alerts)
        if alerts != self.alerts:
            self.alerts = alerts
            self.version += 1

    def _silenced(self, alert: AlertNow, at: float) -> AlertNow:
        silence = silence_of(self._silences, alert.name, now=at)
        return alert if silence == alert.silence else msgspec.structs.replace(alert, silence=silence)

    def take(self, snapshot: Snapshot | None) -> None:
        """Judge all alerts with one more snapshot; None: the metrics do not answer."""
        self.judge(sample_of(snapshot, METRICS_READ))

    def judge(self, sample: Sample) -> None:
        """Judge all alerts with one more sample."""
        now, at = self._clock(), self._wall()
        self._samples.append((now, sample))
        while self._samples[0][0] < now - SPAN_S:
            self._samples.popleft()
        window = SampleWindow(self._samples, now)
        before = {alert.name: alert.state for alert in self.alerts}
        silenced = {alert.name: alert.silence for alert in self.alerts}
        self.alerts = tuple(self._silenced(self._state(alert, window, now, at), at) for alert in ALERTS)
        self.evaluated_at = at
        for alert in self.alerts:
            if alert.silence != silenced.get(alert.name):
                self.version += 1
            if alert.state == before.get(alert.name, "ok"):
                continue
            self.version += 1
            # One that was unknown for a while and fires on is no new event.
            if alert.state == "firing" and alert.name not in self._firing:
                self._firing.add(alert.name)
                self._add_event("alert.firing", alert, at)
            elif alert.state == "ok" and alert.name in self._firing:
                self._firing.discard(alert.name)
                self._add_event("alert.resolved", alert, at)

    def _state(self, alert: Alert, window: SampleWindow, now: float, at: float) -> AlertNow:
        value, holds = alert.judge(window)
        state: AlertState = "ok"
        since: float | None = None
        if holds:
            began, since = self._since.setdefault(alert.name, (now, at))
            state = "firing" if now - began >= alert.lasting_min * MINUTE else "pending"
        elif window.level(REACHABLE) == 0 and REACHABLE not in alert.value:
            # What it is about is away: nobody can tell whether its condition still holds.
            state = "unknown"
        else:
            self._since.pop(alert.name, None)
        return AlertNow(
            name=alert.name,
            state=state,
            severity=alert.severity,
            value=value if math.isfinite(value) else None,
            when=alert.when,
            lasting_s=alert.lasting_min * MINUTE,
            since=since,
            summary=_filled(alert.summary, self.pool, value) if holds else "",
            description=alert.description,
        )

    def summary(self) -> dict[str, Any]:
        """How many fire and are not silenced, and how bad the worst of those is."""
        loud = [alert for alert in self.alerts if alert.silence is None]
        firing = [alert for alert in loud if alert.state == "firing"]
        order = ("critical", "warning", "info")
        worst = min((alert.severity for alert in firing), key=order.index, default=None)
        pending = sum(alert.state == "pending" for alert in loud)
        silenced = len(self.alerts) - len(loud)
        return {"firing": len(firing), "pending": pending, "worst": worst, "silenced": silenced}

    def _add_event(self, event: str, alert: AlertNow, at: float) -> None:
        about = {"alert": alert.name, "severity": alert.severity, "summary": alert.summary, "pool": self.pool}
        numbers = {} if alert.value is None else {"value": alert.value}
        level = LEVELS[alert.severity] if event == "alert.firing" else "info"
        self.told += 1
        # Below all numbers of the event log: these are this process's own.
        self.changes.append(LoggedEvent(-self.told, at, event, level, "alerts", numbers, about))


def without_names(alerts: Iterable[AlertNow]) -> list[AlertNow]:
    """For those who may not know who did what."""
    return [
        alert
        if alert.silence is None
        else msgspec.structs.replace(alert, silence=msgspec.structs.replace(alert.silence, by=""))
        for alert in alerts
    ]


def _filled(text: str, pool: str, value: float) -> str:
    def fill(found: re.Match[str]) -> str:
        if found[1] == "labels.pool":
            return pool
        return _HUMAN.get(found[2] or "", _plain)(value)

    return _PLACE.sub(fill, text)


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _duration(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


_HUMAN: Final[dict[str, Callable[[float], str]]] = {
    "humanizePercentage": lambda value: f"{value * 100:.3g} %",
    "humanizeDuration": _duration,
}

__all__ = ["EVERY_S", "AlertNow", "AlertWatch", "without_names"]
