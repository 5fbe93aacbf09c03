"""The sessions of one worker: activation under a lease, one operation at a time, write-through, release.

A session costs one store call when it becomes active here and one for each mutation; an operation that
changes nothing costs none. A worker can rebuild a session from the store at any time, so it forgets the session
whenever something goes wrong with its lease or a commit.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from dspool.core.admission.access import may_see_session, unknown_session
from dspool.errors import PoolError, StaleLease, StoreFailed, TooManySessions
from dspool.messages import CREATES_SESSION, Change, Lease
from dspool.telemetry.events import emit, session_hash
from dspool.worker.execution import defect

if TYPE_CHECKING:
    from dspool.programs.sessions.host import Session, SessionHost
    from dspool.worker.execution import Execution


STORE_PATIENCE_S = 10.0
"""After this time without an answer the store counts as failed: a slot must not wait for it for ever."""


class Store(Protocol):
    """What a worker needs of the session store; see `store.SessionStore`."""

    async def acquire(
        self, pool: str, session: str, worker: str, *, create: bool, principal: str | None = None
    ) -> Lease: ...
    async def commit(
        self, pool: str, session: str, worker: str, epoch: int, changes: list[Change]
    ) -> None: ...
    async def release(self, pool: str, worker: str, sessions: list[str]) -> None: ...
    async def touch(self, pool: str, worker: str, sessions: list[str]) -> None: ...
    async def end(self, pool: str, session: str, *, principal: str | None = None) -> bool: ...


class _ActiveSession:
    """One session here: `queue` waits in order, `current` runs. `session` is None until the store has granted it.

    `outdated`: the memory may differ from the store; the next operation rebuilds it once `current` has ended.
    """

    __slots__ = ("advancing", "current", "epoch", "id", "last_used", "outdated", "queue", "session")

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self.session: Session | None = None
        self.epoch = 0
        self.current: Execution | None = None
        self.queue: deque[Execution] = deque()
        self.last_used = 0.0
        self.outdated = False
        self.advancing = False

    @property
    def idle(self) -> bool:
        return self.session is not None and self.current is None and not self.queue


class Ownership:
    """`start` runs an operation on its session, `moved` and `refuse` end one that cannot run here."""

    def __init__(
        self,
        *,
        pool: str,
        worker_id: str,
        store: Store,
        host: SessionHost,
        limit: int,
        ttl_s: float,
        clock: Callable[[], float],
        start: Callable[[Execution, Session], None],
        moved: Callable[[Execution, str], None],
        refuse: Callable[[Execution, PoolError], None],
    ) -> None:
        self._pool, self._worker_id, self._store, self._host = pool, worker_id, store, host
        self._limit, self._ttl_s, self._clock = limit, ttl_s, clock
        self._start, self._moved, self._refuse = start, moved, refuse
        self._active: OrderedDict[str, _ActiveSession] = OrderedDict()
        self._used: set[str] = set()
        self._releases: dict[str, asyncio.Event] = {}
        """Sessions whose lease is on its way back to the store."""
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._active)

    # --- operations come and go ---

    def enter(self, execution: Execution) -> None:
        """Start `execution` now, or when its session is active and free."""
        session_id = execution.operation.session
        assert session_id is not None
        active = self._active.get(session_id)
        if active is None:
            if len(self._active) >= self._limit and not self._evict_one():
                self._refuse(
                    execution,
                    TooManySessions(
                        f"this worker serves {self._limit} sessions, all busy; raise max_sessions_per_worker",
                        retry_after_s=1.0,
                    ),
                )
                return
            active = self._active[session_id] = _ActiveSession(session_id)
            active.queue.append(execution)
            self._background(self._activate(active))
            return
        active.queue.append(execution)
        if active.session is not None:
            self._next(active)

    def leave(self, execution: Execution) -> None:
        """`execution` has ended, or never starts: the next of its session may go."""
        active = self._active.get(execution.operation.session or "")
        if active is None:
            return
        if active.current is execution:
            active.current = None
            active.last_used = self._clock()
            if active.outdated:
                self._abandon(active)
            else:
                self._next(active)
        elif execution in active.queue:
            active.queue.remove(execution)

    def _next(self, active: _ActiveSession) -> None:
        if active.advancing:
            return  # an operation that ends as it starts comes back here: the loop below goes on without recursion
        active.advancing = True
        try:
            while active.queue and active.current is None and not active.outdated:
                execution = active.queue.popleft()
                assert active.session is not None
                if not may_see_session(active.session.principal, execution.operation.principal):
                    self._refuse(execution, unknown_session(self._pool, active.id))
                    continue
                active.current = execution
                active.last_used = self._clock()
                self._used.add(active.id)
                self._active.move_to_end(active.id)
                self._start(execution, active.session)
        finally:
            active.advancing = False

    async def _activate(self, active: _ActiveSession) -> None:
        while active.queue:
            execution = active.queue[0]
            operation = execution.operation
            try:
                while (release := self._releases.get(active.id)) is not None:
                    # Otherwise the store could grant the lease first and take it back afterwards.
                    await release.wait()
                async with _patience():
                    lease = await self._store.acquire(
                        self._pool,
                        active.id,
                        self._worker_id,
                        create=type(operation.command) in CREATES_SESSION,
                        principal=operation.principal,
                    )
                if not lease.granted:
                    self._forget(active)
                    for execution in list(active.queue):
                        self._moved(execution, lease.owner)
                    return
                active.session = self._rebuild(lease)
            except StaleLease:
                # The store takes this worker for dead; the clients hear of another.
                self._forget(active)
                for execution in list(active.queue):
                    self._moved(execution, "")
                return
            except Exception as failed:
                # Only the first fails: the next may be the one that creates the session.
                error = failed if isinstance(failed, PoolError) else defect(failed)
                if active.queue and active.queue[0] is execution:
                    active.queue.popleft()
                    self._refuse(execution, error)
                continue
            active.epoch = lease.epoch
            active.last_used = self._clock()
            self._next(active)
            return
        self._forget(active)

    def _rebuild(self, lease: Lease) -> Session:
        from dspool.programs.sessions.host import Session

        started_at = self._clock()
        names = {
            "pool": self._pool,
            "session_hash": session_hash(lease.session),
            "worker": self._worker_id,
        }
        try:
            session = Session.rebuild(self._host, lease.session, lease.items, lease.principal)
        except Exception as failed:
            code = failed.code if isinstance(failed, PoolError) else type(failed).__name__
            emit("session.lost", {"count": 1}, {**names, "code": code})
            raise
        if lease.created:
            emit("session.created", {}, names)
        elif lease.previous != self._worker_id:
            emit(
                "session.moved",
                {"duration_s": self._clock() - started_at, "items": len(lease.items)},
                {**names, "from_worker": lease.previous, "reason": "its lease was free"},
            )
        return session

    # --- durability ---

    async def commit(self, execution: Execution, changes: Iterable[Change]) -> None:
        """Make the changes of `execution`, which runs, durable.

        Raises:
            PoolError: they are not, or nobody knows; the session leaves this worker, its next operation rebuilds it.
        """
        active = self._active.get(execution.operation.session or "")
        if active is None or active.current is not execution or active.outdated:
            raise StaleLease(
                f"session {execution.operation.session!r} was ended or left this worker before its change was saved",
                session=execution.operation.session,
            )
        try:
            async with _patience():
                await self._store.commit(self._pool, active.id, self._worker_id, active.epoch, list(changes))
        except BaseException:
            active.outdated = True
            raise

    async def end(self, execution: Execution) -> bool:
        """End the session of `execution`, which runs, durably; False when it was not there any more."""
        active = self._active.get(execution.operation.session or "")
        if active is not None and active.current is execution:
            # Even if the store fails: nobody knows then what it did.
            active.outdated = True
        async with _patience():
            return await self._store.end(
                self._pool, execution.operation.session or "", principal=execution.operation.principal
            )

    def _abandon(self, active: _ActiveSession) -> None:
        """Forget the session, of which nothing runs; what waits goes through a fresh activation."""
        self._forget(active)
        executions, active.queue = list(active.queue), deque()
        for execution in executions:
            self.enter(execution)

    # --- release ---

    def _evict_one(self) -> bool:
        for active in self._active.values():
            if active.idle:
                self._background(self._give_back([active]))
                return True
        return False

    async def release_idle(self) -> int:
        """Give back every session in which nothing runs or waits; returns how many remain."""
        await self._give_back([active for active in self._active.values() if active.idle])
        return len(self._active)

    async def release(self, session_id: str) -> bool:
        """Give back one session if nothing of it runs or waits here; returns whether it is free now."""
        active = self._active.get(session_id)
        if active is not None:
            if not active.idle:
                return False
            await self._give_back([active])
        elif (release := self._releases.get(session_id)) is not None:
            await release.wait()
        return session_id not in self._active

    def forget(self, sessions: Iterable[str]) -> None:
        """Drop sessions that ended elsewhere from memory; what runs finishes, but its changes are refused."""
        for session_id in sessions:
            active = self._active.get(session_id)
            if active is None or active.session is None:
                continue
            if active.current is None:
                self._abandon(active)
            else:
                active.outdated = True

    async def tidy(self) -> None:
        """Tell the store which sessions were used lately, and give back those idle for `session_ttl_s`.

        Raises:
            PoolError: the store failed; the next call tells it again.
        """
        now = self._clock()
        await self._give_back(
            [
                active
                for active in self._active.values()
                if active.idle and now - active.last_used > self._ttl_s
            ]
        )
        used, self._used = self._used, set()
        if used:
            try:
                await self._store.touch(self._pool, self._worker_id, sorted(used))
            except BaseException:
                self._used |= used
                raise

    def _give_back(self, actives: list[_ActiveSession]) -> Coroutine[Any, Any, None]:
        """Forget them now; the coroutine gives their leases back."""
        ids = [active.id for active in actives]
        released = asyncio.Event()
        for active in actives:
            self._forget(active)
            self._releases[active.id] = released
        return self._release(ids, released)

    async def _release(self, ids: list[str], released: asyncio.Event) -> None:
        try:
            if ids:
                async with _patience():
                    await self._store.release(self._pool, self._worker_id, ids)
        except Exception as failed:
            # The leases stay ours until this worker is certainly gone; the next operation activates them again.
            if not isinstance(failed, PoolError):
                defect(failed)
        finally:
            for session_id in ids:
                del self._releases[session_id]
            released.set()

    def _forget(self, active: _ActiveSession) -> None:
        if self._active.get(active.id) is active:
            del self._active[active.id]

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(STORE_PATIENCE_S):
            yield
    except TimeoutError:
        raise StoreFailed(f"the session store did not answer for {STORE_PATIENCE_S:g} s; try again") from None
