"""Who may do what: tokens as we keep them, and how to recognise one that a caller presents. Pure.

A token is `dsp_<id>_<secret>`: the id (8 hex digits) names it in lists and logs, the secret is 256 random bits. We keep
the SHA-256 of the whole token. A plain, fast hash is right here, where it would be wrong for passwords: salt and slow
hashing make guessing expensive, and nobody guesses 256 random bits at any speed. The hash only has to make a
copy of the file worthless, and to cost a request less than a microsecond.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from dspool.core.admission.fair import Priority
from dspool.core.admission.rates import RateLimits
from dspool.errors import UnknownSession
from dspool.messages import StorageLimits

Role = Literal["reader", "caller", "admin"]
ROLES: Final[tuple[Role, ...]] = ("reader", "caller", "admin")
"""Each may do what those before it may."""
_RANK: Final = {role: rank for rank, role in enumerate(ROLES)}

PRINCIPAL = r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}$"
"""A principal's name. No slash: the first one separates the parts of `principal/session`."""
_TOKEN: Final = re.compile(rb"dsp_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_NOBODY: Final = "0" * 64

Positive = Annotated[float, Meta(gt=0)]


class Token(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One token as we keep it: everything but the token itself."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, Meta(pattern=PRINCIPAL)]
    """The principal. Two tokens of one name are the same principal: that is how to replace a token."""
    role: Role
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    expires_at: float | None = None
    """Seconds since the epoch; null is never."""
    weight: Positive = 1.0
    """Share of the service relative to other keys, when there is not enough for all."""
    max_running: Annotated[int, Meta(ge=1)] | None = None
    """Operations at once."""
    rate_per_s: Positive | None = None
    """Operations, and other requests that change something, a second, on average."""
    burst: Annotated[float, Meta(ge=1)] | None = None
    """Operations at once, before the rate holds them back; null is one second's worth, at least one."""
    quota_per_day: Annotated[int, Meta(ge=1)] | None = None
    """As `rate_per_s`, in one UTC day."""
    max_sessions: Annotated[int, Meta(ge=1)] | None = None
    """Sessions; null is `limits.max_sessions`."""
    max_session_mb: Positive | None = None
    """Of one session; null is `limits.max_session_mb`."""
    max_stored_mb: Positive | None = None
    """Of all sessions; null is `limits.max_stored_mb`."""
    max_answers_mb: Positive | None = None
    """Of answers kept under idempotency keys; null is `limits.max_answers_mb`."""
    priority: Priority = "interactive"
    """For requests that do not say; a request may lower it, never raise it."""

    @property
    def limited(self) -> bool:
        return self.rate_per_s is not None or self.quota_per_day is not None

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and now >= self.expires_at

    @property
    def limits(self) -> RateLimits:
        return RateLimits(self.rate_per_s, self.burst, self.quota_per_day)

    @property
    def storage(self) -> StorageLimits | None:
        """What it says of how much its principal may keep; None: nothing."""
        limits = StorageLimits(
            self.max_sessions, self.max_session_mb, self.max_stored_mb, self.max_answers_mb
        )
        return None if limits == StorageLimits() else limits


def allowed(role: Role, minimum: Role) -> bool:
    return _RANK[role] >= _RANK[minimum]


def new_token(
    name: str, role: Role, secret: str, id: str, *, expires_at: float | None = None
) -> tuple[str, Token]:
    """The token to hand out, once, and what to keep of it. `secret` is 43 characters of URL-safe base64 (256 bits)."""
    text = f"dsp_{id}_{secret}"
    if _TOKEN.fullmatch(text.encode()) is None:
        raise ValueError(
            "a token needs an id of 8 hex digits and a secret of 43 characters of URL-safe base64"
        )
    return text, Token(id=id, name=name, role=role, sha256=digest(text.encode()), expires_at=expires_at)


def digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


class Tokens:
    """A set of tokens that recognises one of its own."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._by_id = {token.id: token for token in tokens}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Token]:
        return iter(self._by_id.values())

    def get(self, id: str) -> Token | None:
        return self._by_id.get(id)

    def still_has(self, token: Token, *, now: float) -> bool:
        """Whether `token`, recognised earlier, is still one of them, unexpired, with the same secret, name and role."""
        found = self._by_id.get(token.id)
        return (
            found is not None
            and (found.sha256, found.name, found.role) == (token.sha256, token.name, token.role)
            and not found.expired(now)
        )

    def recognise(self, presented: bytes, *, now: float) -> Token | None:
        """The token that `presented` is; None if it is none of ours or has expired.

        The id, which is no secret, selects the token; hashes are compared in constant time. An unknown id costs
        the same comparison, so that the time does not tell which ids exist.
        """
        shape = _TOKEN.fullmatch(presented)
        token = None if shape is None else self._by_id.get(shape[1].decode())
        same = hmac.compare_digest(digest(presented), token.sha256 if token is not None else _NOBODY)
        if token is None or not same or token.expired(now):
            return None
        return token


def may_see_session(principal: str | None, asker: str | None) -> bool:
    """Whether `asker` may know of a session of `principal`: its own, nobody's, or any if it is None (trusted)."""
    return principal is None or asker is None or principal == asker


def unknown_session(pool: str, session: str) -> UnknownSession:
    # The same words for a session that never was and for another principal's.
    return UnknownSession(
        f"no session {session!r} in pool {pool!r}: never created, ended or expired", session=session
    )


__all__ = [
    "PRINCIPAL",
    "ROLES",
    "Role",
    "Token",
    "Tokens",
    "allowed",
    "digest",
    "may_see_session",
    "new_token",
    "unknown_session",
]
