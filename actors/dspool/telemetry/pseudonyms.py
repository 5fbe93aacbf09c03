"""What stands for sessions and principals in events, logs, metrics and spans: their names may name people.

Each is a MAC under a key of the pool, so that nobody who reads them finds out a name by trying names. The key is
random and lives with the pool's other records in its store, so a session keeps its pseudonym over restarts. Only
processes of the pool know it: they read it once, when they start.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dspool.errors import PoolError
from dspool.messages import JSON

RECORD = "pseudonym_key"
"""The pool's record with the key, in hex. Whoever removes it while the pool is stopped begins with new pseudonyms."""
_KEY_BYTES = 32
_SIZE = 16
_PATIENCE_S = 10.0
_NONCE_BYTES = 12
_CACHED = 4096

_keys: dict[str, bytes] = {}
"""By pool."""
_own_key = secrets.token_bytes(_KEY_BYTES)
"""Until the pool's own is known: such pseudonyms fit no other process's, but tell nobody anything."""

GetRecord = Callable[[str, str], Awaitable[JSON | None]]
PutRecord = Callable[[str, str, JSON], Awaitable[None]]


def session_hash(session: str, pool: str) -> str:
    """Stands for the id of a session of `pool`."""
    return _mac(_key(pool), session, b"session")


def principal_hash(principal: str, pool: str) -> str:
    """Stands for a principal in records and beside captured content; decides who may read that."""
    return _mac(_key(pool), principal, b"principal"[:8])


def sealed(name: str, pool: str) -> str:
    """The name, for processes of the pool alone to read: for records on disk that admins may see with names."""
    return _seal(_key(pool), name)


def unsealed(text: str, pool: str) -> str | None:
    """The name that `sealed` made `text` of; None: under another key."""
    return _unseal(_key(pool), text)


def _key(pool: str) -> bytes:
    return _keys.get(pool, _own_key)


@lru_cache(_CACHED)
def _mac(key: bytes, name: str, kind: bytes) -> str:
    return hashlib.blake2s(name.encode(), key=key, person=kind, digest_size=_SIZE).hexdigest()


@lru_cache(_CACHED)
def _seal(key: bytes, name: str) -> str:
    # The nonce is of the name: the same name is the same text again, and no nonce serves for two names.
    nonce = hashlib.blake2s(name.encode(), key=key, person=b"nonce", digest_size=_NONCE_BYTES).digest()
    return base64.b85encode(nonce + _cipher(key).encrypt(nonce, name.encode(), None)).decode()


@lru_cache(_CACHED)
def _unseal(key: bytes, text: str) -> str | None:
    try:
        data = base64.b85decode(text)
        return _cipher(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None).decode()
    except (ValueError, InvalidTag):
        return None


@lru_cache(64)
def _cipher(key: bytes) -> AESGCM:
    return AESGCM(hashlib.blake2s(b"", key=key, person=b"seal").digest())


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
