"""What stands for sessions and principals in events, logs, metrics and spans: their names may name people.

Each is a MAC under a key of the pool, so that nobody who reads them finds out a name by trying names. The key is
random and lives with the pool's other records in its store, so a session keeps its pseudonym over restarts. Only
processes of the pool know it: they read it once, when they start.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable

from dspool.errors import PoolError
from dspool.messages import JSON

RECORD = "pseudonym_key"
"""The pool's record with the key, in hex. Whoever removes it while the pool is stopped begins with new pseudonyms."""
_KEY_BYTES = 32
_SIZE = 16
_PATIENCE_S = 10.0

_keys: dict[str, bytes] = {}
"""By pool."""
_own_key = secrets.token_bytes(_KEY_BYTES)
"""Until the pool's own is known: such pseudonyms fit no other process's, but tell nobody anything."""

GetRecord = Callable[[str, str], Awaitable[JSON | None]]
PutRecord = Callable[[str, str, JSON], Awaitable[None]]


def session_hash(session: str, pool: str) -> str:
    """Stands for the id of a session of `pool`."""
    return _mac(pool, session, b"session")


def principal_hash(principal: str, pool: str) -> str:
    """Stands for a principal beside captured content; decides who may read that."""
    return _mac(pool, principal, b"principal")


def _mac(pool: str, name: str, kind: bytes) -> str:
    key = _keys.get(pool, _own_key)
    return hashlib.blake2s(name.encode(), key=key, person=kind[:8], digest_size=_SIZE).hexdigest()


async def make_key(pool: str, get: GetRecord, put: PutRecord) -> None:
    """Use the pool's key; makes it if there is none. For the supervisor, which starts before others ask.

    Raises:
        PoolError: the store failed.
    """
    if not await read_key(pool, get):
        await put(pool, RECORD, secrets.token_hex(_KEY_BYTES))
        await read_key(pool, get)


async def read_key(pool: str, get: GetRecord) -> bool:
    """Use the pool's key from here on; False if there is none yet. Raises: PoolError: the store failed."""
    text = await get(pool, RECORD)
    if not isinstance(text, str):
        return False
    _keys[pool] = bytes.fromhex(text)
    return True


async def try_read_key(pool: str, get: GetRecord) -> bool:
    """As `read_key`; a store that is away or hangs keeps nobody from starting."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await read_key(pool, get)
    except (PoolError, TimeoutError):
        return False
