"""Sessions as a client sees them: their operations in order, and who owns each."""

from __future__ import annotations

import math
from collections import OrderedDict, deque

from msgspec import Struct

from dspool.core.dispatch.ticket import Ticket

REMEMBERED_OWNERS = 100_000


class SessionQueues:
    """One queue for each session that has operations here; only the first in a queue may go to a worker.

    A ticket stays in its queue until no worker holds it, ended or not: that keeps a session
    to one operation at a time. It remembers the owners of the sessions used last, queued or not;
    a forgotten one costs a `moved`.
    """

    __slots__ = ("_limit", "_owners", "_queues")

    def __init__(self, remembered: int = REMEMBERED_OWNERS) -> None:
        self._limit = remembered
        self._queues: dict[str, deque[Ticket]] = {}
        self._owners: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queues)

    def enter(self, session: str, ticket: Ticket) -> bool:
        """Put `ticket` at the end; True if it is the first."""
        queue = self._queues.get(session)
        if queue is None:
            self._queues[session] = deque((ticket,))
            return True
        queue.append(ticket)
        return False

    def leave(self, session: str, ticket: Ticket) -> Ticket | None:
        """Take `ticket` out; returns the one that is first now and was not before."""
        queue = self._queues.get(session)
        if queue is None:
            return None
        if queue[0] is not ticket:
            if ticket in queue:
                queue.remove(ticket)
            return None
        queue.popleft()
        if queue:
            return queue[0]
        del self._queues[session]
        return None

    def first(self, session: str) -> Ticket | None:
        queue = self._queues.get(session)
        return queue[0] if queue else None

    def owner(self, session: str) -> str | None:
        return self._owners.get(session)

    def own(self, session: str, worker_id: str) -> None:
        owners = self._owners
        owners[session] = worker_id
        owners.move_to_end(session)
        if len(owners) > self._limit:
            owners.popitem(last=False)

    def disown(self, session: str, worker_id: str) -> None:
        """Forget that `worker_id` owns it, if it does."""
        if self._owners.get(session) == worker_id:
            del self._owners[session]


PAUSE_S = 1.0
"""Between two requests for the same session."""
PATIENCE_S = 5.0
"""After this time no answer comes any more."""


class _Request(Struct):
    worker: str
    sent_at: float
    open: bool = True

    @property
    def until(self) -> float:
        return self.sent_at + (PATIENCE_S if self.open else PAUSE_S)


class Handovers:
    """The requests that still matter: unanswered, or made less than a pause ago."""

    __slots__ = ("_requests", "open")

    def __init__(self) -> None:
        self._requests: dict[str, _Request] = {}
        """By session, in the order in which they were made."""
        self.open = 0
        """How many are unanswered."""

    def __len__(self) -> int:
        return len(self._requests)

    def ask(self, session: str, worker_id: str, now: float) -> float:
        """-inf, and the request counts as made; or the time from which on it may be made."""
        request = self._requests.get(session)
        if request is not None:
            if now < request.until:
                return request.until
            self._forget(session)
        self._requests[session] = _Request(worker_id, now)
        self.open += 1
        return -math.inf

    def answer(self, session: str, worker_id: str) -> bool:
        """False if this worker was not asked, or too long ago."""
        request = self._requests.get(session)
        if request is None or not request.open or request.worker != worker_id:
            return False
        request.open = False
        self.open -= 1
        return True

    def forget_worker(self, worker_id: str) -> None:
        """The worker cannot answer any more. The pause holds, whoever owns the session next."""
        for request in self._requests.values():
            if request.worker == worker_id and request.open:
                request.open = False
                self.open -= 1

    def expire(self, now: float) -> None:
        """Forget what no longer matters, except behind a slow answer: `ask` checks the time of each."""
        while self._requests:
            session, request = next(iter(self._requests.items()))
            if now < request.until:
                return
            self._forget(session)

    def next_expiry(self) -> float:
        """When `expire` has something to do; inf if never."""
        return next(iter(self._requests.values())).until if self._requests else math.inf

    def _forget(self, session: str) -> None:
        self.open -= self._requests.pop(session).open
