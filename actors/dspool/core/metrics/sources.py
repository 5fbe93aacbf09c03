"""Who reports to the metrics of a pool (clients, workers, the supervisor), and the levels they report."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, field

from dspool.core.metrics.recorder import ClientDelta, Delta, WorkerDelta
from dspool.messages import PoolStatus, WorkerStatus

MAX_REPORTERS = 10_000
"""Sources whose running totals are kept, so that one that comes back does not count twice."""


class Source(Struct):
    """The newest report of one client or worker."""

    seq: int = 0
    totals: list[int] = field(default_factory=list)
    """Ended operations by outcome, as of its last report."""
    reported_at: float = 0.0
    last: ClientDelta | WorkerDelta | None = None
    """Its newest delta, for the levels; None after its final one, and once it is silent."""
    served: dict[str, int] = field(default_factory=dict)
    """Served operations by program since the last tick."""
    covered_s: float = 0.0
    """The seconds that `served` covers."""
    was_silent: bool = False
    """It sent nothing for a while before: those seconds had no operations."""
    peak_demand: int = 0


class Sources:
    """All sources of one pool, bounded. A silent one counts for no level, but its totals stay."""

    def __init__(self, *, stale_after_s: float, pool_size: int | None) -> None:
        self._stale_after = stale_after_s
        self._pool_size = pool_size
        self._all: dict[str, Source] = {}
        self._status: PoolStatus | None = None
        self._status_at = 0.0
        self.forgot = False
        """Some were dropped for room: a new one may be one of them."""
        self.updated_at: float | None = None

    def get(self, name: str, now: float) -> tuple[Source, bool]:
        """The source of that name, and whether it is new."""
        previous = self._all.pop(name, None)
        source = previous or Source(reported_at=now)
        self._all[name] = source  # at the end: the first has been silent longest
        if len(self._all) > MAX_REPORTERS:
            del self._all[next(iter(self._all))]
            self.forgot = True
        return source, previous is None

    def update(self, source: Source, delta: Delta, now: float) -> None:
        source.seq = delta.seq
        source.reported_at = self.updated_at = now
        source.last = None if delta.final else delta

    def set_status(self, status: PoolStatus, now: float) -> None:
        self._status, self._status_at = status, now

    @property
    def has_status(self) -> bool:
        """Whether the supervisor ever reported."""
        return self._status is not None

    def status(self, now: float) -> PoolStatus | None:
        """The supervisor's last report; None when it fell silent: then the workers' own reports must do."""
        return self._status if now - self._status_at < 3 * self._stale_after else None

    def starting(self, now: float) -> list[WorkerStatus]:
        status = self.status(now)
        return [w for w in status.workers if w.state in ("starting", "warming")] if status else []

    def clients(self, now: float) -> list[ClientDelta]:
        """The newest delta of each client that reports."""
        return [
            r.last for r in self._all.values() if isinstance(r.last, ClientDelta) and self._is_fresh(r, now)
        ]

    def workers(self, now: float) -> list[WorkerDelta]:
        """The newest delta of each worker that seems to live."""
        status = self.status(now)
        dead = {w.id for w in status.workers if w.state in ("stopped", "failed")} if status else set()
        return [
            source.last
            for name, source in self._all.items()
            if isinstance(source.last, WorkerDelta) and self._is_fresh(source, now) and name not in dead
        ]

    def _is_fresh(self, source: Source, now: float) -> bool:
        return now - source.reported_at < self._stale_after

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

        It spreads what a client served over the seconds that its delta covers, so that the beat between flushes and
        ticks makes no saw-tooth: 150 operations in 1.5 s are 100 in a tick of 1 s. The peak adds up the clients' own
        peaks, which need not come at the same moment: it is never too small.
        """
        peak = 0
        served: list[tuple[str, float]] = []
        for source in self._all.values():
            if source.last is not None and not self._is_fresh(source, now):
                # It counts for no level any more, and its tallies are the largest part of it.
                source.last = None
            covered = source.covered_s
            if covered <= 0 and not source.served:
                # No report in this interval: it still has what it had then.
                last = source.last
                if isinstance(last, ClientDelta):
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
        """The peak demand since the last interval ended."""
        return sum(source.peak_demand for source in self._all.values())

    def save(self) -> dict[str, tuple[int, list[int]]]:
        """Number and totals of each source, for a checkpoint."""
        return {name: (source.seq, source.totals) for name, source in self._all.items()}

    def restore(self, saved: dict[str, tuple[int, list[int]]], now: float) -> None:
        """Take over what `save` returned. Sources count for levels again when they report."""
        for name, (seq, totals) in saved.items():
            self._all[name] = Source(seq=seq, totals=totals, reported_at=now)
