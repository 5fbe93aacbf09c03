"""A pool's store: sessions, versions of programs, idempotency keys, and used allowances."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from dspool.core.admission.rates import Allowance, RateLimits
from dspool.core.admission.silences import AlertSilence, Silences
from dspool.core.lifecycle.source import import_paths, source_record
from dspool.messages import JSON, Deployment, SessionInfo, StorageLimits, StoredUsage, StoreStatus
from dspool.store.idempotency import Claim, KeptAnswer
from dspool.store.logins import RECORD as ENDED_LOGINS
from dspool.store.logins import Ended
from dspool.store.silences import RECORD as SILENCES
from dspool.store.store import SessionStore


class Storage:
    """The part of `Pool` that asks its store. Methods raise `StoreFailed` while that cannot be reached."""

    name: str

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._sources: dict[tuple[str, int], dict[str, str]] = {}

    # --- sessions ---

    async def create_session(
        self, session_id: str, *, principal: str | None = None, limits: StorageLimits | None = None
    ) -> SessionInfo:
        """Create an empty session. `limits` are those of the principal, before the configured ones.

        Raises:
            Conflict: there is one of this id.
            QuotaExceeded: it would be one too many.
        """
        return await self._store.create(self.name, session_id, principal=principal, limits=limits)

    async def store_status(self) -> StoreStatus:
        """Where the sessions are kept, and by which process."""
        return await self._store.describe(self.name)

    async def storage_usage(self) -> tuple[StoredUsage, list[StoredUsage]]:
        """What is kept in all, and of each principal by name."""
        return await self._store.usage(self.name)

    async def sessions(
        self,
        *,
        limit: int = 100,
        after: str | None = None,
        principal: str | None = None,
        owner: str | None = None,
        containing: str = "",
    ) -> tuple[list[SessionInfo], str | None]:
        """A page of sessions by id, and the cursor of the next page.

        Only those of `principal`, only those that the worker `owner` holds, only those whose id, owner or principal
        has `containing` in it.
        """
        return await self._store.list(
            self.name, limit=limit, after=after, principal=principal, owner=owner, containing=containing
        )

    async def session_info(self, session_id: str) -> SessionInfo:
        """Raises: UnknownSession."""
        return await self._store.get(self.name, session_id)

    async def count_sessions(self) -> int:
        """The number of sessions."""
        return await self._store.count(self.name)

    # --- versions of pool programs ---

    async def deployments(self) -> list[Deployment]:
        """All versions of all pool programs, with the source that each is made of."""
        kept = await self._store.deployments(self.name)
        found = await asyncio.gather(*map(self._with_source, kept))
        self._sources = {(d.program, d.version): d.source for d in found if d.source is not None}
        return found

    async def _with_source(self, d: Deployment) -> Deployment:
        # Once known it stays: a version is never made of anything else.
        source: JSON | None = self._sources.get((d.program, d.version))
        if source is None and import_paths(d):
            source = await self._store.get_record(self.name, source_record(d))
        return msgspec.structs.replace(d, source=source)

    async def current_versions(self) -> dict[str, int]:
        """The current version of each pool program."""
        return await self._store.current_versions(self.name)

    # --- what all ingress processes share ---

    async def claim_key(self, key: str, **claim: Any) -> Claim:
        """Claim an idempotency key; see `dspool.store.idempotency`."""
        return await self._store.claim_key(self.name, key, **claim)

    async def settle_key(self, key: str, *, principal: str | None, holder: str, answer: KeptAnswer) -> None:
        """Keep the answer under the key."""
        await self._store.settle_key(self.name, key, principal=principal, holder=holder, answer=answer)

    async def drop_key(self, key: str, *, principal: str | None, holder: str) -> None:
        """Free the key: nothing was done under it."""
        await self._store.drop_key(self.name, key, principal=principal, holder=holder)

    async def end_login(self, token: str, login: str, until: float) -> Ended:
        """Keep that a login to the dashboard has ended; returns all that were ended."""
        return await self._store.end_login(self.name, token, login, until)

    async def ended_logins(self) -> Ended:
        """Logins to the dashboard that were ended before their time."""
        return msgspec.convert(await self._store.get_record(self.name, ENDED_LOGINS) or {}, Ended)

    async def silence_alert(self, alert: str, silence: AlertSilence | None) -> Silences:
        """Keep that an alert is silenced so, or not any more; returns all that are."""
        return await self._store.silence_alert(self.name, alert, silence)

    async def silences(self) -> Silences:
        """The alerts that somebody has silenced, some of which may be over."""
        return msgspec.convert(await self._store.get_record(self.name, SILENCES) or {}, Silences)

    async def take_allowance(self, token: str, limits: RateLimits, wanted: int) -> Allowance:
        """Up to `wanted` operations of a token, counted over all ingress processes."""
        return await self._store.take_allowance(self.name, token, limits, wanted)
