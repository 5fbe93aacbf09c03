"""Who runs what: queued operations on one side, workers with free slots on the other.

The invariant after every method: no worker has a free slot while an operation that it may run is queued here. Any
worker may run one without a session, or whose session has no home; otherwise only the session's owner may.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from dspool.core.dispatch.placement import PICK, Queue, WorkerSlots, place
from dspool.core.dispatch.session_queues import Handovers, SessionQueues
from dspool.core.dispatch.ticket import DispatchConfig, Ticket
from dspool.messages import Member


class Matcher:
    __slots__ = (
        "_ask_at",
        "_closed",
        "_freed",
        "_handovers",
        "_leaving",
        "_look_at",
        "_pick",
        "_prefers",
        "_rotates",
        "_shared",
        "handover",
        "lines",
        "queued",
        "send",
        "workers",
    )

    def __init__(self, config: DispatchConfig) -> None:
        self.workers: dict[str, WorkerSlots] = {}
        self.lines = SessionQueues()
        self.queued = 0
        """Tickets with `queued` set, wherever they wait."""
        self.send: dict[str, list[Ticket]] = {}
        self.handover: dict[str, list[str]] = {}
        self._leaving: dict[str, WorkerSlots] = {}
        """No longer members, but still holding operations of ours."""
        self._shared: Queue = []
        """What any worker may run."""
        self._pick = PICK[config.strategy]
        self._rotates = config.strategy != "lifo"
        self._freed = 0
        self._closed = False
        self._prefers = config.affinity == "prefer"
        self._handovers = Handovers()
        self._ask_at = math.inf
        """When asking for hand-overs makes sense next, given a free slot: always inf while affinity is strict."""
        self._look_at: float | None = None
        """The last event after which it may have made sense, until `decide_handovers`."""

    # --- workers come and go ---

    def worker(self, worker_id: str) -> WorkerSlots | None:
        return self.workers.get(worker_id) or self._leaving.get(worker_id)

    def known(self) -> list[str]:
        """Every worker that takes traffic or still holds something."""
        return [*self.workers, *self._leaving]

    def members(self, wanted: dict[str, Member], now: float) -> None:
        """These take traffic now, and no others."""
        # First who is there, then what goes where: nothing may land on a worker that leaves in the same change.
        homeless: list[Ticket] = []
        for worker_id in [worker_id for worker_id in self.workers if worker_id not in wanted]:
            worker = self.workers.pop(worker_id)
            homeless += self._recall(worker)
            if worker.held:
                self._leaving[worker_id] = worker
        for worker_id, member in wanted.items():
            known = self.workers.get(worker_id)
            if known is None:
                known = self._leaving.pop(worker_id, None) or WorkerSlots(
                    worker_id, member.slots, self._freed
                )
                known.capacity, known.refused = known.slots, False  # what it said before it left is stale
                self.workers[worker_id] = known
            known.capacity += member.slots - known.slots
            known.slots = member.slots
        self.offer_all(homeless, now)
        for worker in list(self.workers.values()):
            self.feed(worker, now)
        self.look_again(now)

    def remove(self, worker_id: str) -> tuple[WorkerSlots, list[Ticket]] | None:
        """The worker is gone: itself, still with what it held, and what has to be offered to the others."""
        worker = self.workers.pop(worker_id, None) or self._leaving.pop(worker_id, None)
        return (worker, self._recall(worker)) if worker is not None else None

    def close(self) -> None:
        """Nothing is given to a worker any more."""
        self._closed = True

    # --- operations come and go ---

    def offer(self, ticket: Ticket, now: float) -> None:
        """Send `ticket` now if a worker has room for it, else put it in its queue."""
        if self._closed or ticket.done or ticket.queue_deadline <= now:
            return  # whoever watches the deadlines ends what is too late
        session = ticket.operation.session
        if session is not None:
            owner = self.workers.get(self.lines.owner(session) or "")
            if owner is not None:
                self._offer_to(owner, ticket, now)
                return
        if not self._shared:
            workers = self.workers.values()
            worker = self._pick(workers) if session is None else place(session, workers)
            if worker is not None and not worker.bound:
                self._dispatch(ticket, worker, now)
                return
        # While all are full a session has no home: the first free slot will be it.
        heapq.heappush(self._shared, (ticket.number, ticket))
        while self._shared and (worker := self._pick(self.workers.values())) is not None:
            self.feed(worker, now)

    def offer_all(self, tickets: Iterable[Ticket], now: float) -> None:
        for ticket in sorted(tickets, key=_place_in_queue):
            self.offer(ticket, now)

    def feed(self, worker: WorkerSlots, now: float) -> None:
        """Give the worker's free slots to the operations that have waited longest and may run there."""
        if self._closed or worker.id not in self.workers:
            return
        shared, bound = self._shared, worker.bound
        owners: dict[str, WorkerSlots] = {}
        while (shared or bound) and worker.capacity > len(worker.held):
            source = bound if bound and (not shared or bound[0] < shared[0]) else shared
            number, ticket = heapq.heappop(source)
            if ticket.done or ticket.queue_deadline <= now:
                continue
            session = ticket.operation.session
            if session is not None and source is shared:
                # Its owner may have left, and come back while it waited.
                owner = self.workers.get(self.lines.owner(session) or "", worker)
                if owner is not worker:
                    heapq.heappush(owner.bound, (number, ticket))
                    owners[owner.id] = owner
                    continue
            self._dispatch(ticket, worker, now)
        for owner in owners.values():
            self.feed(owner, now)
        if self._ask_at <= now:
            self._look_at = now

    def let_go(self, worker: WorkerSlots | None, operation_id: str) -> Ticket | None:
        """The worker no longer holds the operation. The caller says what becomes of it, then feeds the worker."""
        ticket = worker.held.pop(operation_id, None) if worker is not None else None
        if worker is None or ticket is None:
            return None
        ticket.worker = None
        self._freed = worker.freed = self._freed + 1
        if self._leaving and not worker.held:
            self._leaving.pop(worker.id, None)
        return ticket

    def mark_queued(self, ticket: Ticket) -> None:
        ticket.queued = True
        self.queued += 1

    def advance(self, ticket: Ticket, now: float) -> None:
        """`ticket` has ended and no worker holds it: it leaves its session's line, and the next may go."""
        session = ticket.operation.session
        if session is not None:
            following = self.lines.leave(session, ticket)
            if following is not None:
                self.offer(following, now)

    def disown(self, ticket: Ticket, worker_id: str) -> None:
        """Forget that `worker_id` owns the ticket's session, if it has one."""
        if ticket.operation.session is not None:
            self.lines.disown(ticket.operation.session, worker_id)

    def drop_ended(self) -> None:
        """Take ended tickets out of the queues: they hold their inputs in memory."""
        for queue in (self._shared, *(worker.bound for worker in self.workers.values())):
            queue[:] = [entry for entry in queue if not entry[1].done]
            heapq.heapify(queue)

    # --- hand-overs, when affinity is `prefer` ---

    def handed_over(self, worker_id: str, session: str, granted: bool, now: float) -> None:
        if not self._handovers.answered(session, worker_id):
            return
        first = self.lines.first(session)
        worker = self.workers.get(worker_id)
        if granted and (first is None or first.worker != worker_id):
            # Otherwise it got a slot meanwhile: what was sent after the request made it the owner again.
            self.lines.disown(session, worker_id)
            if worker is not None and first is not None and (first.number, first) in worker.bound:
                worker.bound.remove((first.number, first))
                heapq.heapify(worker.bound)
                self.offer(first, now)
        self.look_again(now)

    def look_again(self, now: float) -> None:
        """Something changed that may allow a hand-over, whatever the last look said."""
        if self._prefers:
            self._ask_at = -math.inf
            self._look_at = now

    def next_ask(self) -> float:
        """When to look again although nothing changed; inf if never."""
        if self._closed:
            return math.inf
        answer = self._handovers.next_expiry() if self._handovers.open else math.inf
        return min(answer, self._ask_at) if self._ask_at < math.inf and self._spare() > 0 else answer

    def decide_handovers(self) -> None:
        """Ask full owners for the sessions whose first operation has waited longest, one for each spare slot.

        Once for all events since the last time: between two of them an owner may look full that is not.
        """
        now, self._look_at = self._look_at, None
        if now is None or self._closed:
            return
        self._handovers.expire(now)
        spare = self._spare()
        if spare <= 0:
            return
        next_at = math.inf
        full = [worker for worker in self.workers.values() if worker.room <= 0]
        waiting = sorted((number, ticket, worker.id) for worker in full for number, ticket in worker.bound)
        for _, ticket, owner in waiting:
            session = ticket.operation.session
            if session is None or ticket.done:
                continue
            if spare == 0:
                return  # `_ask_at` stays: the next free slot is for one of these
            allowed_at = self._handovers.ask(session, owner, now)
            if allowed_at > now:
                next_at = min(next_at, allowed_at)
            else:
                self.handover.setdefault(owner, []).append(session)
                spare -= 1
        self._ask_at = next_at

    def _spare(self) -> int:
        """Free slots that no hand-over under way will fill."""
        return sum(max(0, worker.room) for worker in self.workers.values()) - self._handovers.open

    # --- helpers ---

    def _offer_to(self, owner: WorkerSlots, ticket: Ticket, now: float) -> None:
        if owner.capacity > len(owner.held) and not owner.bound and not self._shared:
            self._dispatch(ticket, owner, now)
            return
        # Through the queue even if there is room: an older operation may be waiting for the same slot.
        heapq.heappush(owner.bound, (ticket.number, ticket))
        self.feed(owner, now)
        if ticket.queued:
            self.look_again(now)

    def _dispatch(self, ticket: Ticket, worker: WorkerSlots, now: float) -> None:
        operation = ticket.operation
        ticket.queued = False
        self.queued -= 1
        ticket.worker = worker.id
        ticket.attempts += 1
        ticket.sent_at = now
        worker.held[operation.id] = ticket
        if operation.session is not None:
            self.lines.own(operation.session, worker.id)
        if self._rotates:
            self._freed = worker.freed = self._freed + 1
        batch = self.send.get(worker.id)
        if batch is None:
            self.send[worker.id] = [ticket]
        else:
            batch.append(ticket)

    def _recall(self, worker: WorkerSlots) -> list[Ticket]:
        """It gets nothing more: what was bound to it or not yet sent, to be offered to the others."""
        tickets = [ticket for _, ticket in worker.bound if not ticket.done]
        worker.bound = []
        for ticket in self.send.pop(worker.id, ()):
            self.let_go(worker, ticket.operation.id)
            ticket.attempts -= 1
            self.mark_queued(ticket)
            tickets.append(ticket)
        for ticket in tickets:
            self.disown(ticket, worker.id)
        self.handover.pop(worker.id, None)
        self._handovers.gone(worker.id)
        return tickets


def _place_in_queue(ticket: Ticket) -> int:
    return ticket.number
