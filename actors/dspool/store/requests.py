"""Who may own, change or end a session: the store's decisions, without I/O.

A `StoreRequest` is about one session: it gets the session's row and returns an `Outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from dspool.core.admission.access import may_see_session, unknown_session
from dspool.core.admission.quotas import ROW_BYTES, size_of
from dspool.errors import Conflict, InvalidRequest, StaleLease
from dspool.messages import JSON, Change, Lease, SessionInfo, StorageLimits

Key = tuple[str, str]
"""Pool and session."""

KINDS = frozenset({"program", "lm", "variable"})
ALL_NAMES = "*"
MAX_NAME = 512


@dataclass(frozen=True)
class SessionRow:
    pool: str
    session: str
    principal: str | None
    owner: str | None
    last_owner: str | None
    epoch: int
    moves: int
    created_at: float
    last_used_at: float
    size: int


def encode(value: JSON, what: str) -> str:
    """`value` as JSON text.

    Raises:
        InvalidRequest: it is not plain JSON, and would not come back as it went in.
    """
    try:
        text = msgspec.json.encode(value)
        is_json = msgspec.json.decode(text) == value
    except (TypeError, ValueError, RecursionError):
        is_json = False
    if not is_json:
        raise InvalidRequest(f"{what} is not a JSON value (None, bool, int, finite float, str, list, dict)")
    return text.decode()


def check_names(**names: str | None) -> None:
    """Refuse names that a database cannot store and find again unchanged.

    Raises:
        InvalidRequest: empty, too long, with a NUL character, or not valid Unicode.
    """
    for field, name in names.items():
        if name is None:
            continue
        if not 0 < len(name) <= MAX_NAME:
            raise InvalidRequest(f"{field} must have 1..{MAX_NAME} characters, got {len(name)}", field=field)
        if "\0" in name or (
            not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name)
        ):
            raise InvalidRequest(f"{field} has a character that cannot be stored", field=field)


@dataclass(frozen=True)
class StoredChange:
    """A `Change` whose payload is JSON text; None deletes."""

    kind: str
    name: str
    payload: str | None

    @classmethod
    def of(cls, change: Change) -> StoredChange:
        """Raises `InvalidRequest` for a payload that is not JSON, an unknown kind or a bad name."""
        if change.kind not in KINDS:
            raise InvalidRequest(f"no kind of change {change.kind!r}, there are {', '.join(sorted(KINDS))}")
        check_names(name=change.name)
        if change.payload is None:
            return cls(change.kind, change.name, None)
        if change.name == ALL_NAMES:
            raise InvalidRequest(f"{ALL_NAMES!r} names all of a kind and can only be deleted")
        return cls(change.kind, change.name, encode(change.payload, f"{change.kind} {change.name!r}"))


ItemSizes = dict[tuple[str, str], int]
"""Of one session: sizes by kind and name."""


def item_size(payload: str) -> int:
    return ROW_BYTES + size_of(payload)


def growth(changes: Sequence[StoredChange], sizes: ItemSizes) -> int:
    """What `changes` add to a session whose items of the same names have these `sizes`, which follow the changes."""
    before = sum(sizes.values())
    for change in changes:
        if change.name == ALL_NAMES:
            for key in [key for key in sizes if key[0] == change.kind]:
                del sizes[key]
        elif change.payload is None:
            sizes.pop((change.kind, change.name), None)
        else:
            sizes[change.kind, change.name] = item_size(change.payload)
    return sum(sizes.values()) - before


@dataclass
class Outcome:
    """What a request did to its session."""

    reply: Any = None
    """The answer, or the `PoolError` to raise."""
    row: SessionRow | None = None
    """The row to write."""
    removed: bool = False
    granted: bool = False
    """The answer is a lease on `row`, to be completed with the session's items."""
    previous: str | None = None
    """The last owner before this lease; None when the session began with it."""
    changes: Sequence[StoredChange] = ()

    def adds(self, before: SessionRow | None) -> bool:
        """Whether something new is kept, where `before` was: a session, or a value."""
        is_new = before is None and self.row is not None
        return is_new or any(change.payload is not None for change in self.changes)


class Epochs(Protocol):
    def next(self, pool: str) -> int:
        """An epoch greater than any given out before in `pool`."""


