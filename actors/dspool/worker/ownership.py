"""The sessions of one worker: activation under a lease, one operation at a time, write-through, release.

A session costs one store call when it becomes active here and one for each mutation; an operation that
changes nothing costs none. A worker can rebuild a session from the store at any time, so it forgets the session
whenever something goes wrong with its lease or a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from dspool.core.admission.access import may_see_session, unknown_session
from dspool.core.admission.eviction import evicted_principal
from dspool.errors import (
    PayloadTooLarge,
    PoolError,
    QuotaExceeded,
    StaleLease,
    StoreFailed,
    TooManySessions,
)
from dspool.messages import CREATES_SESSION, Change
from dspool.worker.active_session import ActiveSession, rebuilt
from dspool.worker.execution import defect
from dspool.worker.session_store import Store, patience

if TYPE_CHECKING:
    from dspool.programs.sessions.host import Session, SessionHost
    from dspool.worker.execution import Execution


FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
"""Between two questions what a store has that failed."""


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
        size_limit: float | None,
        ttl_s: float,
        clock: Callable[[], float],
        start: Callable[[Execution, Session], None],
        moved: Callable[[Execution, str], None],
        refuse: Callable[[Execution, PoolError], None],
    ) -> None:
        self._pool, self._worker_id, self._store, self._host = pool, worker_id, store, host
        self._limit, self._size_limit, self.ttl_s, self._clock = limit, size_limit, ttl_s, clock
        self._size = 0
        self._start, self._moved, self._refuse = start, moved, refuse
        self._active: OrderedDict[str, ActiveSession] = OrderedDict()
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
            principal = execution.operation.principal
            if len(self._active) >= self._limit and not self._evict_for(principal, lambda active: 1, 1):
                self._refuse(
                    execution,
                    TooManySessions(
                        f"this worker serves {self._limit} sessions, and none of yours, or of who has more, is idle; "
                        "raise max_sessions_per_worker",
                        retry_after_s=1.0,
                    ),
                )
                return
            active = self._active[session_id] = ActiveSession(session_id, principal)
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
                self._weigh(active)
        elif execution in active.queue:
            active.queue.remove(execution)

    def _next(self, active: ActiveSession) -> None:
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

    async def _activate(self, active: ActiveSession) -> None:
        while active.queue:
            execution = active.queue[0]
            operation = execution.operation
            try:
                while (release := self._releases.get(active.id)) is not None:
                    # Otherwise the store could grant the lease first and take it back afterwards.
                    await release.wait()
                async with patience():
                    lease = await self._store.acquire(
                        self._pool,
                        active.id,
                        self._worker_id,
                        create=type(operation.command) in CREATES_SESSION,
                        principal=operation.principal,
                        limits=operation.limits,
                    )
                if not lease.granted:
                    self._forget(active)
                    for execution in list(active.queue):
                        self._moved(execution, lease.owner)
                    return
                active.session = rebuilt(
                    lease, self._host, pool=self._pool, worker=self._worker_id, clock=self._clock
                )
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
            active.epoch, active.principal, active.stored = lease.epoch, lease.principal, lease.size
            active.last_used = self._clock()
            self._next(active)
            self._weigh(active)
            return
        self._forget(active)

    # --- durability ---

    async def commit(self, execution: Execution, changes: Iterable[Change]) -> None:
        """Make the changes of `execution`, which runs, durable.

        Raises:
            PayloadTooLarge, QuotaExceeded: they are not, and the session is as before.
            PoolError: they are not, or nobody knows; the session leaves this worker, its next operation rebuilds it.
        """
        operation = execution.operation
        active = self._active.get(execution.operation.session or "")
        if active is None or active.current is not execution or active.outdated:
            raise StaleLease(
                f"session {execution.operation.session!r} was ended or left this worker before its change was saved",
                session=execution.operation.session,
            )
        if active.in_doubt:
            await self._end_doubt(active)
        try:
            async with patience():
                active.stored = await self._store.commit(
                    self._pool,
                    active.id,
                    self._worker_id,
                    active.epoch,
                    list(changes),
                    principal=operation.principal,
                    limits=operation.limits,
                )
        except (PayloadTooLarge, QuotaExceeded):
            # Without this, whoever is refused again and again would make us read the whole session each time.
            active.outdated = not active.undo()
            raise
        except StoreFailed:
            if not active.undo():
                active.outdated = True
            elif not active.in_doubt:
                # Else an outage of the store would end each session at its first change: it could not be rebuilt.
                active.in_doubt = True
                self._background(self._ask_until_known(active))
            raise
        except BaseException:
            active.outdated = True
            raise
        if active.session is not None:
            active.session.forget_mark()  # which holds what was deleted

    async def _end_doubt(self, active: ActiveSession) -> NoReturn:
        """Raises: StaleLease: it is known what the store has, and the operation is to run on that.
        StoreFailed: it is not, and the session is as before."""
        try:
            await self._ask_again(active)
        except StoreFailed:
            active.outdated = not active.undo()
            raise
        raise StaleLease(f"session {active.id!r} is read from the store anew", session=active.id)

    async def _ask_until_known(self, active: ActiveSession) -> None:
        pause_s = FIRST_PAUSE_S
        while active.in_doubt and self._active.get(active.id) is active:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            with contextlib.suppress(StoreFailed):
                await self._ask_again(active)
        if active.outdated and active.current is None and self._active.get(active.id) is active:
            self._abandon(active)

    async def _ask_again(self, active: ActiveSession) -> None:
        """The session is to be rebuilt, unless the store fails again."""
        try:
            async with patience():
                await self._store.acquire(
                    self._pool, active.id, self._worker_id, create=False, principal=active.principal
                )
        except StoreFailed:
            raise
        except PoolError:
            pass  # it is another's, or has ended: the next operation hears it
        active.in_doubt, active.outdated = False, True

    async def end(self, execution: Execution) -> bool:
        """End the session of `execution`, which runs, durably; False when it was not there any more."""
        active = self._active.get(execution.operation.session or "")
        if active is not None and active.current is execution:
            # Even if the store fails: nobody knows then what it did.
            active.outdated = True
        async with patience():
            return await self._store.end(
                self._pool, execution.operation.session or "", principal=execution.operation.principal
            )

    def _abandon(self, active: ActiveSession) -> None:
        """Forget the session, of which nothing runs; what waits goes through a fresh activation."""
        self._forget(active)
        executions, active.queue = list(active.queue), deque()
        for execution in executions:
            self.enter(execution)

    # --- release ---

    def _weigh(self, active: ActiveSession) -> None:
        """Count what the session takes now; others leave if that is too much."""
        if self._active.get(active.id) is not active or active.session is None:
            return
        size = active.stored + active.session.extra_bytes
        self._size += size - active.size
        active.size = size
        while self._size_limit is not None and self._size > self._size_limit:
            if not self._evict_for(active.principal, lambda active: active.size, 0):
                return

    def _evict_for(self, principal: str | None, weight: Callable[[ActiveSession], int], coming: int) -> bool:
        """Give one idle session back to make room for `coming` more of `principal`; False if there is none to give."""
        held: Counter[str | None] = Counter({principal: coming})
        idle: dict[str | None, ActiveSession] = {}
        for active in self._active.values():  # the one used longest ago first
            held[active.principal] += weight(active)
            if active.idle:
                idle.setdefault(active.principal, active)
        victim = evicted_principal(held, idle, principal)
        if victim is False:
            return False
        self._background(self._give_back([idle[victim]]))
        return True

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
                if active.idle and now - active.last_used > self.ttl_s
            ]
        )
        used, self._used = self._used, set()
        if used:
            try:
                await self._store.touch(self._pool, self._worker_id, sorted(used))
            except BaseException:
                self._used |= used
                raise

    def _give_back(self, actives: list[ActiveSession]) -> Coroutine[Any, Any, None]:
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
                async with patience():
                    await self._store.release(self._pool, self._worker_id, ids)
        except Exception as failed:
            # The leases stay ours until this worker is certainly gone; the next operation activates them again.
            if not isinstance(failed, PoolError):
                defect(failed)
        finally:
            for session_id in ids:
                del self._releases[session_id]
            released.set()

    def _forget(self, active: ActiveSession) -> None:
        if self._active.get(active.id) is active:
            del self._active[active.id]
            self._size -= active.size

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
