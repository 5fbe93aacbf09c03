"""Ended operations one by one: what is recorded of each, how a client holds them, and how they are searched.

None of it holds content: no input, no answer, no text of an exception. Sessions and principals stand there as their
hash, and sealed under the pool's key.
"""

from __future__ import annotations

import math
from typing import Final, Literal, TypedDict

import msgspec
from msgspec import Struct

from dspool.core.metrics.tally import OUTCOMES
from dspool.errors import InvalidRequest
from dspool.messages.versioned_pickle import Message

MAX_WAITING: Final = 1000
"""Records that a client holds until it sends them, of those that ended well; as many again of those that did not."""
MAX_TEXT: Final = 200
"""Characters of the text that an operation's id is searched for, and of every name that is asked for or kept."""
MAX_PAGE: Final = 1000
"""Operations of one page."""
_KEY_BITS: Final = 10

OperationSort = Literal["time", "duration"]


class EndedOperation(Message, Struct, frozen=True, array_like=True):
    """One operation that ended, as its client knows it."""

    id: str
    ended_at: float
    """Wall-clock seconds."""
    duration_s: float
    wait_s: float
    run_s: float
    command: str
    program: str | None
    """The pool program; users name a session's programs."""
    version: int
    """Of the pool program; 0: none, or not known."""
    outcome: str
    code: str | None = None
    """The error's."""
    exception: str | None = None
    """The type that the program's own code raised."""
    at: str | None = None
    """The line of the author's that raised it."""
    worker: str | None = None
    attempts: int = 1
    trace_id: str | None = None
    session: str | None = None
    """Its hash, as in logs."""
    session_sealed: str | None = None
    principal: str | None = None
    """Its hash."""
    principal_sealed: str | None = None


class OperationBatch(Message, Struct, frozen=True, array_like=True, tag="operations"):
    """What a client sends of its operations. `records` is a list of `EndedOperation` in msgpack: the metrics actor's
    loop does not decode them."""

    pool: str
    records: bytes
    left_out: int
    """Operations since the batch before of which there is no record: there were too many."""


class OperationBuffer:
    """Records of one client until they are sent. What does not fit is counted; failures have room of their own.

    Not thread-safe: one event loop owns it.
    """

    def __init__(self, pool: str, limit: int = MAX_WAITING, *, is_on: bool = True) -> None:
        self._pool, self._limit, self._is_on = pool, limit, is_on
        self._served: list[EndedOperation] = []
        self._failed: list[EndedOperation] = []
        self._left_out = 0
        self._unsent: OperationBatch | None = None

    def has_room(self, outcome: str) -> bool:
        """Whether a record of this outcome is wanted and fits now; counts one that does not fit."""
        if not self._is_on:
            return False
        if len(self._served if outcome == "ok" else self._failed) < self._limit:
            return True
        self._left_out += 1
        return False

    def add(self, record: EndedOperation) -> None:
        """Call it after `has_room`."""
        (self._served if record.outcome == "ok" else self._failed).append(record)

    def take(self) -> OperationBatch | None:
        """What to send now; a returned batch comes first, unchanged."""
        if self._unsent is not None:
            batch, self._unsent = self._unsent, None
            return batch
        if not (self._served or self._failed or self._left_out):
            return None
        batch = OperationBatch(self._pool, _encode([*self._served, *self._failed]), self._left_out)
        self._served, self._failed, self._left_out = [], [], 0
        return batch

    def give_back(self, batch: OperationBatch) -> None:
        """It did not arrive, or nobody knows: the next `take` returns it again. What arrives twice counts once."""
        self._unsent = batch


_encode = msgspec.msgpack.Encoder().encode
decode_records = msgspec.msgpack.Decoder(list[EndedOperation]).decode


# --- searching --------------------------------------------------------------------------------------


class OperationFilters(TypedDict, total=False):
    """Which operations; each part that is given narrows it. None is the same as leaving one out."""

    id: str | None
    program: str | None
    """A pool program, or the command of what ran none."""
    version: int | None
    outcome: str | None
    """As in `counters.by_outcome`; "failed" is any but "ok"."""
    error: str | None
    """An error's code, or the type of exception that a program raised."""
    session: str | None
    principal: str | None
    worker: str | None
    since: float | None
    """Ended at or after this time, in wall-clock seconds."""
    until: float | None
    """Ended before this time."""
    at_least_s: float | None
    """How long it took from submission to end."""
    at_most_s: float | None
    text: str | None
    """A part of its id."""
    sort: OperationSort
    """By "time" of its end, or "duration"."""
    ascending: bool
    """Oldest or shortest first, not newest or longest."""
    cursor: str | None
    """`next_cursor` of the page before."""
    limit: int
    """Of one page: 1 to 1000, by default 100."""


