"""The workers that ended lately: why, and what took the place of those that the pool lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dspool.core.lifecycle.roster import WorkerRecord
from dspool.messages import EndedWorker

ENDED_KEPT: Final = 32


@dataclass(slots=True)
class _Departure:
    id: str
    ordinal: int
    started_at: float
    vacated_at: float | None = None
    """When its place became empty, if it took traffic and the pool lost it."""
    ended_at: float | None = None
    cause: str = ""
    expected: bool = True
    operations: int = 0
    errors: int = 0
    rss_mb: float = 0.0
    replaced_by: str | None = None
    how: str = ""
    took_s: float | None = None


class EndedWorkers:
    """Keeps the last ones. All times are those of the caller's clock."""

    def __init__(self) -> None:
        self._departures: dict[str, _Departure] = {}

    def lost(self, w: WorkerRecord, why: str, now: float) -> None:
        """It failed; `why` says more than how its process ends."""
        departure = self._of(w)
        departure.cause, departure.expected = why, False
        if w.served and not w.canary:
            departure.vacated_at = now

    def ended(self, w: WorkerRecord, cause: str, now: float) -> None:
        """Its process is gone."""
        departure = self._of(w)
        departure.ended_at = now
        departure.cause = departure.cause or w.reason or cause
        if w.status is not None:
            departure.operations, departure.errors = w.status.operations, w.status.errors
            departure.rss_mb = w.status.rss_mb

    def promoted(self, w: WorkerRecord, now: float) -> None:
        """It takes traffic: in the place that has been empty longest, if there is one."""
        empty = [
            one for one in self._departures.values() if one.vacated_at is not None and not one.replaced_by
        ]
        if not empty:
            return
        departure = min(empty, key=lambda one: one.vacated_at or 0.0)
        assert departure.vacated_at is not None
        departure.replaced_by, departure.took_s = w.id, now - departure.vacated_at
        # Another one was made warm first; whether it was forked it says at its first health check.
        was_there = w.warm_at is not None and w.warm_at < departure.vacated_at
        departure.how = "spare" if was_there else _how(w)

    def checked(self, w: WorkerRecord) -> None:
        for departure in self._departures.values():
            if departure.replaced_by == w.id and not departure.how:
                departure.how = _how(w)

    def full(self) -> None:
        """The pool has all its workers: no place is empty any more."""
        for departure in self._departures.values():
            if not departure.replaced_by:
                departure.vacated_at = None

    def rows(self, wall_offset: float) -> tuple[EndedWorker, ...]:
        """Those that are gone, the last first; `wall_offset` turns times into wall-clock seconds."""
        return tuple(
            EndedWorker(
                id=one.id,
                ordinal=one.ordinal,
                started_at=one.started_at + wall_offset,
                ended_at=one.ended_at + wall_offset,
                cause=one.cause,
                expected=one.expected,
                operations=one.operations,
                errors=one.errors,
                rss_mb=one.rss_mb,
                replaced_by=one.replaced_by,
                how=one.how,
                took_s=one.took_s,
            )
            for one in reversed(self._departures.values())
            if one.ended_at is not None
        )

    def _of(self, w: WorkerRecord) -> _Departure:
        departure = self._departures.pop(w.id, None) or _Departure(w.id, w.ordinal, w.started_at)
        self._departures[w.id] = departure
        while len(self._departures) > ENDED_KEPT:
            del self._departures[next(iter(self._departures))]
        return departure


def _how(w: WorkerRecord) -> str:
    return w.status.start.partition(":")[0] if w.status is not None else ""
