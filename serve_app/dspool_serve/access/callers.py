"""Pools as the holder of one token sees them: its own sessions, under its own names, and its share of the room.

A session `s` of the principal `ada` is stored as `ada/s` and shown as `s`. Principals have no slash in their name, so
nobody can name, meet or take another's session by any choice of id; the store and the worker check the principal too.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from dspool.core.admission.access import Token
from dspool.core.admission.fair import Priority
from dspool.errors import InvalidRequest, PoolError, UnknownSession
from dspool.messages import AnyCommand, SessionInfo, StreamEvent
from dspool_serve.access.admission import Admission
from dspool_serve.pools import Pools, ServedPool, ServedResult

_NO_BOUND = sys.maxsize
MAX_ID = 200
"""What the pool takes as a session's id, the principal before it included."""


class CallerPools:
    """`Pools` for one token and priority. `doors` is shared by all of them: one door a pool."""

    def __init__(
        self,
        pools: Pools,
        token: Token,
        priority: Priority,
        doors: dict[int, tuple[ServedPool, Admission]],
        *,
        max_waiting: int,
    ) -> None:
        self._pools = pools
        self._token = token
        self._priority: Priority = priority
        self._doors = doors
        self._max_waiting = max_waiting
        self._seen: dict[str, CallerPool] = {}

    async def open(self) -> None:
        await self._pools.open()

    async def close(self) -> None:
        await self._pools.close()

    def names(self) -> list[str]:
        return self._pools.names()

    def get(self, name: str) -> ServedPool:
        pool = self._pools.get(name)
        seen = self._seen.get(name)
        if seen is None or seen.inner is not pool:
            # One of several views of the pool makes the door; the others find it.
            door = self._doors.get(id(pool))
            if door is None or door[0] is not pool:
                room = getattr(pool, "room", None) or (lambda: _NO_BOUND)
                shared = getattr(pool, "take_allowance", None)
                door = self._doors[id(pool)] = (
                    pool,
                    Admission(room, max_waiting=self._max_waiting, shared=shared),
                )
            seen = self._seen[name] = CallerPool(pool, self._token, self._priority, door[1])
        view: ServedPool = seen
        return view


class CallerPool:
    """A `ServedPool` for one caller. What is not about operations or sessions goes through unchanged."""

    def __init__(self, inner: ServedPool, token: Token, priority: Priority, door: Admission) -> None:
        self.inner = inner
        self.name = inner.name
        self._token = token
        self._priority: Priority = priority
        self._door = door
        self._prefix = f"{token.name}/"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> ServedResult:
        if self._token.limited:
            await self._door.allow(self._token)
        entry = self._door.arrive(self._token, self._priority)
        try:
            if not entry.admitted:
                timeout_s = await self._turn(entry, timeout_s)
            return await self.inner.run(
                command,
                session=self._stored(session),
                timeout_s=timeout_s,
                principal=self._token.name,
                **options,
            )
        except PoolError as failed:
            raise self._shown_error(failed) from failed.__cause__
        finally:
            self._door.leave(entry)

    async def stream(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> AsyncGenerator[StreamEvent | ServedResult]:
        """A stream holds its place until it ends."""
        if self._token.limited:
            await self._door.allow(self._token)
        entry = self._door.arrive(self._token, self._priority)
        try:
            if not entry.admitted:
                timeout_s = await self._turn(entry, timeout_s)
            events = self.inner.stream(
                command,
                session=self._stored(session),
                timeout_s=timeout_s,
                principal=self._token.name,
                **options,
            )
            try:
                async for event in events:
                    yield event
            finally:
                await events.aclose()
        except PoolError as failed:
            raise self._shown_error(failed) from failed.__cause__
        finally:
            self._door.leave(entry)

    async def _turn(self, entry: Any, timeout_s: float | None) -> float:
        left = timeout_s if timeout_s is not None else self._longest_s
        waited = await self._door.wait(entry, left)
        return max(0.001, left - waited)

    @property
    def _longest_s(self) -> float:
        return float(getattr(self.inner, "operation_timeout_s", 30.0))

    # --- sessions ---

    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]:
        """One's own, by id. For an admin all of them; those of others as `principal/id`."""
        if self._token.role == "admin":
            found, following = await self.inner.sessions(limit=limit, after=after)
            return [self._shown(info) for info in found], following
        # Ids are in order, so one's own are a range.
        found, following = await self.inner.sessions(limit=limit, after=self._prefix + (after or ""))
        own = [self._shown(info) for info in found if info.id.startswith(self._prefix)]
        more = following is not None and following.startswith(self._prefix)
        return own, following.removeprefix(self._prefix) if more and following is not None else None

    async def create_session(self, id: str, *, principal: str | None = None) -> SessionInfo:
        try:
            return self._shown(await self.inner.create_session(self._named(id), principal=self._token.name))
        except PoolError as failed:
            raise self._shown_error(failed) from failed.__cause__

    async def session_info(self, id: str) -> SessionInfo:
        return self._shown(await self.inner.session_info(await self._meant(id)))

    async def end_session(self, id: str) -> None:
        try:
            await self.inner.end_session(await self._meant(id))
        except PoolError as failed:
            raise self._shown_error(failed) from failed.__cause__

    async def _meant(self, id: str) -> str:
        """The stored id. An admin may also mean another's session, as the list shows it."""
        stored = self._named(id)
        candidates = [stored, id] if self._token.role == "admin" and "/" in id else [stored]
        for candidate in candidates:
            try:
                info = await self.inner.session_info(candidate)
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
        """`failed` in the caller's words: the stored id is nobody's business."""
        session = failed.details.get("session")
        if not isinstance(session, str) or not session.startswith(self._prefix):
            if self._prefix not in failed.message:
                return failed
            return type(failed)(failed.message.replace(self._prefix, ""), **failed.details)
        shown = session[len(self._prefix) :]
        message = failed.message.replace(session, shown)
        return type(failed)(message, **(failed.details | {"session": shown}))


__all__ = ["CallerPool", "CallerPools"]
