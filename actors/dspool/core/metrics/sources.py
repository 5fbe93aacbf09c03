"""Who reports to the metrics of a pool: clients, workers, and the supervisor; and the levels they tell of."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, field

from dspool.core.metrics.recorder import ClientDelta, Delta, WorkerDelta
from dspool.messages import PoolStatus, WorkerStatus

MAX_REPORTERS = 10_000
"""Sources whose running totals are remembered, so that one that comes back is not counted twice."""


class Source(Struct):
    """The last that was heard of one client or worker."""

    seq: int = 0
    totals: list[int] = field(default_factory=list)
    """Ended operations by outcome, as it last told."""
    seen_at: float = 0.0
    last: ClientDelta | WorkerDelta | None = None
    """Its newest delta, for the levels; None when it said goodbye."""
    served: dict[str, int] = field(default_factory=dict)
    """Served operations by program since the last tick."""
    covered_s: float = 0.0
    """The seconds that `served` covers."""
    was_silent: bool = False
    """It sent nothing for a while before that: those seconds had no operations."""
    peak_demand: int = 0


class Sources:
    """All sources of one pool, bounded. One that fell silent counts for no level; its totals are remembered."""

    def __init__(self, *, stale_after_s: float, pool_size: int | None) -> None:
        self._stale_after = stale_after_s
        self._pool_size = pool_size
        self._all: dict[str, Source] = {}
        self._status: PoolStatus | None = None
        self._status_at = 0.0
        self.forgot = False
        """Some were forgotten for room: a new one may be one of them."""
        self.heard_at: float | None = None

    def get(self, name: str, now: float) -> tuple[Source, bool]:
        """The source of that name, and whether it is new."""
        known = self._all.pop(name, None)
        source = known or Source(seen_at=now)
        self._all[name] = source  # at the end: the first is the one longest unheard of
        if len(self._all) > MAX_REPORTERS:
            del self._all[next(iter(self._all))]
            self.forgot = True
        return source, known is None

    def heard(self, source: Source, delta: Delta, now: float) -> None:
        source.seq = delta.seq
        source.seen_at = self.heard_at = now
        source.last = None if delta.final else delta

    def told(self, status: PoolStatus, now: float) -> None:
        self._status, self._status_at = status, now

    def status(self, now: float) -> PoolStatus | None:
        """The supervisor's last report, unless it has fallen silent: then the workers' own reports must do."""
        return self._status if now - self._status_at < 3 * self._stale_after else None

    def starting(self, now: float) -> list[WorkerStatus]:
        status = self.status(now)
        return [w for w in status.workers if w.state in ("starting", "warming")] if status else []

    def clients(self, now: float) -> list[ClientDelta]:
        """The newest delta of each client that is there."""
        return [r.last for r in self._all.values() if isinstance(r.last, ClientDelta) and self._fresh(r, now)]

    def workers(self, now: float) -> list[WorkerDelta]:
        """The newest delta of each worker that lives, as far as is known here."""
        status = self.status(now)
        gone = {w.id for w in status.workers if w.state in ("stopped", "failed")} if status else set()
        return [
            source.last
            for name, source in self._all.items()
            if isinstance(source.last, WorkerDelta) and self._fresh(source, now) and name not in gone
        ]

    def _fresh(self, source: Source, now: float) -> bool:
        return now - source.seen_at < self._stale_after

    def levels(self, now: float) -> dict[str, float]:
        """Size, queue and so on at this moment, by name as in `measures.GAUGES` (health left at 0)."""
        workers, clients, status = self.workers(now), self.clients(now), self.status(now)
        active = sum(worker.running > 0 for worker in workers)
        if status is not None:
            ready = [worker for worker in status.workers if worker.state == "ready"]
            size, overflow = len(ready), sum(worker.overflow for worker in ready)
            desired, spare = status.desired, status.spares
        else:
            size, overflow, spare = len(workers), sum(worker.overflow for worker in workers), 0
            desired = self._status.desired if self._status is not None else self._pool_size or size - overflow
        return {
            "size": size,
            "desired": desired,
            "active": active,
            "idle": max(0, size - active),
            "spare": spare,
            "overflow": overflow,
            "queue_depth": sum(client.queued for client in clients),
            "running": sum(worker.running for worker in workers),
            "sessions": sum(worker.sessions for worker in workers),
            "health": 0.0,
        }

    def take_interval(self, seconds: float, now: float) -> tuple[int, Iterator[tuple[str, float]]]:
        """End an interval: the peak demand in it, and (program, served operations) that belong to its seconds.

        What a client served is spread over the seconds that it covers, so that the beat between flushes and ticks
        makes no saw-tooth: 150 operations in 1.5 s are 100 in a tick of 1 s. The peak adds up the clients' own
        peaks, which need not have come at the same moment: it is never too small.
        """
        peak = 0
        served: list[tuple[str, float]] = []
        for source in self._all.values():
            covered = source.covered_s
            if covered <= 0 and not source.served:
                # Not heard of in this interval: what it had then, it still has.
                last = source.last
                if isinstance(last, ClientDelta) and self._fresh(source, now):
                    peak += last.queued + last.running
                continue
            peak += source.peak_demand
            if source.was_silent or covered < seconds / 3:
                covered = max(covered, seconds)
            served += ((program, number * seconds / covered) for program, number in source.served.items())
            source.served, source.covered_s = {}, 0.0
            source.peak_demand, source.was_silent = 0, False
        return peak, iter(served)

    def open_peak(self) -> int:
        """The peak demand that was told since the last interval ended."""
        return sum(source.peak_demand for source in self._all.values())

    def save(self) -> dict[str, tuple[int, list[int]]]:
        """Number and totals of each source, for a checkpoint."""
        return {name: (source.seq, source.totals) for name, source in self._all.items()}

    def restore(self, saved: dict[str, tuple[int, list[int]]], now: float) -> None:
        """Take over what `save` gave. They count for levels again when they report."""
        for name, (seq, totals) in saved.items():
            self._all[name] = Source(seq=seq, totals=totals, seen_at=now)
