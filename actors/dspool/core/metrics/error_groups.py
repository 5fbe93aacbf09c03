"""Errors by what they are: which exception at which line, or which error of which model, of which program.

A client counts by kind between two reports; `ErrorGroups` adds the counts of all clients up. Both are bounded, and hold
no message: a kind is made of names, lines and codes, and what is none of these is left out.
"""

from __future__ import annotations

import builtins
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from msgspec import Struct, field

from dspool.core.metrics.tally import OTHER
from dspool.errors import PoolError
from dspool.messages.versioned_pickle import Message

K = TypeVar("K", int, str)

MAX_KINDS: Final = 64
"""Kinds of error that one client counts between two reports; those beyond count as `OTHER`."""
MAX_GROUPS: Final = 200
"""Groups kept for a pool; for a new one beyond, the one that is longest without an error goes."""
MAX_BY: Final = 8
"""Versions and workers that a group names; the newest ones."""
EXAMPLES: Final = 3
EPISODE_S: Final = 300.0
"""An error that did not come for so long begins anew."""
RECENT_S: Final = 60.0
_CELL_S: Final = 10.0

_NAME: Final = re.compile(r"[^\W\d]\w{0,79}(\.[^\W\d]\w{0,79}){0,7}")
_PLACE: Final = re.compile(r"[\w.<>/-]{1,200}:\d{1,7}")
_MODEL: Final = re.compile(r"[\w./:@+~-]{1,120}")
_WORD: Final = re.compile(r"[a-z][a-z0-9_-]{0,59}")


class ErrorKind(Message, Struct, frozen=True, array_like=True):
    """What makes two errors the same. Empty where it does not apply."""

    program: str
    """As metrics name it: a pool program, or the command of a session's operation."""
    code: str
    """The code of the `PoolError`."""
    outcome: str
    exception: str = ""
    """The type that the author's code raised."""
    at: str = ""
    """The author's line, `shop.basic:56`."""
    model: str = ""
    provider: str = ""
    profile: str = ""
    """The LM profile that names the model and its endpoint."""
    status: int = 0
    """The HTTP status of the back end; 0: none came."""
    reason: str = ""

    @property
    def id(self) -> str:
        """Short, the same in every process, and fit for an address."""
        parts = "\0".join(str(getattr(self, name)) for name in self.__struct_fields__)
        return hashlib.blake2b(parts.encode("utf-8", "backslashreplace"), digest_size=6).hexdigest()

    @property
    def text(self) -> str:
        """In few words, without the program."""
        if self.model:
            status = f" with status {self.status}" if self.status else ""
            reason = f" ({self.reason})" if self.reason and self.reason not in ("transport",) else ""
            return f"{self.model} {_MODEL_FAILS.get(self.code, 'failed')}{status}{reason}"
        if self.exception:
            return f"{self.exception} at {self.at}" if self.at else self.exception
        return f"{self.code} ({self.reason})" if self.reason else self.code


_MODEL_FAILS: Final = {
    "model_unreachable": "does not answer",
    "model_rate_limited": "refuses calls: too many requests",
    "model_auth_failed": "refuses the key",
    "model_refused": "gives no answer",
}


def kind_of(program: str, error: PoolError) -> ErrorKind:
    """The kind of `error`. Programs may raise errors of ours with details of their own: only what looks like a name
    counts. An exception of code that a user sent is named only if it is one of Python's."""
    if error.outcome == "client_error":
        # Of those, details quote what the caller sent.
        return ErrorKind(program, error.code, error.outcome)
    details = error.details
    status = details.get("status")
    exception = _fitting(_NAME, details.get("exception"))
    if "line" in details and not hasattr(builtins, exception):
        exception = ""
    return ErrorKind(
        program,
        error.code,
        error.outcome,
        exception,
        _fitting(_PLACE, details.get("at")),
        _fitting(_MODEL, details.get("model")),
        _fitting(_WORD, details.get("provider")),
        _fitting(_MODEL, details.get("profile")),
        status if type(status) is int and 0 < status < 1000 else 0,
        _fitting(_WORD, details.get("reason") or details.get("phase")),
    )


def _fitting(pattern: re.Pattern[str], value: Any) -> str:
    return value if type(value) is str and pattern.fullmatch(value) else ""


class ErrorCount(Message, Struct, array_like=True):
    """Operations that ended with one kind of error, in a client's delta."""

    kind: ErrorKind
    number: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    """By the version of the pool program that ran."""
    workers: dict[str, int] = field(default_factory=dict)
    operation: str = ""
    """The newest of them."""

    def add(self, version: int, worker: str | None, operation: str) -> None:
        self.number += 1
        if version:
            _count(self.versions, version, 1)
        if worker:
            _count(self.workers, worker, 1)
        self.operation = operation


class ErrorCounts:
    """What one client counts until its next delta."""

    def __init__(self) -> None:
        self._by_kind: dict[ErrorKind, ErrorCount] = {}

    def add(
        self, program: str, error: PoolError, *, version: int, worker: str | None, operation: str
    ) -> None:
        kind = kind_of(program, error)
        if kind not in self._by_kind and len(self._by_kind) >= MAX_KINDS - 1:
            kind = ErrorKind(OTHER, OTHER, "error")
        count = self._by_kind.get(kind)
        if count is None:
            count = self._by_kind[kind] = ErrorCount(kind)
        count.add(version, worker, operation)

    def take(self) -> list[ErrorCount]:
        taken, self._by_kind = list(self._by_kind.values()), {}
        return taken


