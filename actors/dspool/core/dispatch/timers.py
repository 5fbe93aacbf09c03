"""Deadlines, and rests before a next attempt."""

from __future__ import annotations

import heapq
import math

from dspool.core.dispatch.ticket import Ticket

_Heap = list[tuple[float, int, Ticket]]


class Timers:
    __slots__ = ("_deadlines", "_resting")

    def __init__(self) -> None:
        self._deadlines: _Heap = []
        """Exactly one entry for each living ticket, never later than what ends it next, and some for ended ones."""
        self._resting: _Heap = []

    def __len__(self) -> int:
        return len(self._deadlines)

    def watch(self, ticket: Ticket) -> None:
        """`overdue` returns it when its time is up. Called once for each ticket."""
        heapq.heappush(self._deadlines, (ticket.queue_deadline, ticket.number, ticket))

    def rest(self, ticket: Ticket, until: float) -> None:
        """`rested` returns it then."""
        heapq.heappush(self._resting, (until, ticket.number, ticket))

    def overdue(self, now: float) -> list[Ticket]:
        """Those whose deadline has passed, or whose checkout timeout has while they are queued."""
        late: list[Ticket] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heapq.heappop(self._deadlines)[2]
            if ticket.ended:
                continue
            if ticket.deadline <= now or (ticket.queued and ticket.queue_deadline <= now):
                late.append(ticket)
            else:
                heapq.heappush(self._deadlines, (ticket.deadline, ticket.number, ticket))
        return late

    def rested(self, now: float) -> list[Ticket]:
        tickets: list[Ticket] = []
        while self._resting and self._resting[0][0] <= now:
            tickets.append(heapq.heappop(self._resting)[2])
        return tickets

    def earliest(self) -> float:
        """When `overdue` or `rested` has something to return; inf if never."""
        earliest = math.inf
        for heap in (self._deadlines, self._resting):
            while heap and heap[0][2].ended:
                heapq.heappop(heap)
            if heap:
                earliest = min(earliest, heap[0][0])
        return earliest

    def drop_ended(self) -> None:
        """Forget ended tickets: they hold their inputs in memory."""
        for heap in (self._deadlines, self._resting):
            heap[:] = [entry for entry in heap if not entry[2].ended]
            heapq.heapify(heap)
