"""Pools as the holder of one token sees them: its own sessions, under its own names, and its share of the room.

A session `s` of the principal `ada` is stored as `ada/s` and shown as `s`. Principals have no slash in their name, so
nobody can name, meet or take another's session by any choice of id; the store and the worker check the principal too.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextvars import ContextVar

import msgspec

from dspool.config import PoolConfig
from dspool.core.admission.access import Token
from dspool.core.admission.fair import Entry, Priority
from dspool.errors import InvalidRequest, PoolError, UnknownSession
from dspool.messages import AnyCommand, Result, SessionInfo, StreamEvent
from dspool.telemetry.refusals import Refusals
from dspool_serve.access.admission import Admission
from dspool_serve.pools import ClusterPool, Pools

MAX_ID = 200
"""What the pool takes as a session's id, the principal before it included."""

_prepaid: ContextVar[list[str] | None] = ContextVar("dspool_prepaid", default=None)
"""The token whose allowance this request has taken, until an operation of it goes with that."""

Admissions = dict[int, tuple[ClusterPool, Admission]]
"""By the pool's `id()`: one admission a pool, shared by all callers."""


class Caller:
    """The holder of one token, with one priority: `pool` gives a pool as they may use it."""

    def __init__(
        self, pools: Pools, token: Token, priority: Priority, admissions: Admissions, *, max_waiting: int
    ) -> None:
        self._pools = pools
        self._token = token
        self._priority: Priority = priority
        self._admissions = admissions
        self._max_waiting = max_waiting
        self._views: dict[str, CallerPool] = {}

    def pool(self, name: str) -> CallerPool:
        """Raises: UnknownPool."""
        pool = self._pools.get(name)
        view = self._views.get(name)
        if view is None or view.pool is not pool:
            view = self._views[name] = CallerPool(pool, self._token, self._priority, self._admission(pool))
        return view

    def _admission(self, pool: ClusterPool) -> Admission:
        shared = self._admissions.get(id(pool))
        if shared is None or shared[0] is not pool:
            made = Admission(
                pool.room,
                max_waiting=self._max_waiting,
                shared=pool.take_allowance,
                refused=Refusals(pool.name).count,
            )
            shared = self._admissions[id(pool)] = (pool, made)
        return shared[1]


