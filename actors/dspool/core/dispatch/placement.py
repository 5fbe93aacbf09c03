"""Which worker: by strategy for an operation that any may run, by rendezvous hashing for a session without a home."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable

from dspool.core.dispatch.ticket import Strategy, Ticket

Queue = list[tuple[int, Ticket]]
"""A heap by ticket number. Ended tickets may lie in it until they come up."""


class WorkerSlots:
    """One worker as this client sees it: its slots, and our operations that are there or wait for it."""

    __slots__ = ("bound", "capacity", "id", "refused", "slots", "tickets", "turn")

    def __init__(self, worker_id: str, slots: int, turn: int) -> None:
        self.id = worker_id
        self.slots = slots
        self.capacity = slots
        """Slots that we may fill: all but those of other clients, as far as we know."""
        self.refused = False
        """It answered `busy`, and reports when it has room again."""
        self.tickets: dict[str, Ticket] = {}
        """Ours, by operation id. Each counts until the worker reports it, even when nobody waits for it any more."""
        self.bound: Queue = []
        """Queued for this worker because it owns their session."""
        self.turn = turn
        """A running number, set when it frees a slot and (but for lifo) when it gets one of ours."""

    @property
    def room(self) -> int:
        """Free slots; not positive when there is none."""
        return self.capacity - len(self.tickets)


Pick = Callable[[Iterable[WorkerSlots]], WorkerSlots | None]


def pick_most_recent(workers: Iterable[WorkerSlots]) -> WorkerSlots | None:
    """Of those with room, the one that freed a slot last: work stays on few, warm workers and the others can go."""
    best = None
    for worker in workers:
        if worker.capacity > len(worker.tickets) and (best is None or worker.turn > best.turn):
            best = worker
    return best


def pick_least_recent(workers: Iterable[WorkerSlots]) -> WorkerSlots | None:
    """Of those with room, the one that has waited longest since it freed a slot or was picked."""
    best = None
    for worker in workers:
        if worker.capacity > len(worker.tickets) and (best is None or worker.turn < best.turn):
            best = worker
    return best


def pick_least_loaded(workers: Iterable[WorkerSlots]) -> WorkerSlots | None:
    """The one with the largest free share of its slots; among equals the one that has waited longest."""
    best, best_share = None, 0.0
    for worker in workers:
        room = worker.capacity - len(worker.tickets)
        if room <= 0:
            continue
        share = room / worker.slots
        if share > best_share or (share == best_share and best is not None and worker.turn < best.turn):
            best, best_share = worker, share
    return best


PICK: dict[Strategy, Pick] = {
    "lifo": pick_most_recent,
    "fifo": pick_least_recent,
    "least_loaded": pick_least_loaded,
}


def place(session: str, workers: Iterable[WorkerSlots]) -> WorkerSlots | None:
    """A home for a session among the workers with room: rendezvous hashing (Thaler, Ravishankar 1998) weighted
    by free slots. None while all are full.

    Clients that see the same members and the same load choose the same worker; a worker that joins
    or leaves moves only the sessions that it wins or had.
    """
    best, best_score = None, -math.inf
    for worker in workers:
        room = worker.room
        if room <= 0:
            continue
        digest = hashlib.blake2b(f"{session}\0{worker.id}".encode(), digest_size=8).digest()
        unit = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
        score = -room / math.log(unit)
        if score > best_score:
            best, best_score = worker, score
    return best


class SharedPlaces:
    """Where operations without a home go while some workers have new settings: at most `percent` of them there.

    When the chosen side has no room the other side takes it: nothing waits for the sake of a share.
    """

    def __init__(self, pick: Pick) -> None:
        self._pick = pick
        self._due = 0
        """In hundredths of an operation: what the new workers may still get."""
        self.percent = 0
        self.new: frozenset[str] = frozenset()

    def pick(self, workers: Iterable[WorkerSlots]) -> WorkerSlots | None:
        """As the strategy does, on the side whose turn it is. Exact, so that few operations see the share as well."""
        workers = list(workers)
        goes_new = self._due + self.percent >= 100
        worker = self._pick(self._side(workers, new=goes_new)) or self._pick(workers)
        if worker is not None:
            # What the new ones had no room for is lost for them: made up for later, it would be more than the share.
            self._due += self.percent - 100 * goes_new
        return worker

    def place(self, session: str, workers: Iterable[WorkerSlots]) -> WorkerSlots | None:
        """As `place`: all clients choose the same side for a session, and at a later step the new one again."""
        workers = list(workers)
        digest = hashlib.blake2b(session.encode(), digest_size=8).digest()
        goes_new = int.from_bytes(digest, "big") % 100 < self.percent
        return place(session, self._side(workers, new=goes_new)) or place(session, workers)

    def _side(self, workers: Iterable[WorkerSlots], *, new: bool) -> list[WorkerSlots]:
        return [worker for worker in workers if (worker.id in self.new) is new]
