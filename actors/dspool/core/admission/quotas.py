"""How much one principal, and all of a pool together, may keep in the store. Pure: the store counts and asks here.

A refusal never stands in the way of less: whoever is over a limit, because it was lowered, may still delete.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

from msgspec import Struct

from dspool.errors import PayloadTooLarge, QuotaExceeded
from dspool.messages import StorageLimits
from dspool.messages.versioned_pickle import Message

MB: Final = 2**20
_HEAD: Final = sys.getsizeof("\U0001f600") - 4
ROW_BYTES: Final = 512
"""What a session, an item of one or a kept answer counts besides its content: empty ones are not free."""


class Amount(NamedTuple):
    """What is kept, or what a change adds to it. Bytes are those of `size_of`."""

    sessions: int = 0
    stored: int = 0
    """Bytes of sessions: programs with their states, variables, choices of an LM."""
    answers: int = 0
    """Bytes of answers kept under idempotency keys."""

    def plus(self, other: Amount) -> Amount:
        return Amount(
            self.sessions + other.sessions, self.stored + other.stored, self.answers + other.answers
        )


class Quotas(Message, Struct, frozen=True, kw_only=True):
    """The limits of a pool; None is no limit."""

    principal: StorageLimits = StorageLimits()
    """For each principal whose token says nothing else."""
    sessions: int | None = None
    """Of all principals, and of those who have none."""
    stored_mb: float | None = None
    """Of all: sessions and kept answers."""

    def check(
        self, change: Amount, now: Amount, total: Amount, *, own: StorageLimits | None, named: bool
    ) -> None:
        """Whether `change` may come on top of what its principal has `now` and the pool has in `total`.

        Args:
            own: what the principal's token says, before what the configuration says.
            named: there is a principal; without one only the pool's own limits hold.

        Raises:
            QuotaExceeded: it may not; says which limit, and how to get room.
        """
        after, all_after = now.plus(change), total.plus(change)
        if named:
            limits = _merged(own, self.principal)
            if change.sessions > 0:
                _most("max_sessions", after.sessions, limits.max_sessions, "sessions", "end some")
            if change.stored > 0:
                room = "delete variables or programs, or end sessions"
                _most_mb("max_stored_mb", after.stored, limits.max_stored_mb, "sessions", room)
            if change.answers > 0:
                room = "keys are forgotten service.idempotency_ttl_s after their first use"
                _most_mb("max_answers_mb", after.answers, limits.max_answers_mb, "kept answers", room)
        if change.sessions > 0:
            _most("max_pool_sessions", all_after.sessions, self.sessions, "sessions", "end some", "the pool")
        if change.stored + change.answers > 0:
            kept = all_after.stored + all_after.answers
            room = "sessions must end, or the operator give more room"
            _most_mb("max_pool_stored_mb", kept, self.stored_mb, "sessions and answers", room, "the pool")

    def check_session(self, before: int, after: int, own: StorageLimits | None) -> None:
        """Whether one session may grow from `before` to `after` bytes.

        Raises:
            PayloadTooLarge: it may not.
        """
        most = _merged(own, self.principal).max_session_mb
        if most is not None and after > before and after > most * MB:
            raise PayloadTooLarge(
                f"a session may keep {most:g} MB (max_session_mb), this one would have {after / MB:.1f}: delete "
                "variables or programs of it",
                limit="max_session_mb",
                most=most,
            )


def size_of(text: str) -> int:
    """What JSON counts: its text, and roughly what Python takes for its values besides.

    `[[],[],...]` takes twenty times its text in a worker's memory, so bytes of text alone would bound nothing.
    """
    return _width(text) + 32 * (text.count(",") + text.count("[")) + 200 * text.count("{")


def _width(text: str) -> int:
    """Bytes of JSON, its texts as wide as Python keeps them: one emoji makes each character beside it four bytes."""
    if text.isascii():
        return len(text)
    texts = text.replace("\\\\", "..").replace('\\"', "..").split('"')
    wide = sum(max(len(one.encode()), sys.getsizeof(one) - _HEAD) for one in texts)
    return wide + len(texts) - 1


def _merged(own: StorageLimits | None, general: StorageLimits) -> StorageLimits:
    if own is None:
        return general
    return StorageLimits(
        **{
            field: getattr(own, field) if getattr(own, field) is not None else getattr(general, field)
            for field in StorageLimits.__struct_fields__
        }
    )


def _most(limit: str, count: int, most: int | None, what: str, room: str, who: str = "you") -> None:
    if most is not None and count > most:
        raise QuotaExceeded(
            f"{who} may have {most} {what} ({limit}): {room}", limit=limit, most=most, scope=_scope(who)
        )


def _most_mb(limit: str, size: int, most: float | None, what: str, room: str, who: str = "you") -> None:
    if most is not None and size > most * MB:
        raise QuotaExceeded(
            f"{who} may keep {most:g} MB of {what} ({limit}): {room}",
            limit=limit,
            most=most,
            scope=_scope(who),
        )


def _scope(who: str) -> str:
    return "principal" if who == "you" else "pool"


__all__ = ["MB", "ROW_BYTES", "Amount", "Quotas", "size_of"]
