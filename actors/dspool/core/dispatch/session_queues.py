"""Sessions as a client sees them: their operations in order, and who owns each."""

from __future__ import annotations

from collections import OrderedDict, deque

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
