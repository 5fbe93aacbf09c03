"""What is wrong with a pool, since when and for whom: one judgement for the page, the command line and alerts.

Health, the pool's state and the alerts are three views of a pool, each with a memory of its own. `diagnose` makes one
of them: a pool is healthy only if none of the three has anything against it, and one that is not says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from dspool.core.metrics.error_groups import ErrorGroup
from dspool.core.metrics.health import ERROR_OBJECTIVE, HEALTHY_FROM, IMPAIRED_FROM, HealthState
from dspool.core.metrics.measures import MetricsSnapshot, ProgramSnapshot
from dspool.messages import COMMAND_NAMES, PoolStatus, WorkerStatus
from dspool.messages.versioned_pickle import Message

Severity = Literal["critical", "warning", "info"]
Place = Literal["errors", "workers", "alerts", "operations", "sizing", "overview"]
"""What a fault leads to; `id` names one of them."""

CRITICAL_RATE: Final = 0.25
GROWN_MB: Final = 256.0
"""A worker that has grown by this, and to more than twice what it was, is in trouble."""
_ORDER: Final[tuple[Severity, ...]] = ("critical", "warning", "info")
_STATES: Final[tuple[HealthState, ...]] = ("healthy", "starting", "unknown", "impaired", "unhealthy")
_IN_USE: Final = ("ready", "spare")
_ERROR_ALERTS: Final = frozenset({"DspoolErrorRate", "DspoolErrorRateCritical"})
_SAYS_NO_MORE: Final[Mapping[str, frozenset[str]]] = {
    "DspoolPoolUnhealthy": frozenset({"errors", "workers", "overview", "sizing"}),
    "DspoolPoolNotReady": frozenset({"workers"}),
    "DspoolPoolDegraded": frozenset({"workers"}),
    "DspoolCrashLoop": frozenset({"workers"}),
    "DspoolErrorRate": frozenset({"errors"}),
    "DspoolErrorRateCritical": frozenset({"errors"}),
}
"""Alerts that say nothing which a fault of these places has not said better."""


class StandingAlert(NamedTuple):
    """An alert that is pending or firing."""

    name: str
    firing: bool
    severity: Severity
    since: float | None
    summary: str


class Fault(Message, Struct, frozen=True, kw_only=True):
    """One thing that is wrong."""

    severity: Severity
    sentence: str
    """What is wrong, without a full stop."""
    whom: str = ""
    """Who notices; empty if nobody does yet."""
    since: float | None = None
    """Wall-clock seconds."""
    place: Place = "overview"
    id: str = ""
    """Of the group of errors, the worker or the alert."""


class Diagnosis(Message, Struct, frozen=True, kw_only=True):
    """A pool in one word, one number and its faults. Healthy means that there is none."""

    state: HealthState
    score: float | None
    """0 to 100, in step with `state`; None: nothing is measured."""
    sentence: str
    """The worst fault, or that all is well."""
    faults: tuple[Fault, ...]
    """The worst first."""


def diagnose(
    status: PoolStatus | None, snapshot: MetricsSnapshot | None, alerts: Iterable[StandingAlert] = ()
) -> Diagnosis:
    """`status` None: the supervisor does not answer. `snapshot` None: nothing is measured."""
    standing = list(alerts)
    faults = [*_of_state(status), *_of_workers(status)]
    if snapshot is not None:
        faults += _of_errors(snapshot, standing)
        faults += _of_health(snapshot, faults)
    places = {fault.place for fault in faults}
    faults += [_of_alert(alert) for alert in standing if not _SAYS_NO_MORE.get(alert.name, _NONE) & places]
    # Of two that are as bad, the one that somebody notices comes first.
    faults.sort(key=lambda fault: (_ORDER.index(fault.severity), not fault.whom))
    state = _state(status, snapshot, standing, faults)
    return Diagnosis(
        state=state,
        score=None if snapshot is None else _score(snapshot.health.score, state),
        sentence=faults[0].sentence if faults else _ALL_WELL[state],
        faults=tuple(faults),
    )


_NONE: Final[frozenset[str]] = frozenset()
_ALL_WELL: Final[Mapping[HealthState, str]] = {
    "healthy": "The pool serves as it should",
    "starting": "The pool starts",
    "unknown": "Nothing is measured at the moment",
    "impaired": "The pool serves, but not as well as it should",
    "unhealthy": "The pool does not serve as it should",
}


def trouble_of(worker: WorkerStatus, *, failed: float = 0, served: float = 0) -> str:
    """What is wrong with a worker now; empty: nothing. `failed` of its `served` operations did so lately."""
    if worker.state == "failed":
        return f"is being killed: {worker.reason}"
    if worker.misses:
        return f"did not answer its last {_number(worker.misses, 'health check')}"
    grown_mb = worker.own_mb - worker.fresh_mb
    if worker.fresh_mb and grown_mb > max(GROWN_MB, worker.fresh_mb):
        return f"takes {worker.own_mb:,.0f} MB, {grown_mb:,.0f} MB more than when it was warm"
    if served and failed / served > ERROR_OBJECTIVE:
        return f"failed {failed:.0f} of its last {_number(round(served), 'operation')}"
    return ""


# --- what each view has against the pool ---


def _of_state(status: PoolStatus | None) -> list[Fault]:
    if status is None or status.state == "unknown":
        sentence = "The supervisor does not answer; traffic goes on, and nothing replaces a worker that dies"
        return [Fault(severity="warning", sentence=sentence, place="workers")]
    if status.state == "closed":
        return [Fault(severity="critical", sentence="The pool is closed", whom="all callers")]
    if status.state == "paused":
        sentence = "The pool is paused: it refuses new operations until it is resumed"
        return [Fault(severity="warning", sentence=sentence, whom="all callers", place="sizing")]
    if status.state == "starting" and not status.ready:
        # A start is no trouble until a worker fails.
        return [_short(status, "critical", "The pool starts: {} warm", "all callers")] if status.lost else []
    if not status.ready:
        return [_short(status, "critical", "{} in traffic, too few to serve", "all callers")]
    if status.state == "degraded":
        return [_short(status, "warning", "The pool is degraded: {} left", "all callers, who share them")]
    return []


def _short(status: PoolStatus, severity: Severity, sentence: str, whom: str) -> Fault:
    """The pool has too few workers."""
    left = f"{status.actual} of {_number(status.desired, 'worker')} {_are(status.actual)}"
    why = f": {status.reason}" if status.reason else ""
    return Fault(
        severity=severity,
        sentence=sentence.format(left) + why,
        whom=whom,
        since=status.lost_since,
        place="workers",
        id=next((ended.id for ended in status.ended if not ended.expected), ""),
    )


def _of_workers(status: PoolStatus | None) -> list[Fault]:
    if status is None:
        return []
    faults = []
    if status.lost and status.ready and status.state == "ready":
        sentence = f"{status.lost} of {{}} failed and {_are(status.lost)} not replaced yet"
        sentence = sentence.replace("{}", _number(status.desired, "worker"))
        faults.append(_short(status, "warning", sentence, "all callers, who share the others"))
    troubles = ((worker.id, trouble_of(worker)) for worker in status.workers if worker.state in _IN_USE)
    faults += [
        Fault(severity="warning", sentence=f"Worker {id} {trouble}", place="workers", id=id)
        for id, trouble in troubles
        if trouble
    ]
    return faults


def _of_errors(snapshot: MetricsSnapshot, alerts: Sequence[StandingAlert]) -> list[Fault]:
    standing = [alert for alert in alerts if alert.name in _ERROR_ALERTS]
    if snapshot.error_rate <= ERROR_OBJECTIVE and not standing:
        return []
    since = min((alert.since for alert in standing if alert.since), default=None)
    fires = any(alert.firing and alert.severity == "critical" for alert in standing)
    severity: Severity = "critical" if fires or snapshot.error_rate > CRITICAL_RATE else "warning"
    groups = [one for one in snapshot.errors if one.lately or standing]
    if not groups:
        sentence = f"{snapshot.error_rate:.2%} of the operations fail or time out"
        return [Fault(severity=severity, sentence=sentence, since=since, whom="callers", place="errors")]
    faults = []
    for same in _together(groups):
        first = same[0]
        programs = list(dict.fromkeys(one.program for one in same))
        faults.append(
            Fault(
                severity=severity,
                sentence=_error_sentence(first, programs, snapshot.programs),
                whom=_whom(programs, snapshot.programs),
                since=min(one.since for one in same),
                place="errors",
                id=first.id,
            )
        )
        # What comes beside the worst is no reason of its own to wake anybody.
        severity = "warning"
    return faults


def _together(groups: Iterable[ErrorGroup]) -> list[list[ErrorGroup]]:
    """One error of one model is one thing, whichever programs meet it."""
    by: dict[tuple[str, ...], list[ErrorGroup]] = {}
    for one in groups:
        key = (one.model, one.profile, one.code) if one.model else (one.id,)
        by.setdefault(key, []).append(one)
    return list(by.values())


def _error_sentence(
    group: ErrorGroup, programs: Sequence[str], figures: Mapping[str, ProgramSnapshot]
) -> str:
    rates = [figures[name].recent.error_rate for name in programs if name in figures]
    worst = max(rates, default=0.0)
    up_to = "up to " if len(programs) > 1 else ""
    share = f"{up_to}{worst:.1%} of the operations" if worst > 0 else "operations"
    if group.model:
        profile = f" (profile {group.profile})" if group.profile else ""
        return f"{group.text}{profile}: {share} of {_named(programs)} fail"
    version = f" (version {next(iter(group.versions))})" if len(group.versions) == 1 else ""
    return f"{group.text}{version}: {share} of {_named(programs)} fail"


def _whom(programs: Sequence[str], figures: Mapping[str, ProgramSnapshot]) -> str:
    callers = f"callers of {_named(programs)}"
    others = [name for name, one in figures.items() if name not in programs and one.recent.operations]
    if others and not any(figures[name].recent.error_rate > ERROR_OBJECTIVE for name in others):
        return (
            f"{callers}; the other {_number(len(others), 'program')} serve{'s' if len(others) == 1 else ''}"
        )
    return callers


def _named(programs: Sequence[str]) -> str:
    first = ", ".join(f"{name} of sessions" if name in COMMAND_NAMES else name for name in programs[:3])
    return f"{first} and {len(programs) - 3} more" if len(programs) > 3 else first


def _of_health(snapshot: MetricsSnapshot, so_far: Sequence[Fault]) -> list[Fault]:
    """What costs points and has not been said: the wait, the latency, the queue."""
    score = snapshot.health.score
    faults: list[Fault] = []
    for part in snapshot.health.parts:
        if part.name in ("errors", "workers"):
            continue
        worst = not so_far and not faults and score < HEALTHY_FROM and part.cost > 0
        if worst or part.cost >= 100.0 - HEALTHY_FROM:
            place: Place = "sizing" if part.name != "latency" else "operations"
            sentence = part.sentence.rstrip(".")
            faults.append(Fault(severity="warning", sentence=sentence, whom="all callers", place=place))
    if not faults and not so_far and score < HEALTHY_FROM:
        # The workers are missing, by the metrics' own count.
        part = snapshot.health.parts[0]
        faults.append(Fault(severity="warning", sentence=part.sentence.rstrip("."), place="workers"))
    return faults


def _of_alert(alert: StandingAlert) -> Fault:
    sentence = alert.summary.rstrip(".") or alert.name
    if not alert.firing:
        sentence += " (an alert is about to fire)"
    return Fault(
        severity=alert.severity if alert.firing else "warning" if alert.severity == "critical" else "info",
        sentence=sentence,
        since=alert.since,
        place="alerts",
        id=alert.name,
    )


# --- together ---


def _state(
    status: PoolStatus | None,
    snapshot: MetricsSnapshot | None,
    alerts: Sequence[StandingAlert],
    faults: Sequence[Fault],
) -> HealthState:
    views: list[HealthState] = ["unknown" if snapshot is None else snapshot.health.state]
    if status is not None and status.state == "starting":
        views.append("starting")
    if faults:
        views.append("impaired")
    no_service = status is not None and not status.ready and status.state not in ("starting", "unknown")
    if no_service or any(alert.firing and alert.severity == "critical" for alert in alerts):
        views.append("unhealthy")
    return max(views, key=_STATES.index)


def _score(score: float, state: HealthState) -> float:
    """At most what the state allows: the number and the word are one judgement."""
    if state == "unhealthy":
        return min(score, IMPAIRED_FROM - 1)
    return min(score, HEALTHY_FROM - 1) if state == "impaired" else score


def _number(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


__all__ = ["Diagnosis", "Fault", "StandingAlert", "diagnose", "trouble_of"]
