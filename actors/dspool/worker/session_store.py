"""What a worker needs of the session store, and how long it waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
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


_patience: ContextVar[asyncio.Timeout | None] = ContextVar("_patience", default=None)


@asynccontextmanager
async def patience() -> AsyncIterator[None]:
    """Raises: StoreFailed: the block took longer than `STORE_PATIENCE_S`, besides what it spent `unhurried`."""
    try:
        async with asyncio.timeout(STORE_PATIENCE_S) as limit:
            before = _patience.set(limit)
            try:
                yield
            finally:
                _patience.reset(before)
    except TimeoutError:
        raise StoreFailed(f"the session store did not answer for {STORE_PATIENCE_S:g} s; try again") from None


@asynccontextmanager
async def unhurried(longest_s: float) -> AsyncIterator[None]:
    """The block, at most `longest_s` of it, does not count for the `patience` around it, if there is one."""
    limit, now = _patience.get(), asyncio.get_running_loop().time
    if limit is None or (end := limit.when()) is None:
        yield
        return
    began = now()
    limit.reschedule(end + longest_s)
    try:
        yield
    finally:
        if not limit.expired():
            limit.reschedule(end + min(longest_s, now() - began))