class CallerPool:
    """A pool for one caller: their operations take turns with others', their sessions are theirs alone."""

    def __init__(self, pool: ClusterPool, token: Token, priority: Priority, admission: Admission) -> None:
        self.pool = pool
        self.name = pool.name
        self._token = token
        self._priority: Priority = priority
        self._admission = admission
        self._prefix = f"{token.name}/"
        self._told = token.role == "admin" or tells_errors(pool.config)
        self.limits = token.storage

    async def begin(self) -> None:
        """A request that changes something begins; its first operation is counted with it.

        Raises:
            RateLimited: it is one too many.
        """
        if self._token.limited:
            await self._admission.allow(self._token)
            _prepaid.set([self._token.id])

    async def _count(self) -> None:
        """One more operation of a limited token. Raises: RateLimited."""
        prepaid = _prepaid.get()
        # Taken out of the list, which the tasks of a request share: only one operation goes with it.
        if prepaid and prepaid.pop() == self._token.id:
            return
        await self._admission.allow(self._token)

    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> Result:
        if self._token.limited:
            await self._count()
        entry = self._admission.arrive(self._token, self._priority)
        try:
            if not entry.admitted:
                timeout_s = await self._turn(entry, timeout_s)
            return await self.pool.run(
                command,
                session=self._stored(session),
                timeout_s=timeout_s,
                principal=self._token.name,
                traceparent=traceparent,
                limits=self.limits,
            )
        except PoolError as failed:
            raise self._shown_error(failed) from failed.__cause__
        finally:
            self._admission.leave(entry)

    async def stream(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> AsyncGenerator[StreamEvent | Result]:
        """A stream holds its place until it ends."""
        if self._token.limited:
            await self._count()
        entry = self._admission.arrive(self._token, self._priority)
        try:
            if not entry.admitted:
                timeout_s = await self._turn(entry, timeout_s)
            events = self.pool.stream(
                command,
                session=self._stored(session),
                timeout_s=timeout_s,
                principal=self._token.name,
                traceparent=traceparent,
                limits=self.limits,
            )
            try:
                async for event in events:
                    yield event
            finally:
                await events.aclose()
        except PoolError as failed:
            raise self._shown_error(failed) from failed.__cause__
        finally:
            self._admission.leave(entry)

    async def _turn(self, entry: Entry, timeout_s: float | None) -> float:
        left = self.pool.config.operation_timeout_s if timeout_s is None else timeout_s
        waited = await self._admission.wait(entry, left)
        return max(0.001, left - waited)

    # --- sessions ---

    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]:
        """One's own, by id. For an admin all of them; those of others as `principal/id`."""
        if self._token.role == "admin":
            found, following = await self.pool.sessions(limit=limit, after=after)
            return [self._shown(info) for info in found], following
        # Ids are in order, so one's own are a range.
        found, following = await self.pool.sessions(limit=limit, after=self._prefix + (after or ""))
        own = [self._shown(info) for info in found if info.id.startswith(self._prefix)]
        more = following is not None and following.startswith(self._prefix)
        return own, following.removeprefix(self._prefix) if more and following is not None else None

    async def create_session(self, session_id: str) -> SessionInfo:
        stored = self._named(session_id)
        try:
            return self._shown(
                await self.pool.create_session(stored, principal=self._token.name, limits=self.limits)
            )
        except PoolError as failed:
            raise self._shown_error(failed) from failed.__cause__

    async def session_info(self, session_id: str) -> SessionInfo:
        return self._shown(await self.pool.session_info(await self._meant(session_id)))

    async def end_session(self, session_id: str) -> None:
        try:
            await self.pool.end_session(await self._meant(session_id))
        except PoolError as failed:
            raise self._shown_error(failed) from failed.__cause__

    async def _meant(self, id: str) -> str:
        """The stored id. An admin may also mean another's session, as the list shows it."""
        stored = self._named(id)
        candidates = [stored, id] if self._token.role == "admin" and "/" in id else [stored]
        for candidate in candidates:
            try:
                info = await self.pool.session_info(candidate)
            except UnknownSession:
                continue
            # Also guards what was stored before there were tokens: it belongs to nobody but admins.
            if self._token.role == "admin" or info.principal == self._token.name:
                return candidate
        raise UnknownSession(f"there is no session {id!r}", session=id)

    def _stored(self, session: str | None) -> str | None:
        return None if session is None else self._named(session)

    def _named(self, id: str) -> str:
        if not 0 < len(id) <= MAX_ID - len(self._prefix):
            raise InvalidRequest(
                f"a session id of yours has 1 to {MAX_ID - len(self._prefix)} characters, got {len(id)}"
            )
        return self._prefix + id

    def _shown(self, info: SessionInfo) -> SessionInfo:
        if not info.id.startswith(self._prefix):
            return info
        return msgspec.structs.replace(info, id=info.id[len(self._prefix) :])

    def _shown_error(self, failed: PoolError) -> PoolError:
        """`failed` in the caller's words: the stored id is nobody's business, nor, perhaps, what a program says."""
        if not self._told and "text" in failed.details:
            details = {name: value for name, value in failed.details.items() if name != "text"}
            failed = type(failed)(failed.message, **details)
        session = failed.details.get("session")
        if not isinstance(session, str) or not session.startswith(self._prefix):
            if self._prefix not in failed.message:
                return failed
            return type(failed)(failed.message.replace(self._prefix, ""), **failed.details)
        shown = session[len(self._prefix) :]
        message = failed.message.replace(session, shown)
        return type(failed)(message, **(failed.details | {"session": shown}))


def tells_errors(config: PoolConfig) -> bool:
    """Whether callers learn what an exception of a program's own code says."""
    told, service = config.telemetry.error_messages, config.service
    # Behind a proxy a service on loopback has callers from elsewhere.
    local = service.host == "localhost" or service.host.startswith("127.") or service.host == "::1"
    return told == "always" or (told == "loopback" and local and not service.trusted_proxies)


__all__ = ["Admissions", "Caller", "CallerPool"]
