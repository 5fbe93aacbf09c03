"""Versions of pool programs, and what each did."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from dspool.messages.commands import JSON
from dspool.messages.versioned_pickle import Message

VERSIONS_KEPT: Final = 100
"""The newest of each program that are kept for a roll-back, besides the current one."""


MadeBy = Literal["config", "deploy", "reload", "restart", "rollback"]
"""What made a version: the configuration; a deployment; edited source that was deployed (`reload`; of this program, or
of another one that shares it), that a pool found when it started (`restart`) or that a roll-back brought along."""


class Deployment(Message, Struct, frozen=True):
    """One version of a pool program: what `CreateProgram` takes, and its version (1, 2, ...)."""

    program: str
    version: int
    spec: dict[str, JSON] | None = None
    state: dict[str, JSON] | None = None
    import_path: str | None = None
    kwargs: dict[str, JSON] = {}
    program_dir: str | None = None
    """A program that DSPy saved whole."""
    made_by: MadeBy | None = None
    made_at: float = 0.0
    """Wall-clock seconds; 0 if it was made before this was kept."""
    source: dict[str, str] | None = None
    """What it is made of: the digest of each module of its package. No process runs it from any other source. None:
    it imports nothing of its own, or no worker has loaded it yet."""
    by: str = ""
    """The principal who asked for it; empty: nobody who has a name."""

    @property
    def has_one_source(self) -> bool:
        """A spec, an import path or a directory; beside the latter two, a spec that only chooses LM and adapter."""
        if self.import_path is None and self.program_dir is None:
            return self.spec is not None
        both = self.import_path is not None and self.program_dir is not None
        return not both and (self.spec is None or set() < set(self.spec) <= {"lm", "adapter"})


class VersionNumbers(Message, Struct, frozen=True):
    """What one version of a pool program did in some time, as its workers measured it."""

    operations: int = 0
    """Ended ones."""
    errors: int = 0
    """Those that did not end well. Callers' mistakes count, too: they hit both versions alike, and a version that
    no longer takes what callers send is no better than one that fails."""
    run_s: float = 0.0
    """Mean run time."""
    running: int = 0
    running_s: float = 0.0
    """How long those that still run have run, on average: a version that hangs ends nothing."""

    @property
    def error_rate(self) -> float:
        return self.errors / self.operations if self.operations else 0.0

    @property
    def least_s(self) -> float:
        """A lower bound of the mean run time: what runs now counts with its time so far, if that makes it longer."""
        count = self.operations + self.running
        if not count:
            return 0.0
        return max(self.run_s, (self.run_s * self.operations + self.running_s * self.running) / count)


class Change(Message, Struct, frozen=True, array_like=True):
    """One durable change of a session. `payload` None deletes; name "*" with payload None deletes the kind."""

    kind: Literal["program", "lm", "variable"]
    name: str
    payload: JSON = None


class StorageLimits(Message, Struct, frozen=True, array_like=True):
    """What one principal may keep; None is what the configuration says."""

    max_sessions: int | None = None
    max_session_mb: float | None = None
    max_stored_mb: float | None = None
    max_answers_mb: float | None = None


class SessionInfo(Message, Struct, frozen=True):
    id: str
    owner: str | None
    """The worker id that holds its lease; None when it is not active anywhere."""
    epoch: int
    created_at: float
    last_used_at: float
    programs: tuple[str, ...] = ()
    moves: int = 0
    principal: str | None = None


class Lease(Message, Struct, frozen=True):
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
    size: int = 0
    """Bytes of the items, as quotas count them."""


class StoreStatus(Message, Struct, frozen=True, kw_only=True):
    """The database that keeps a pool's sessions, and the store that serves it."""

    database: str
    """`sqlite` or `postgresql`."""
    place: str
    """The file, or the hosts and the database's name."""
    identity: str
    """The same in each copy of this database, and in no other."""
    schema_version: int
    epoch: int
    """How many stores have served the pool. One with an older epoch commits nothing."""
    server: str
    """The process that serves it, and its host."""
    node: str
    """Its Ray node, if it is on one."""
    pinned: bool
    """It can be on that node only: the file is there, and is lost with it."""


class StoredUsage(Message, Struct, frozen=True):
    """What one principal keeps in a pool's store; None: those who have no principal."""

    principal: str | None
    sessions: int
    stored_mb: float
    answers_mb: float