class StoreRequest(Protocol):
    @property
    def key(self) -> Key: ...
    @property
    def principal(self) -> str | None:
        """Who asks; None is the pool's own code."""

    @property
    def limits(self) -> StorageLimits | None:
        """Those of who asks, before the configured ones."""

    def decide(self, row: SessionRow | None, epochs: Epochs, *, dead: bool, now: float) -> Outcome:
        """`dead`: the asking worker was declared dead. Raises a `PoolError` to refuse; then nothing is written."""


@dataclass(frozen=True)
class Create:
    key: Key
    principal: str | None
    limits: StorageLimits | None = None

    def decide(self, row: SessionRow | None, epochs: Epochs, *, dead: bool, now: float) -> Outcome:
        pool, session = self.key
        if row is not None:
            raise Conflict(f"there is a session {session!r} already in pool {pool!r}", session=session)
        row = _new_row(self.key, self.principal, None, 0, now)
        return Outcome(SessionInfo(session, None, 0, now, now, principal=self.principal), row=row)


def _new_row(key: Key, principal: str | None, owner: str | None, epoch: int, now: float) -> SessionRow:
    return SessionRow(
        pool=key[0],
        session=key[1],
        principal=principal,
        owner=owner,
        last_owner=owner,
        epoch=epoch,
        moves=0,
        created_at=now,
        last_used_at=now,
        size=ROW_BYTES,
    )


@dataclass(frozen=True)
class Acquire:
    key: Key
    worker: str
    create: bool
    principal: str | None
    limits: StorageLimits | None = None

    def decide(self, row: SessionRow | None, epochs: Epochs, *, dead: bool, now: float) -> Outcome:
        pool, session = self.key
        if dead:
            raise StaleLease(
                f"worker {self.worker} was declared dead and gets no lease",
                session=session,
                worker=self.worker,
            )
        previous = None if row is None else row.last_owner
        if row is None:
            if not self.create:
                raise unknown_session(pool, session)
            row = _new_row(self.key, self.principal, self.worker, epochs.next(pool), now)
        elif not may_see_session(row.principal, self.principal):
            raise unknown_session(pool, session)
        elif row.owner is not None and row.owner != self.worker:
            return Outcome(Lease(session, granted=False, owner=row.owner, epoch=row.epoch))
        elif row.owner is None:
            # Also when the same worker comes back: what it sent under its released lease no longer counts.
            moved = row.last_owner is not None and row.last_owner != self.worker
            row = replace(
                row,
                owner=self.worker,
                last_owner=self.worker,
                epoch=epochs.next(pool),
                moves=row.moves + moved,
                last_used_at=now,
            )
        else:
            row = replace(row, last_used_at=now)
        return Outcome(row=row, granted=True, previous=previous)


@dataclass(frozen=True)
class Commit:
    key: Key
    worker: str
    epoch: int
    changes: Sequence[StoredChange]
    principal: str | None = None
    limits: StorageLimits | None = None

    def decide(self, row: SessionRow | None, epochs: Epochs, *, dead: bool, now: float) -> Outcome:
        if row is None or row.owner != self.worker or row.epoch != self.epoch:
            raise StaleLease(
                f"worker {self.worker} no longer holds session {self.key[1]!r} at epoch {self.epoch}",
                session=self.key[1],
                worker=self.worker,
                epoch=self.epoch,
            )
        return Outcome(row.size, row=replace(row, last_used_at=now), changes=self.changes)


@dataclass(frozen=True)
class EndSessionRow:
    key: Key
    principal: str | None
    limits: StorageLimits | None = None

    def decide(self, row: SessionRow | None, epochs: Epochs, *, dead: bool, now: float) -> Outcome:
        exists = row is not None and may_see_session(row.principal, self.principal)
        return Outcome(exists, removed=exists)


def added_bytes(requests: Sequence[Any]) -> int:
    """About how much of the disk these may take."""
    commits = [request for request in requests if isinstance(request, Commit)]
    return sum(len(change.payload or "") for commit in commits for change in commit.changes)


def owner_of(request: StoreRequest, row: SessionRow | None) -> tuple[str, str | None]:
    """Pool and principal to whom the session counts: the one who has it, or who is about to."""
    return request.key[0], request.principal if row is None else row.principal