class OperationQuery(Message, Struct, frozen=True, kw_only=True):
    """As `OperationFilters`; `session` and `principal` are hashes."""

    id: str | None = None
    program: str | None = None
    version: int | None = None
    outcome: str | None = None
    error: str | None = None
    session: str | None = None
    principal: str | None = None
    worker: str | None = None
    since: float | None = None
    until: float | None = None
    at_least_s: float | None = None
    at_most_s: float | None = None
    text: str | None = None
    sort: OperationSort = "time"
    ascending: bool = False
    cursor: str | None = None
    limit: int = 100

    def checked(self) -> OperationQuery:
        """Itself. Raises: InvalidRequest: says which part is wrong."""
        for name in ("id", "program", "outcome", "error", "session", "principal", "worker", "text", "cursor"):
            value = getattr(self, name)
            if value is not None and not 0 < len(value) <= MAX_TEXT:
                raise InvalidRequest(f"{name} has from 1 to {MAX_TEXT} characters", field=name)
        for name in ("since", "until", "at_least_s", "at_most_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e11:
                raise InvalidRequest(f"{name} is a number of seconds, got {value}", field=name)
        if self.outcome is not None and self.outcome not in (*OUTCOMES, "failed"):
            raise InvalidRequest(
                f"outcome is one of {', '.join(OUTCOMES)}, or failed; got {self.outcome[:50]!r}",
                field="outcome",
            )
        if self.version is not None and not 0 <= self.version < 2**31:
            raise InvalidRequest(f"version is a version's number, got {self.version}", field="version")
        if not 1 <= self.limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be from 1 to {MAX_PAGE}, got {self.limit}", field="limit")
        self.place()
        return self

    def place(self) -> tuple[int, int] | None:
        """(microseconds of duration, key) of the last operation of the page before; None: this is the first page.

        Raises: InvalidRequest: `cursor` is none of ours.
        """
        if self.cursor is None:
            return None
        took, _, key = self.cursor.partition(".")
        if not all(part.isascii() and part.isdigit() and len(part) < 20 for part in (took, key)):
            raise InvalidRequest("cursor is not the next_cursor of a page", field="cursor")
        return min(int(took), 2**63 - 1), min(int(key), 2**63 - 1)

    def fits(self, one: EndedOperation) -> bool:
        """Whether it is one of those that are searched, whatever the page."""
        return all(
            (
                self.id in (None, one.id),
                self.program in (None, one.program or one.command),
                self.version in (None, one.version),
                self.outcome in (None, one.outcome) or (self.outcome == "failed" and one.outcome != "ok"),
                self.error is None or self.error in (one.code, one.exception),
                self.session in (None, one.session),
                self.principal in (None, one.principal),
                self.worker in (None, one.worker),
                self.since is None or micros(one.ended_at) >= micros(self.since),
                self.until is None or micros(one.ended_at) < micros(self.until),
                self.at_least_s is None or micros(one.duration_s) >= micros(self.at_least_s),
                self.at_most_s is None or micros(one.duration_s) <= micros(self.at_most_s),
                self.text is None or self.text in one.id,
            )
        )


def micros(seconds: float) -> int:
    return math.floor(seconds * 1e6 + 0.5)


def key_at(seconds: float) -> int:
    """The least key of what ended at this time or later."""
    return micros(seconds) << _KEY_BITS


def key_of(one: EndedOperation, digest: int) -> int:
    """Its key in the order of time. `digest`, of its id, keeps two of one microsecond apart; what arrives
    twice has the same key."""
    return key_at(max(0.0, one.ended_at)) | (digest & ((1 << _KEY_BITS) - 1))


def cursor_of(one: EndedOperation, key: int) -> str:
    return f"{max(0, micros(one.duration_s))}.{key}"


# --- what is answered -------------------------------------------------------------------------------


class KeptOperation(Message, Struct, frozen=True, kw_only=True):
    """One ended operation. `session` and `principal` are None where there is none, and for who may not know."""

    id: str
    ended_at: float
    """Wall-clock seconds."""
    duration_s: float
    """From submission to end."""
    wait_s: float
    run_s: float
    command: str
    program: str | None
    """The pool program, if it ran one."""
    version: int | None
    """Of the pool program, where a worker said so."""
    outcome: str
    code: str | None
    """The error's."""
    exception: str | None
    """The type that the program's own code raised."""
    at: str | None
    """The line of the program's that raised it."""
    worker: str | None
    """The last that had it."""
    attempts: int
    trace_id: str | None
    """Null: it was not traced."""
    session: str | None
    session_hash: str | None
    """Stands for the session in logs, events and spans."""
    principal: str | None


class OperationPage(Message, Struct, frozen=True):
    """Operations that were found, in the order that was asked for."""

    operations: list[KeptOperation]
    next_cursor: str | None
    """For the page that follows; None: this is the last one."""
    kept: int
    """Operations that the pool keeps now, found or not."""
    oldest_at: float | None
    """When the oldest that is kept ended, in wall-clock seconds."""
    left_out: int
    """Operations without a record: too many came at once, or they could not be written."""


class FoundOperations(Message, Struct, frozen=True):
    """As `OperationPage`, as it is on disk: names are sealed."""

    operations: list[EndedOperation]
    next_cursor: str | None
    kept: int
    oldest_at: float | None
    left_out: int
