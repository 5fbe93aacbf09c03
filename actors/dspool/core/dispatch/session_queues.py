"""Sessions as a client sees them: their operations in order, and who owns each."""

from __future__ import annotations

import math
from collections import OrderedDict, deque

from msgspec import Struct

from dspool.core.dispatch.ticket import Ticket

REMEMBERED_OWNERS = 100_000


class SessionQueues:
    """One line a session that has operations here; only the first in a line may be given to a worker.

    A ticket stays in line until no worker holds it, ended or not: that is what keeps a session
    to one operation at a time. Owners are remembered for the sessions used last, lines or not;
    a forgotten one costs a `moved`.
    """

    __slots__ = ("_limit", "_lines", "_owners")

    def __init__(self, remembered: int = REMEMBERED_OWNERS) -> None:
        self._limit = remembered
        self._lines: dict[str, deque[Ticket]] = {}
        self._owners: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lines)

    def enter(self, session: str, ticket: Ticket) -> bool:
        """Put `ticket` at the end; True if it is the first."""
        line = self._lines.get(session)
        if line is None:
            self._lines[session] = deque((ticket,))
            return True
        line.append(ticket)
        return False

    def leave(self, session: str, ticket: Ticket) -> Ticket | None:
        """Take `ticket` out; the one that is first now and was not before."""
        line = self._lines.get(session)
        if line is None:
            return None
        if line[0] is not ticket:
            if ticket in line:
                line.remove(ticket)
            return None
        line.popleft()
        if line:
            return line[0]
        del self._lines[session]
        return None

    def first(self, session: str) -> Ticket | None:
        line = self._lines.get(session)
        return line[0] if line else None

    def owner(self, session: str) -> str | None:
        return self._owners.get(session)

    def own(self, session: str, worker_id: str) -> None:
        owners = self._owners
        owners[session] = worker_id
        owners.move_to_end(session)
        if len(owners) > self._limit:
            owners.popitem(last=False)

    def disown(self, session: str, worker_id: str) -> None:
        """Forget that `worker_id` owns it, if that is what is remembered."""
        if self._owners.get(session) == worker_id:
            del self._owners[session]


PAUSE_S = 1.0
"""Between two requests for the same session."""
PATIENCE_S = 5.0
"""An answer that takes longer will not come."""


class _Request(Struct):
    worker: str
    asked_at: float
    open: bool = True

    @property
    def until(self) -> float:
        return self.asked_at + (PATIENCE_S if self.open else PAUSE_S)


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
        """-inf and the request counts as made, or the time from which on it may be."""
        request = self._requests.get(session)
        if request is not None:
            if now < request.until:
                return request.until
            self._forget(session)
        self._requests[session] = _Request(worker_id, now)
        self.open += 1
        return -math.inf

    def answered(self, session: str, worker_id: str) -> bool:
        """False if nothing was asked of this worker, or too long ago."""
        request = self._requests.get(session)
        if request is None or not request.open or request.worker != worker_id:
            return False
        request.open = False
        self.open -= 1
        return True

    def gone(self, worker_id: str) -> None:
        """The worker will not answer any more. The pause holds, whoever owns the session next."""
        for request in self._requests.values():
            if request.worker == worker_id and request.open:
                request.open = False
                self.open -= 1

    def expire(self, now: float) -> None:
        """Forget what no longer matters. What lies behind a slow answer waits for it: `ask` goes by its own time."""
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