class ErrorGroup(Message, Struct, frozen=True, kw_only=True):
    """All errors of one kind."""

    id: str
    """As `/v1/pools/{pool}/errors` and the page name it; stays the same."""
    text: str
    """What it is, in few words."""
    program: str
    """A pool program, or the command of a session's operation."""
    code: str
    outcome: str
    exception: str
    """The type that the author's code raised; empty for errors of other kinds."""
    at: str
    """The author's line, `shop.basic:56`."""
    model: str
    provider: str
    profile: str
    """The LM profile of the model."""
    status: int
    """The HTTP status of the model's back end; 0: none came."""
    reason: str
    count: int
    lately: int
    """Of them in the last 60 s."""
    first: float
    """Wall-clock seconds, as the pool's metrics heard of it."""
    last: float
    since: float
    """The first since it last did not come for 5 minutes."""
    versions: dict[int, int]
    """Errors by version of the pool program; of the newest ones that had any."""
    workers: dict[str, int]
    operations: tuple[str, ...]
    """Examples, the newest first."""


class SavedGroup(Message, Struct, array_like=True):
    """A group as it is kept and goes into a checkpoint."""

    kind: ErrorKind
    count: int
    first: float
    last: float
    since: float
    versions: dict[int, int]
    workers: dict[str, int]
    operations: list[str]
    cells: list[tuple[float, int]] = field(default_factory=list)
    """(beginning, number) of the last 10-second cells."""


class ErrorGroups:
    """The groups of one pool."""

    def __init__(self) -> None:
        self._groups: dict[ErrorKind, SavedGroup] = {}
        """The one that is longest without an error first."""
        self.forgotten = 0
        """Groups that went for others."""

    def __len__(self) -> int:
        return len(self._groups)

    def take(self, counts: Iterable[ErrorCount], at: float) -> None:
        """Add what a client counted; `at` is the wall time."""
        for count in counts:
            group = self._groups.pop(count.kind, None)
            if group is None:
                group = SavedGroup(count.kind, 0, at, at, at, {}, {}, [])
                if len(self._groups) >= MAX_GROUPS:
                    del self._groups[next(iter(self._groups))]
                    self.forgotten += 1
            self._groups[count.kind] = group
            if at - group.last > EPISODE_S:
                group.since = at
            group.count += count.number
            group.last = max(group.last, at)
            for version, number in count.versions.items():
                _count(group.versions, version, number)
            for worker, number in count.workers.items():
                _count(group.workers, worker, number)
            group.operations = [count.operation, *group.operations][:EXAMPLES]
            _add_cell(group.cells, at, count.number)

    def all(self, at: float) -> tuple[ErrorGroup, ...]:
        """Every group, the one with the newest error first."""
        return tuple(_shown(group, at) for group in reversed(self._groups.values()))

    def worst(self, at: float, number: int) -> tuple[ErrorGroup, ...]:
        """Of those whose errors failed operations in the last 5 minutes, those with the most lately."""
        active = [_shown(group, at) for group in self._active(at)]
        return tuple(sorted(active, key=lambda one: (-one.lately, -one.last))[:number])

    def _active(self, at: float) -> Iterator[SavedGroup]:
        for group in reversed(self._groups.values()):
            if at - group.last > EPISODE_S:
                return
            if group.kind.outcome in ("error", "timeout"):
                yield group

    def save(self) -> list[SavedGroup]:
        return list(self._groups.values())

    def restore(self, saved: Iterable[SavedGroup]) -> None:
        self._groups = {group.kind: group for group in saved}


def _add_cell(cells: list[tuple[float, int]], at: float, number: int) -> None:
    begin = at - at % _CELL_S
    if cells and cells[-1][0] == begin:
        cells[-1] = begin, cells[-1][1] + number
    else:
        cells.append((begin, number))
        del cells[: -int(RECENT_S / _CELL_S) - 1]


def _shown(group: SavedGroup, at: float) -> ErrorGroup:
    kind = group.kind
    return ErrorGroup(
        id=kind.id,
        text=kind.text,
        **{name: getattr(kind, name) for name in kind.__struct_fields__},
        count=group.count,
        lately=sum(number for begin, number in group.cells if begin + _CELL_S > at - RECENT_S),
        first=group.first,
        last=group.last,
        since=group.since,
        versions=dict(group.versions),
        workers=dict(group.workers),
        operations=tuple(group.operations),
    )


def _count(by: dict[K, int], key: K, number: int) -> None:
    """Count under `key`; of more than `MAX_BY` keys those that came last stay."""
    by[key] = by.pop(key, 0) + number
    while len(by) > MAX_BY:
        del by[next(iter(by))]


__all__ = ["ErrorCount", "ErrorCounts", "ErrorGroup", "ErrorGroups", "ErrorKind", "SavedGroup", "kind_of"]
