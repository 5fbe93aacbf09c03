"""Sessions as the store tells of them: who holds one, and what of it is durable."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from dspool.messages.commands import JSON


class Change(Struct, frozen=True, array_like=True):
    """One durable change of a session. `payload` None deletes; name "*" with payload None deletes the kind."""

    kind: Literal["program", "lm", "variable"]
    name: str
    payload: JSON = None


class SessionInfo(Struct, frozen=True):
    id: str
    owner: str | None
    """The worker id that holds its lease; None when it is not active anywhere."""
    epoch: int
    created_at: float
    last_used_at: float
    programs: tuple[str, ...] = ()
    moves: int = 0
    principal: str | None = None


class Lease(Struct, frozen=True):
    """The store's answer to a worker that wants a session."""

    session: str
    granted: bool
    owner: str
    """The owner after the call: the asking worker, or the living one to go to."""
    epoch: int
    items: tuple[Change, ...] = ()
    """The session's durable state, when granted."""
    principal: str | None = None
    created: bool = False
    """The session began with this lease."""
    previous: str | None = None
    """The worker that held it last."""
