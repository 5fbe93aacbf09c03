"""One session in the memory of a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dspool.errors import PoolError
from dspool.messages import Lease
from dspool.telemetry.events import emit
from dspool.telemetry.pseudonyms import session_hash

if TYPE_CHECKING:
    from dspool.programs.sessions.host import Session, SessionHost
    from dspool.worker.execution import Execution


class ActiveSession:
    """One session here: `queue` waits in order, `current` runs. `session` is None until the store has granted it.

    `outdated`: the memory may differ from the store; the next operation rebuilds it once `current` has ended.
    `in_doubt`: a change failed with the store, which may have it all the same; the memory is as before that change.
    What changes nothing goes on; what does change something waits until the store has said what it has.
    `stored` is its size in the store, `size` what it counts here, with what is in memory alone.
    """

    __slots__ = (
        "advancing",
        "current",
        "epoch",
        "id",
        "in_doubt",
        "last_used",
        "outdated",
        "principal",
        "queue",
        "session",
        "size",
        "stored",
    )

    def __init__(self, session_id: str, principal: str | None) -> None:
        self.id = session_id
        self.principal = principal
        self.size = self.stored = 0
        self.session: Session | None = None
        self.epoch = 0
        self.current: Execution | None = None
        self.queue: deque[Execution] = deque()
        self.last_used = 0.0
        self.outdated = False
        self.in_doubt = False
        self.advancing = False

    def undo(self) -> bool:
        """Forget what the operation changed in memory; False if that cannot be done."""
        return self.session is not None and self.session.undo()

    @property
    def idle(self) -> bool:
        return self.session is not None and self.current is None and not self.queue


def rebuilt(
    lease: Lease, host: SessionHost, *, pool: str, worker: str, clock: Callable[[], float]
) -> Session:
    """The session as the store has it. Raises what its programs raise when they are made."""
    from dspool.programs.sessions.host import Session

    started_at = clock()
    names = {"pool": pool, "session_hash": session_hash(lease.session, pool), "worker": worker}
    try:
        session = Session.rebuild(host, lease.session, lease.items, lease.principal)
    except Exception as failed:
        code = failed.code if isinstance(failed, PoolError) else type(failed).__name__
        emit("session.lost", {"count": 1}, {**names, "code": code})
        raise
    if lease.created:
        emit("session.created", {}, names)
    elif lease.previous != worker:
        emit(
            "session.moved",
            {"duration_s": clock() - started_at, "items": len(lease.items)},
            {**names, "from_worker": lease.previous, "reason": "its lease was free"},
        )
    return session
