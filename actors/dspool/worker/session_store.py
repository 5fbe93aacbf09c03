"""What a worker needs of the session store, and how long it waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from dspool.errors import StoreFailed
from dspool.messages import JSON, Change, Lease, StorageLimits

STORE_PATIENCE_S = 10.0
"""After this time without an answer the store counts as failed: a slot must not wait for it for ever."""


class Store(Protocol):
    """What a worker needs of the session store; see `store.SessionStore`."""

    async def acquire(
        self,
        pool: str,
        session: str,
        worker: str,
        *,
        create: bool,
        principal: str | None = None,
        limits: StorageLimits | None = None,
    ) -> Lease: ...
    async def commit(
        self,
        pool: str,
        session: str,
        worker: str,
        epoch: int,
        changes: list[Change],
        *,
        principal: str | None = None,
        limits: StorageLimits | None = None,
    ) -> int: ...
    async def release(self, pool: str, worker: str, sessions: list[str]) -> None: ...
    async def touch(self, pool: str, worker: str, sessions: list[str]) -> None: ...
    async def end(self, pool: str, session: str, *, principal: str | None = None) -> bool: ...
    async def get_record(self, pool: str, key: str) -> JSON | None: ...


@asynccontextmanager
async def patience() -> AsyncIterator[None]:
    """Raises: StoreFailed: the block took longer than `STORE_PATIENCE_S`."""
    try:
        async with asyncio.timeout(STORE_PATIENCE_S):
            yield
    except TimeoutError:
        raise StoreFailed(f"the session store did not answer for {STORE_PATIENCE_S:g} s; try again") from None
