"""The workers of a pool as the supervisor knows them, and which of them to drain first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dspool.messages import JSON, Member, WorkerState, WorkerStatus

PENDING: frozenset[WorkerState] = frozenset({"starting", "warming"})
GOING: frozenset[WorkerState] = frozenset({"draining", "stopped", "failed"})
"""Never takes traffic again. "stopped" and "failed" last until the process is certainly gone."""


@dataclass(slots=True, eq=False)
class WorkerRecord:
    """One worker, from the order to start it until its process is certainly gone."""

    id: str
    ordinal: int
    phase: WorkerState
    started_at: float
    """Monotonic time of the order to start it."""
    deadline: float | None = None
    """When the present phase has lasted too long."""
    member: Member | None = None
    warm_at: float | None = None
    leaving: str = ""
    """Why the pool replaces it; it serves until its replacement is warm."""
    reason: str = ""
    misses: int = 0
    doubted: bool = False
    """Another worker on its node was out of reach just now: it takes no traffic before it has answered."""
    suspicions: int = 0
    suspected_at: float = 0.0
    canary: bool = False
    """It tries new versions beside the others, and counts for nobody's place."""
    served: bool = False
    """It may have been in a membership: clients may have operations there."""
    settled: bool = False
    """It lived long enough to be no part of a crash loop."""
    status: WorkerStatus | None = None
    fresh_mb: float | None = None
    """Its memory when it became warm; None until its first health check, 0 if another supervisor started it."""
    checked_at: float | None = None
    """When it last answered a health check."""

    @property
    def node(self) -> str:
        return self.member.node if self.member is not None else ""

    @property
    def sessions(self) -> int:
        return self.status.sessions if self.status else 0


class Roster:
    """All living workers by id, and the ordinals they hold."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerRecord] = {}

    def __iter__(self) -> Iterator[WorkerRecord]:
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, worker_id: str) -> WorkerRecord | None:
        return self._workers.get(worker_id)

    def add(self, worker: WorkerRecord) -> None:
        if self.ordinal_taken(worker.ordinal):
            raise ValueError(f"ordinal {worker.ordinal} is taken; {worker.id} cannot have it")
        self._workers[worker.id] = worker

    def remove(self, worker_id: str) -> WorkerRecord | None:
        return self._workers.pop(worker_id, None)

    def ordinal_taken(self, ordinal: int) -> bool:
        return any(worker.ordinal == ordinal for worker in self._workers.values())

    def free_ordinal(self) -> int:
        """The smallest ordinal that no living worker holds, whatever its phase."""
        taken = {worker.ordinal for worker in self._workers.values()}
        return next(ordinal for ordinal in range(len(taken) + 1) if ordinal not in taken)

    def in_phase(self, *phases: WorkerState) -> list[WorkerRecord]:
        return [worker for worker in self._workers.values() if worker.phase in phases]

    @property
    def ready(self) -> list[WorkerRecord]:
        """Workers that take traffic, longest-serving first."""
        return sorted(self.in_phase("ready"), key=lambda w: (w.warm_at or 0.0, w.ordinal))

    @property
    def spares(self) -> list[WorkerRecord]:
        """In the order in which they take over: first where the fewest take traffic."""
        spares = [w for w in self.in_phase("spare") if not w.canary]
        serving = Counter(w.node for w in self.in_phase("ready"))
        return sorted(spares, key=lambda w: (bool(w.leaving), serving[w.node] if w.node else 0, w.ordinal))

    def doubt_neighbours(self, worker: WorkerRecord) -> None:
        """Perhaps its node is lost, with all that is there."""
        for w in self._workers.values():
            if w is not worker and w.node and w.node == worker.node:
                w.doubted = w.phase not in GOING

    @property
    def pending(self) -> list[WorkerRecord]:
        return [w for w in self.in_phase(*PENDING) if not w.canary]

    @property
    def regular(self) -> list[WorkerRecord]:
        """Those that take traffic without a canary: they make up the size of the pool."""
        return [w for w in self.ready if not w.canary]

    def first_to_drain(self) -> WorkerRecord:
        """Of the workers that take traffic, the one whose going costs least: one that is leaving anyway, else the one
        with the fewest sessions to move, else the youngest."""
        leaving = [w for w in self.regular if w.leaving]
        if leaving:
            # The longest-serving: with any other choice one could be passed over for ever.
            return leaving[0]
        return min(self.regular, key=lambda w: (w.sessions, -(w.warm_at or 0.0), -w.ordinal))

    @property
    def finishing(self) -> list[WorkerRecord]:
        """Workers that no longer take traffic, but are not given up: clients may wait for them."""
        workers = [w for w in self._workers.values() if w.served and w.phase not in ("ready", "failed")]
        return sorted(workers, key=lambda w: w.ordinal)

    def snapshot(self) -> dict[str, JSON]:
        """What a later supervisor needs to adopt these workers as they are, or to end those given up.

        A canary ends with its supervisor: it runs a version that nobody has accepted.
        """
        return {
            w.id: "failed" if w.canary else w.phase for w in self._workers.values() if w.phase not in PENDING
        }
