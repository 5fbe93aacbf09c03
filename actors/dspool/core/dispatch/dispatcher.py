"""The dispatcher: which operation goes to which worker, when, and how each one ends.

Pure: it gets `now` and random numbers as arguments, and `take()` returns what it decided. One lives in
each client. Several clients share workers: a worker that has no slot answers `busy`, the
operation goes back to its place in the queue, and the worker reports when it has room again.

Places in the queue are numbers given at submission. An operation keeps its number whatever happens to it, so
"back to the front" needs no second rule. `Matcher` decides who runs what; here is what happens to
an operation: it is refused, bounced, retried after a rest, given up, or ends.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Any

from dspool.core.dispatch.matcher import Matcher
from dspool.core.dispatch.placement import WorkerSlots
from dspool.core.dispatch.retries import EndRate, Retries, bounce_pause
from dspool.core.dispatch.suspects import Suspects, key_of
from dspool.core.dispatch.ticket import Actions, Affinity, DispatchConfig, Strategy, Ticket, TicketEnd
from dspool.core.dispatch.timers import Timers
from dspool.errors import (
    Cancelled,
    Conflict,
    PoisonRequest,
    PoolClosed,
    PoolError,
    PoolPaused,
    QueueFull,
    from_wire,
)
from dspool.messages import Failure, Member, Operation, Result, Share

__all__ = ["Actions", "Affinity", "DispatchConfig", "Dispatcher", "Strategy", "Ticket", "TicketEnd"]

DECLARED_DEAD = "its supervisor declared it dead"
_UNKNOWN_OWNER_PAUSE_S = 0.02
"""Wait before the next try for a session whose owner this client does not know (it is draining or has just died)."""
_RECHECK_S = 0.1
"""How long to believe "unreachable" and "other clients fill these slots": no report says when that changes."""
_DEAD_WEIGHT = 64
"""How many more ended than living tickets may lie in the heaps: they hold their inputs in memory."""


class Dispatcher:
    def __init__(self, config: DispatchConfig) -> None:
        self._config = config
        self._matcher = Matcher(config)
        self._tickets: dict[str, Ticket] = {}
        self._abandoned: dict[str, Ticket] = {}
        """Ended early, and a worker still holds them."""
        self._timers = Timers()
        self._recheck_at: dict[str, float] = {}
        """By worker: when to stop believing what keeps us from filling all its slots."""
        self._retries = Retries(config)
        self._suspects = Suspects(config.attempts, config.refuse_poison_s)
        self._rate = EndRate()
        self._numbers = 0
        self._leftovers = 0
        self._paused = self._closed = False
        self._cancel: dict[str, list[str]] = {}
        self._ends: list[TicketEnd] = []

    # --- state ---

    @property
    def queued(self) -> int:
        """Operations that wait for a slot, those behind another of their session included."""
        return self._matcher.queued

    @property
    def running(self) -> int:
        return len(self._tickets) - self._matcher.queued

    def oldest_wait_s(self, now: float) -> float:
        """How long the longest waiting operation has waited for a slot; 0 when none waits."""
        if not self._matcher.queued:
            return 0.0
        return next((now - ticket.submitted_at for ticket in self._tickets.values() if ticket.queued), 0.0)

    def running_on(self, worker_id: str) -> int:
        """Slots of the worker that this client fills, operations that ended early included."""
        worker = self._matcher.worker(worker_id)
        return len(worker.tickets) if worker else 0

    def owner_of(self, session: str) -> str | None:
        """The member that owns the session, as far as this client knows."""
        owner = self._matcher.sessions.owner(session)
        return owner if owner in self._matcher.workers else None

    def next_wake(self) -> float | None:
        """When `tick` has something to do next."""
        earliest = min(self._timers.earliest(), self._matcher.next_ask())
        if self._recheck_at and self.queued:
            earliest = min(earliest, *self._recheck_at.values())
        return earliest if earliest < math.inf else None

    def take(self) -> Actions:
        """The decisions since the last call. The caller performs all of them, in this order."""
        matcher = self._matcher
        matcher.decide_handovers()
        actions = Actions(matcher.send, self._cancel, self._ends, matcher.handover)
        matcher.send, self._cancel, self._ends, matcher.handover = {}, {}, [], {}
        return actions

    # --- events ---

    def submit(self, operation: Operation, *, idempotent: bool, sink: Any, now: float) -> Ticket:
        """Queue `operation`; its deadline is `now + operation.timeout_s`.

        Raises:
            QueueFull, PoolPaused, PoolClosed: refused at once, nothing was queued.
            PoisonRequest: the same, because the workers that had it before died.
            Conflict: an operation of this id has not ended, or a worker still holds it.
        """
        matcher = self._matcher
        if self._closed:
            raise PoolClosed("the pool is shut down; connect to a running one")
        if self._paused:
            raise PoolPaused("the pool is paused; resume it or try again later", retry_after_s=1.0)
        if matcher.queued >= self._config.max_queue:
            retry_after_s = self._rate.time_for(matcher.queued)
            raise QueueFull(
                f"{matcher.queued} operations wait already; try again in {retry_after_s:g} s",
                retry_after_s=retry_after_s,
            )
        if operation.id in self._tickets or operation.id in self._abandoned:
            raise Conflict(f"operation {operation.id} is still under way; give each operation its own id")
        if self._suspects and (until := self._suspects.refused_until(key_of(operation), now)) is not None:
            raise PoisonRequest(
                f"the last {self._config.attempts} workers that had this request died: it is refused for another "
                f"{until - now:.0f} s (retry.refuse_poison_s)",
                retry_after_s=round(until - now, 3),
            )
        self._numbers += 1
        deadline = now + operation.timeout_s
        queue_deadline = min(deadline, now + self._config.checkout_timeout_s)
        ticket = Ticket(self._numbers, operation, now, deadline, queue_deadline, idempotent, sink)
        self._tickets[operation.id] = ticket
        self._retries.earn()
        self._timers.watch(ticket)
        matcher.queued += 1
        if operation.session is None or matcher.sessions.enter(operation.session, ticket):
            matcher.offer(ticket, now)
        return ticket

    def finished(self, worker_id: str, report: Result | Failure, *, now: float, random: float = 0.0) -> None:
        """The worker reports the end of an operation; its slot is free."""
        worker = self._matcher.worker(worker_id)
        ticket = self._matcher.release(worker, report.operation_id)
        if worker is None or ticket is None:
            return
        self._rate.add(now)
        if self._suspects:
            self._suspects.survived(key_of(ticket.operation))
        if ticket.ended:
            self._bury(ticket, now)
        else:
            pause = error = None
            if type(report) is Failure:
                error = from_wire(report.error)
                pause = self._retries.after_error(ticket, error, now, random)
            if pause is None:
                self._end(ticket, report, error, worker_id, now)
            else:
                self._rest_before_retry(ticket, pause, now)
        self._matcher.feed(worker, now)

    def busy(self, worker_id: str, operation_id: str, *, now: float) -> None:
        """The worker had no slot: the operation did not start and goes back to its place."""
        worker = self._matcher.worker(worker_id)
        ticket = self._matcher.release(worker, operation_id)
        if worker is None or ticket is None:
            return
        # Full until a report says otherwise, or it would get the same one again at once.
        worker.capacity = len(worker.tickets)
        worker.refused = True
        self._recheck_at.pop(worker_id, None)
        self._bounce(ticket, 0.0, now)

    def moved(self, worker_id: str, operation_id: str, owner: str, *, now: float) -> None:
        """The operation's session belongs to `owner`: follow. It did not start."""
        worker = self._matcher.worker(worker_id)
        ticket = self._matcher.release(worker, operation_id)
        if worker is None or ticket is None:
            return
        known_owner = owner in self._matcher.workers and owner != worker_id
        if known_owner and ticket.operation.session is not None:
            self._matcher.sessions.own(ticket.operation.session, owner)
        else:
            self._matcher.disown(ticket, worker_id)
        self._bounce(ticket, 0.0 if known_owner else _UNKNOWN_OWNER_PAUSE_S, now)
        self._matcher.feed(worker, now)

    def load(self, worker_id: str, running: int, slots: int, *, own: int | None = None, now: float) -> None:
        """The worker's load, all clients included, as of the report being handled.

        `own` says how many of `running` are this client's. Without it the guess is all that was sent, which is
        too many while some are still on their way: the worker then looks freer than it is.
        """
        worker = self._matcher.workers.get(worker_id)
        if worker is None:
            return
        if own is None:
            own = len(worker.tickets) - len(self._matcher.send.get(worker_id, ()))
        others = max(0, running - own)
        worker.slots = slots
        worker.capacity = slots - others
        worker.refused = worker.refused and running >= slots
        if others and not worker.refused:
            # No report may come when the other clients' slots become free: the worker reports only to those it refused.
            self._recheck_at[worker_id] = now + _RECHECK_S
        else:
            self._recheck_at.pop(worker_id, None)
        self._matcher.feed(worker, now)

    def members(
        self,
        workers: Iterable[Member],
        *,
        finishing: Container[str] = (),
        paused: bool = False,
        share: Share | None = None,
        now: float,
        random: float = 0.0,
    ) -> None:
        """The workers that take traffic now. Those in `finishing` end what they hold but get nothing new.

        Any other is dead, whatever the state of its connection: its operations end as in `lost`.
        """
        self._paused = paused
        current = {member.worker_id: member for member in workers}
        for worker_id in self._matcher.all_workers():
            if worker_id not in current and worker_id not in finishing:
                # What moves from one to another that is dead as well has not left yet, and comes back unharmed.
                self.lost(worker_id, DECLARED_DEAD, now=now, random=random)
        self._matcher.set_members(current, now, share)

    def lost(self, worker_id: str, cause: str, *, now: float, random: float = 0.0) -> None:
        """The worker is gone. Its operations had started as far as we know: only idempotent ones are retried."""
        if (removal := self._matcher.remove(worker_id)) is None:
            return
        worker, retries = removal
        self._cancel.pop(worker_id, None)
        self._recheck_at.pop(worker_id, None)
        tickets, worker.tickets = list(worker.tickets.values()), {}
        self._suspects.died({key_of(ticket.operation) for ticket in tickets}, now)
        ended: list[Ticket] = []
        for ticket in tickets:
            ticket.worker = None
            self._matcher.disown(ticket, worker_id)
            pause = None if ticket.ended else self._retries.after_loss(ticket, now, random)
            if pause is None:
                ended.append(ticket)
            elif pause > 0.0:
                self._rest_before_retry(ticket, pause, now)
            else:
                ticket.queue_deadline = ticket.deadline
                self._matcher.mark_queued(ticket)
                retries.append(ticket)
        # The older ones get what is free elsewhere first, then those that stood behind an ended one of their session.
        self._matcher.offer_all(retries, now)
        for ticket in ended:
            if ticket.ended:
                self._bury(ticket, now)
            else:
                self._end(ticket, None, ticket.lost(worker_id, cause), worker_id, now)
        self._matcher.recheck_handovers(now)

    def not_sent(self, worker_id: str, operation_ids: Iterable[str], *, now: float) -> None:
        """These never left for the worker (no connection to it): they did not start and go back to their places.

        The worker gets nothing for a moment, or they would return to it again and again.
        """
        worker = self._matcher.worker(worker_id)
        released = (self._matcher.release(worker, operation_id) for operation_id in operation_ids)
        tickets = [ticket for ticket in released if ticket is not None]
        if worker is None or not tickets:
            return
        self.hold(worker_id, now + _RECHECK_S)
        for ticket in sorted(tickets, key=lambda ticket: ticket.number):
            self._matcher.disown(ticket, worker_id)
            self._bounce(ticket, 0.0, now)

    def hold(self, worker_id: str, until: float) -> None:
        """It gets nothing new before it reports, or until then."""
        if (worker := self._matcher.worker(worker_id)) is not None:
            worker.capacity = len(worker.tickets)
            self._recheck_at[worker_id] = until

    def handed_over(self, worker_id: str, session: str, granted: bool, *, now: float) -> None:
        """The worker's answer to a hand-over: it gave the session up, or keeps it."""
        self._matcher.handed_over(worker_id, session, granted, now)

    def cancel(self, operation_id: str, *, now: float) -> None:
        """The caller gave up. The operation ends now; its slot is free when the worker says so."""
        if (ticket := self._tickets.get(operation_id)) is not None:
            self._abandon(ticket, Cancelled(f"operation {operation_id} was cancelled"), now)

    def tick(self, now: float) -> None:
        """Let time pass: end what is past its deadline, queue what waited for a retry."""
        for ticket in self._timers.overdue(now):
            self._abandon(ticket, ticket.too_late(now), now)
        self._matcher.offer_all(self._timers.rested(now), now)
        workers: list[WorkerSlots] = []
        for worker_id in [worker_id for worker_id, until in self._recheck_at.items() if until <= now]:
            del self._recheck_at[worker_id]
            if (worker := self._matcher.workers.get(worker_id)) is not None:
                worker.capacity = worker.slots
                workers.append(worker)
        for worker in workers:
            self._matcher.feed(worker, now)
        self._matcher.recheck_handovers(now)

    def programs_changed(self) -> None:
        """Other code may run the same requests now: none is refused for what it did before."""
        self._suspects.clear()

    def close(self, *, now: float) -> None:
        """End everything and accept nothing more."""
        self._closed = True
        self._matcher.close()
        for ticket in list(self._tickets.values()):
            self._abandon(ticket, PoolClosed("the pool was closed while the operation waited or ran"), now)

    # --- what becomes of an operation ---

    def _bounce(self, ticket: Ticket, pause: float, now: float) -> None:
        """A worker did not take it: it goes back to its place, or rests if that happens again and again."""
        if ticket.ended:
            self._bury(ticket, now)
            return
        ticket.attempts -= 1
        ticket.bounces += 1
        self._matcher.mark_queued(ticket)
        pause = max(pause, bounce_pause(ticket.bounces))
        if ticket.queue_deadline <= now:
            self._end(ticket, None, ticket.too_late(now), None, now)
        elif pause > 0.0:
            self._timers.rest(ticket, now + pause)
        else:
            self._matcher.offer(ticket, now)

    def _rest_before_retry(self, ticket: Ticket, pause: float, now: float) -> None:
        # From here on only the operation's own deadline counts, not the checkout timeout.
        ticket.queue_deadline = ticket.deadline
        self._matcher.mark_queued(ticket)
        self._timers.rest(ticket, now + pause)

    def _abandon(self, ticket: Ticket, error: PoolError, now: float) -> None:
        """End it before the worker that may hold it reports."""
        if ticket.ended:
            return
        worker = self._matcher.worker(ticket.worker) if ticket.worker is not None else None
        batch = self._matcher.send.get(worker.id, []) if worker is not None else []
        if worker is not None and ticket in batch:
            # Decided but not yet sent: it never started.
            batch.remove(ticket)
            self._matcher.release(worker, ticket.operation.id)
            self._end(ticket, None, error, None, now)
            self._matcher.feed(worker, now)
            return
        if worker is not None:
            self._abandoned[ticket.operation.id] = ticket
            self._cancel.setdefault(worker.id, []).append(ticket.operation.id)
        self._end(ticket, None, error, ticket.worker, now)

    def _bury(self, ticket: Ticket, now: float) -> None:
        """The worker released an operation that had ended before: only now may the next of its session start."""
        del self._abandoned[ticket.operation.id]
        self._matcher.advance(ticket, now)

    def _end(
        self,
        ticket: Ticket,
        report: Result | Failure | None,
        error: PoolError | None,
        worker: str | None,
        now: float,
    ) -> None:
        matcher = self._matcher
        ticket.ended = True
        del self._tickets[ticket.operation.id]
        if ticket.queued:
            ticket.queued = False
            matcher.queued -= 1
            self._leftovers += 1
        self._ends.append(TicketEnd(ticket, report, error, worker))
        if ticket.worker is None:
            matcher.advance(ticket, now)
        if (
            len(self._timers) > 2 * len(self._tickets) + _DEAD_WEIGHT
            or self._leftovers > self.queued + _DEAD_WEIGHT
        ):
            self._leftovers = 0
            self._timers.drop_ended()
            matcher.drop_ended()
