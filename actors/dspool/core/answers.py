"""The answers that a pool's workers share, and the questions that one of them asks a model right now.

Bounded by bytes and age; the answers that were used longest ago go first. Keys and values are opaque bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Literal, NamedTuple

ENTRY_BYTES: Final = 200
"""What an entry takes besides its answer."""
SILENT_S: Final = 3.0
"""An asker that was not heard of for so long is gone: the next one asks."""


class CacheReply(NamedTuple):
    """`found`: here is the answer. `ask`: ask the model, and say how it ended. `wait`: somebody asks already."""

    kind: Literal["found", "ask", "wait"]
    answer: bytes = b""


class _StoredAnswer(NamedTuple):
    answer: bytes
    until: float


class _Asked(NamedTuple):
    asker: str
    heard_at: float


class Answers:
    """Decides; whoever uses it wakes those that wait."""

    def __init__(self, *, max_bytes: int, ttl_s: float) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._entries: OrderedDict[bytes, _StoredAnswer] = OrderedDict()
        self._asked: dict[bytes, _Asked] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, key: bytes, asker: str, now: float) -> CacheReply:
        """What `asker` is to do about the question `key`."""
        entry = self._entries.get(key)
        if entry is not None:
            if now < entry.until:
                self._entries.move_to_end(key)
                return CacheReply("found", entry.answer)
            self._drop(key)
        asked = self._asked.get(key)
        if asked is not None and asked.asker != asker and now - asked.heard_at < SILENT_S:
            return CacheReply("wait")
        self._asked[key] = _Asked(asker, now)
        return CacheReply("ask")

    def is_asked(self, key: bytes) -> bool:
        """Whether somebody asks the model this, as far as is known."""
        return key in self._asked

    def keep(self, key: bytes, asker: str, answer: bytes, now: float) -> None:
        """The model has answered. An answer that is too large for all of the room is not kept."""
        self.give_up(key, asker)
        if key in self._entries:
            self._drop(key)
        if len(answer) + ENTRY_BYTES > self._max_bytes:
            return
        self._entries[key] = _StoredAnswer(answer, now + self._ttl_s)
        self.bytes += len(answer) + ENTRY_BYTES
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def give_up(self, key: bytes, asker: str) -> bool:
        """`asker` has no answer: the next one may ask. False if it was not the asker any more."""
        asked = self._asked.get(key)
        if asked is None or asked.asker != asker:
            return False
        del self._asked[key]
        return True

    def heard(self, askers: frozenset[str], now: float) -> None:
        """These still ask."""
        for key, asked in self._asked.items():
            if asked.asker in askers:
                self._asked[key] = _Asked(asked.asker, now)

    def tidy(self, now: float) -> list[bytes]:
        """Forget what is too old, and askers that fell silent, whose questions these are."""
        for key in [key for key, entry in self._entries.items() if entry.until <= now]:
            self._drop(key)
        silent = [key for key, asked in self._asked.items() if now - asked.heard_at >= SILENT_S]
        for key in silent:
            del self._asked[key]
        return silent

    def _drop(self, key: bytes) -> None:
        self.bytes -= len(self._entries.pop(key).answer) + ENTRY_BYTES
