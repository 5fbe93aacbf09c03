"""Who runs what: queued operations on one side, workers with free slots on the other.

The invariant after every method: no worker has a free slot while an operation that it may run is queued here. Any
worker may run one without a session, or whose session has no home; otherwise only the session's owner may.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from dspool.core.dispatch.placement import PICK, Queue, SharedPlaces, WorkerSlots, place
from dspool.core.dispatch.session_queues import Handovers, SessionQueues
from dspool.core.dispatch.ticket import DispatchConfig, Ticket
from dspool.messages import Member, Share


class Matcher:
    __slots__ = (
        "_ask_at",
        "_closed",
        "_event_at",
        "_handovers",
        "_leaving",
        "_pick",
        "_place",
        "_prefers",
        "_rotates",
        "_shared",
        "_shared_places",
        "_strategy",
        "_turns",
        "handover",
        "queued",
        "send",
        "sessions",
        "workers",
    )

    def __init__(self, config: DispatchConfig) -> None:
        self.workers: dict[str, WorkerSlots] = {}
        self.sessions = SessionQueues()
        self.queued = 0
        """Tickets with `queued` set, wherever they wait."""
        self.send: dict[str, list[Ticket]] = {}
        self.handover: dict[str, list[str]] = {}
        self._leaving: dict[str, WorkerSlots] = {}
        """No longer members, but still holding operations of ours."""
        self._shared: Queue = []
        """What any worker may run."""
        self._strategy = self._pick = PICK[config.strategy]
        self._place = place
        self._shared_places = SharedPlaces(self._strategy)
        self._rotates = config.strategy != "lifo"
        self._turns = 0
        self._closed = False
        self._prefers = config.affinity == "prefer"
        self._handovers = Handovers()
        self._ask_at = math.inf
        """When to ask for hand-overs next, given a free slot: always inf while affinity is strict."""
        self._event_at: float | None = None
        """Time of the last event that may allow one, until `decide_handovers`."""

    # --- workers come and go ---

    def worker(self, worker_id: str) -> WorkerSlots | None:
        return self.workers.get(worker_id) or self._leaving.get(worker_id)

    def all_workers(self) -> list[str]:
        """Every worker that takes traffic or still holds something."""
        return [*self.workers, *self._leaving]

    def set_members(self, members: dict[str, Member], now: float, share: Share | None = None) -> None:
        """These take traffic now, and no others."""
        if share is None:
            self._pick, self._place = self._strategy, place
        else:
            shared = self._shared_places
            shared.percent, shared.new = share.percent, frozenset(share.workers)
            self._pick, self._place = shared.pick, shared.place
        # Members first, operations after: nothing may land on a worker that leaves in the same change.
        homeless: list[Ticket] = []
        for worker_id in [worker_id for worker_id in self.workers if worker_id not in members]:
            worker = self.workers.pop(worker_id)
            homeless += self._recall(worker)
            if worker.tickets:
                self._leaving[worker_id] = worker
        for worker_id, member in members.items():
            if worker_id not in self.workers:
                left = self._leaving.pop(worker_id, None)
                worker = left or WorkerSlots(worker_id, member.slots, self._turns)
                # What it said before it left is stale.
                worker.capacity, worker.refused = worker.slots, False
                self.workers[worker_id] = worker
            worker = self.workers[worker_id]
            worker.capacity += member.slots - worker.slots
            worker.slots = member.slots
        self.offer_all(homeless, now)
        for worker in list(self.workers.values()):
            self.feed(worker, now)
        self.recheck_handovers(now)

    def remove(self, worker_id: str) -> tuple[WorkerSlots, list[Ticket]] | None:
        """The worker is gone: itself, still with its tickets, and the tickets to offer to the others."""
        worker = self.workers.pop(worker_id, None) or self._leaving.pop(worker_id, None)
        return (worker, self._recall(worker)) if worker is not None else None

    def close(self) -> None:
        """No worker gets anything any more."""
        self._closed = True

    # --- operations come and go ---

    def offer(self, ticket: Ticket, now: float) -> None:
        """Send `ticket` now if a worker has room for it, else put it in its queue."""
        if self._closed or ticket.ended or ticket.queue_deadline <= now:
            return  # the timers end what is too late
        session = ticket.operation.session
        if session is not None:
            owner = self.workers.get(self.sessions.owner(session) or "")
            if owner is not None:
                self._offer_to(owner, ticket, now)
                return
        if not self._shared:
            workers = self.workers.values()
            worker = self._pick(workers) if session is None else self._place(session, workers)
            if worker is not None and not worker.bound:
                self._dispatch(ticket, worker, now)
                return
        # While all are full a session has no home: the first free slot becomes it.
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
        while (shared or bound) and worker.capacity > len(worker.tickets):
            source = bound if bound and (not shared or bound[0] < shared[0]) else shared
            number, ticket = heapq.heappop(source)
            if ticket.ended or ticket.queue_deadline <= now:
                continue
            session = ticket.operation.session
            if session is not None and source is shared:
                # Its owner may have left and come back while it waited.
                owner = self.workers.get(self.sessions.owner(session) or "", worker)
                if owner is not worker:
                    heapq.heappush(owner.bound, (number, ticket))
                    owners[owner.id] = owner
                    continue
            self._dispatch(ticket, worker, now)
        for owner in owners.values():
            self.feed(owner, now)
        if self._ask_at <= now:
            self._event_at = now

    def release(self, worker: WorkerSlots | None, operation_id: str) -> Ticket | None:
        """The worker no longer holds the operation. The caller decides what becomes of it, then feeds the worker."""
        ticket = worker.tickets.pop(operation_id, None) if worker is not None else None
        if worker is None or ticket is None:
            return None
        ticket.worker = None
        self._turns = worker.turn = self._turns + 1
        if self._leaving and not worker.tickets:
            self._leaving.pop(worker.id, None)
        return ticket

    def mark_queued(self, ticket: Ticket) -> None:
        ticket.queued = True
        self.queued += 1

    def advance(self, ticket: Ticket, now: float) -> None:
        """`ticket` has ended and no worker holds it: it leaves its session's queue, and the next may go."""
        session = ticket.operation.session
        if session is not None:
            successor = self.sessions.leave(session, ticket)
            if successor is not None:
                self.offer(successor, now)

    def disown(self, ticket: Ticket, worker_id: str) -> None:
        """Forget that `worker_id` owns the ticket's session, if it has one."""
        if ticket.operation.session is not None:
            self.sessions.disown(ticket.operation.session, worker_id)

    def drop_ended(self) -> None:
        """Take ended tickets out of the queues: they hold their inputs in memory."""
        for queue in (self._shared, *(worker.bound for worker in self.workers.values())):
            queue[:] = [entry for entry in queue if not entry[1].ended]
            heapq.heapify(queue)

    # --- hand-overs, when affinity is `prefer` ---

    def handed_over(self, worker_id: str, session: str, granted: bool, now: float) -> None:
        if not self._handovers.answer(session, worker_id):
            return
        first = self.sessions.first(session)
        worker = self.workers.get(worker_id)
        if granted and (first is None or first.worker != worker_id):
            # Otherwise the operation got a slot meanwhile, which made the worker the owner again.
            self.sessions.disown(session, worker_id)
            if worker is not None and first is not None and (first.number, first) in worker.bound:
                worker.bound.remove((first.number, first))
                heapq.heapify(worker.bound)
                self.offer(first, now)
        self.recheck_handovers(now)

    def recheck_handovers(self, now: float) -> None:
        """Something changed that may allow a hand-over."""
        if self._prefers:
            self._ask_at = -math.inf
            self._event_at = now

    def next_ask(self) -> float:
        """When to ask again although nothing changed; inf if never."""
        if self._closed:
            return math.inf
        answer = self._handovers.next_expiry() if self._handovers.open else math.inf
        return min(answer, self._ask_at) if self._ask_at < math.inf and self._spare() > 0 else answer

    def decide_handovers(self) -> None:
        """Ask full owners for the sessions whose first operation has waited longest, one for each spare slot.

        Once for all events since the last call: between two events an owner may look full that is not.
        """
        now, self._event_at = self._event_at, None
        if now is None or self._closed:
            return
        self._handovers.expire(now)
        spare = self._spare()
        if spare <= 0:
            return
        next_at = math.inf
        full = [worker for worker in self.workers.values() if worker.room <= 0]
        queue = sorted((number, ticket, worker.id) for worker in full for number, ticket in worker.bound)
        for _, ticket, owner in queue:
            session = ticket.operation.session
            if session is None or ticket.ended:
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
        if owner.capacity > len(owner.tickets) and not owner.bound and not self._shared:
            self._dispatch(ticket, owner, now)
            return
        # Through the queue even if there is room: an older operation may be waiting for the same slot.
        heapq.heappush(owner.bound, (ticket.number, ticket))
        self.feed(owner, now)
        if ticket.queued:
            self.recheck_handovers(now)

    def _dispatch(self, ticket: Ticket, worker: WorkerSlots, now: float) -> None:
        operation = ticket.operation
        ticket.queued = False
        self.queued -= 1
        ticket.worker = worker.id
        # What a worker did not take after all is no attempt, and makes room here.
        ticket.tried = (*ticket.tried[: ticket.attempts], worker.id)
        ticket.attempts += 1
        ticket.sent_at = now
        worker.tickets[operation.id] = ticket
        if operation.session is not None:
            self.sessions.own(operation.session, worker.id)
        if self._rotates:
            self._turns = worker.turn = self._turns + 1
        batch = self.send.get(worker.id)
        if batch is None:
            self.send[worker.id] = [ticket]
        else:
            batch.append(ticket)

    def _recall(self, worker: WorkerSlots) -> list[Ticket]:
        """The worker gets nothing more: returns what waits for it or is not yet sent, to offer to the others."""
        tickets = [ticket for _, ticket in worker.bound if not ticket.ended]
        worker.bound = []
        for ticket in self.send.pop(worker.id, ()):
            self.release(worker, ticket.operation.id)
            ticket.attempts -= 1
            self.mark_queued(ticket)
            tickets.append(ticket)
        for ticket in tickets:
            self.disown(ticket, worker.id)
        self.handover.pop(worker.id, None)
        self._handovers.forget_worker(worker.id)
        return tickets


def _place_in_queue(ticket: Ticket) -> int:
    return ticket.number
