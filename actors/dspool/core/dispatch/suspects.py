"""Which requests kill workers: remembered, so that one that is sent again and again does not end one after another.

A death names nobody: all that ran on the worker is suspect. At each further death only what was on most dead workers
becomes more so, and what a worker survives is cleared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import msgspec

from dspool.messages import Operation

_MOST = 1024
"""Requests in memory, about 100 bytes each; the oldest goes first."""
_encode = msgspec.msgpack.Encoder().encode


def key_of(operation: Operation) -> bytes:
    """The same for the same request: program, version and inputs, the session that it is for, and who asks: nobody has
    another's request refused by sending it beside one that kills."""
    request = (operation.command, operation.session, operation.principal)
    return hashlib.blake2b(_encode(request), digest_size=16).digest()


class Suspects:
    """A request that was on `deaths` dead workers in a row is refused for `refuse_s` seconds; with 0 none ever is."""

    __slots__ = ("_deaths", "_known", "_refuse_s")

    def __init__(self, deaths: int, refuse_s: float) -> None:
        self._deaths, self._refuse_s = deaths, refuse_s
        self._known: dict[bytes, tuple[int, float]] = {}
        """By key: on how many dead workers it was, and when the last one died."""

    def __bool__(self) -> bool:
        return bool(self._known)

    def died(self, keys: Collection[bytes], now: float) -> None:
        """A worker died while it held these."""
        if not self._refuse_s:
            return
        most = max((self._count(key, now) for key in keys), default=0)
        for key in keys:
            if (count := self._count(key, now)) == most:
                self._known.pop(key, None)
                self._known[key] = (count + 1, now)
        while len(self._known) > _MOST:
            del self._known[next(iter(self._known))]

    def survived(self, key: bytes) -> None:
        """A worker told its end: it is none of those that kill."""
        self._known.pop(key, None)

    def clear(self) -> None:
        self._known.clear()

    def refused_until(self, key: bytes, now: float) -> float | None:
        """Until when it is refused; None: it is not."""
        count = self._count(key, now)
        return self._known[key][1] + self._refuse_s if count >= self._deaths else None

    def _count(self, key: bytes, now: float) -> int:
        count, last_at = self._known.get(key, (0, now))
        if last_at + self._refuse_s <= now:
            self._known.pop(key, None)
            return 0
        return count
