"""The pool state in the words of `PoolStatus`: what people and programs see of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from dspool.messages import PoolStatus, WorkerStatus

if TYPE_CHECKING:
    from dspool.core.lifecycle.roster import WorkerRecord
    from dspool.core.lifecycle.state import PoolState


FIRST_START_DELAY_S = 1.0
"""Assumed before the first start."""


class PoolFacts(NamedTuple):
    """What sizing needs to know of the pool itself; the names are those of `inputs.SizingInputs`."""

    desired: int
    actual: int
    """Base workers that take traffic."""
    starting: int
    """Base workers on their way."""
    overflow: int
    """Overflow workers that take traffic or are on their way."""
    start_delay_s: float
    """Nine of ten of the last starts took no longer."""


def facts_of(state: PoolState) -> PoolFacts:
    """Base size first: whatever there is beyond `desired` is overflow."""
    ready, pending = len(state.roster.ready), len(state.roster.pending)
    actual = min(ready, state.desired)
    starting = min(pending, state.desired - actual)
    extra = (ready - actual) + (pending - starting)
    return PoolFacts(state.desired, actual, starting, min(extra, state.overflow), start_delay(state.starts_s))


def start_delay(starts_s: Iterable[float]) -> float:
    """The 90th percentile, seconds: a forecast for less is late each time that a start takes longer than usual."""
    ranked = sorted(starts_s)
    return ranked[math.ceil(0.9 * len(ranked)) - 1] if ranked else FIRST_START_DELAY_S


def status_of(state: PoolState, *, wall_offset: float = 0.0, version: str = "") -> PoolStatus:
    """The pool as it is now. `wall_offset` turns the machine's monotonic times into wall-clock seconds; `version` is
    that of who asks."""
    ready = state.roster.ready
    overflow = {w.id for w in ready[state.desired :]}
    return PoolStatus(
        name=state.config.name,
        state=_label(state),
        ready=state.is_ready,
        desired=state.target,
        actual=len(ready),
        spares=len(state.roster.spares),
        membership_version=state.membership.version,
        workers=tuple(
            _worker(w, overflow=w.id in overflow, wall_offset=wall_offset)
            for w in sorted(state.roster, key=lambda w: w.ordinal)
        ),
        programs=dict(state.programs),
        reason=_why(state),
        failures=state.condition.failures,
        lost=state.condition.lost,
        lost_since=since if (since := state.condition.lost_since) is None else since + wall_offset,
        ended=state.ended.rows(wall_offset),
        gradual=state.gradual.status(state.target, state.config.spares),
        version=version,
        cannot_start=state.condition.broken,
    )


def _label(state: PoolState) -> Literal["starting", "ready", "degraded", "paused", "closed"]:
    if state.closed:
        return "closed"
    if state.paused:
        return "paused"
    if state.condition.degraded:
        return "degraded"
    if state.is_ready:
        return "ready"
    return "degraded" if state.condition.was_ready else "starting"


def _why(state: PoolState) -> str:
    if state.condition.degraded:
        return state.condition.degraded
    if not state.awake:
        return "lazy: no worker is started before the first operation"
    if state.gradual.percent is not None:
        return f"a change of settings stands at {state.gradual.percent} %: `dspool apply` finishes it"
    if len(state.roster.ready) < state.target:
        return state.condition.last_failure
    return ""


def _worker(w: WorkerRecord, *, overflow: bool, wall_offset: float) -> WorkerStatus:
    status, member = w.status, w.member
    return WorkerStatus(
        id=w.id,
        ordinal=w.ordinal,
        state=w.phase,
        pid=member.pid if member else 0,
        node=member.node if member else "",
        sessions=w.sessions,
        running=status.running if status else 0,
        slots=member.slots if member else 0,
        started_at=w.started_at + wall_offset,
        operations=status.operations if status else 0,
        errors=status.errors if status else 0,
        busy_s=status.busy_s if status else 0.0,
        rss_mb=status.rss_mb if status else 0.0,
        own_mb=status.own_mb if status else 0.0,
        fresh_mb=w.fresh_mb or 0.0,
        misses=w.misses,
        overflow=overflow,
        reason=w.reason or w.leaving,
        start=status.start if status else "",
        checked_at=None if w.checked_at is None else w.checked_at + wall_offset,
        settings=status.settings if status else "",
        version=status.version if status else "",
    )
