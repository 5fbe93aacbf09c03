"""Who takes traffic, as clients see it, and the pool and its workers, as operators see them."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from msgspec import Struct, field

from dspool.errors import UnknownWorker, suggestion
from dspool.messages.versioned_pickle import Message

# A pool may be called `a-w1`: the last ordinal counts. Nine digits, because Python refuses very long numbers.
_WORKER_ID: Final = re.compile(r"(.+)-w(0|[1-9][0-9]{0,8})-([0-9a-f]+)")

CUT_OFF: Final = "its machine does not acknowledge what is sent to it"
"""Why a client could not talk to a worker, if not its process failed. Supervisors know the text."""

WorkerState = Literal["starting", "warming", "ready", "spare", "draining", "stopped", "failed"]


class WorkerId(NamedTuple):
    """The parts of a worker's id. As text, `{pool}-w{ordinal}-{suffix}`, it stands in messages, logs and URLs."""

    pool: str
    ordinal: int
    suffix: str
    """Hexadecimal: distinguishes the workers that ever had this ordinal."""

    def __str__(self) -> str:
        return f"{self.pool}-w{self.ordinal}-{self.suffix}"

    @property
    def role(self) -> str:
        """The role in its actor's name: `worker:{ordinal}:{suffix}`."""
        return f"worker:{self.ordinal}:{self.suffix}"

    @classmethod
    def parse(cls, text: str) -> WorkerId:
        """Raises: UnknownWorker: it is no worker's id."""
        match = _WORKER_ID.fullmatch(text)
        if match is None:
            raise UnknownWorker(f"there is no worker {text[:100]!r}", worker=text[:100])
        return cls(match[1], int(match[2]), match[3])

    @classmethod
    def of_role(cls, pool: str, role: str) -> WorkerId:
        """The id of the actor with this `role` in `pool`."""
        _, ordinal, suffix = role.split(":")
        return cls(pool, int(ordinal), suffix)


class Member(Message, Struct, frozen=True):
    """A worker that takes traffic, as clients see it."""

    worker_id: str
    ordinal: int = field(name="slot")
    """The worker's number in the pool: small, reused after death."""
    host: str
    port: int
    slots: int
    pid: int = 0
    node: str = ""


class Share(Message, Struct, frozen=True):
    """How much goes to workers with new settings while a pool changes step by step."""

    percent: int
    """Of the operations that may run anywhere, at most; of sessions that have no home yet, about so many."""
    workers: tuple[str, ...]
    """The ids of those that take traffic."""


class Membership(Message, Struct, frozen=True):
    """Who takes traffic. `version` only grows (also over supervisor restarts), so a client can wait for the next."""

    version: int
    workers: tuple[Member, ...] = ()
    paused: bool = False
    closed: bool = False
    programs: dict[str, int] = {}
    """Current version by pool program."""
    finishing: tuple[str, ...] = ()
    """Ids of workers that take no traffic now, but live and finish what they hold."""
    share: Share | None = None
    """None: all workers are alike."""

    def lives(self, worker_id: str) -> bool:
        """False: it died or was declared dead. None of its operations ends there, and nothing it says counts."""
        return worker_id in self.finishing or any(member.worker_id == worker_id for member in self.workers)


class WorkerStatus(Message, Struct, frozen=True):
    """One worker as the supervisor knows it: what `GET /v1/pools/{pool}` shows."""

    id: str
    ordinal: int = field(name="slot")
    state: WorkerState
    pid: int = 0
    node: str = ""
    sessions: int = 0
    running: int = 0
    slots: int = 0
    started_at: float = 0.0
    """Wall-clock seconds since the epoch."""
    operations: int = 0
    errors: int = 0
    busy_s: float = 0.0
    rss_mb: float = 0.0
    overflow: bool = False
    reason: str = ""
    start: str = ""
    """How its process started: `fork`, `fork: what it does not share`, `exec`, or `exec: why it was not forked`; empty
    until it has said so."""
    checked_at: float | None = None
    """Wall-clock seconds of the last health check that it answered."""
    own_mb: float = 0.0
    """Of `rss_mb` what it shares with no other process: what ending it would free."""
    fresh_mb: float = 0.0
    """`own_mb` when it became warm; 0: not known."""
    misses: int = 0
    """Health checks in a row that it did not answer."""
    settings: str = ""
    """A mark of the settings that it has from its start: one with an older mark is replaced."""
    version: str = ""
    """Of the dspool that it runs."""


class EndedWorker(Message, Struct, frozen=True):
    """A worker that is gone, and what took its place if the pool lost it."""

    id: str
    ordinal: int = field(name="slot")
    started_at: float
    """Wall-clock seconds since the epoch."""
    ended_at: float
    cause: str
    expected: bool
    """It was told to go: drained, restarted, recycled, no longer needed."""
    operations: int = 0
    """As of its last health check; so are the next two."""
    errors: int = 0
    rss_mb: float = 0.0
    replaced_by: str | None = None
    """The worker that took its place; None: none did yet, or none had to."""
    how: str = ""
    """`spare`: it stood by, warm. `fork`, `exec`: a new process that had to start first, as `WorkerStatus.start` says.
    Empty until that is known."""
    took_s: float | None = None
    """How long its place was empty."""


class GradualStatus(Message, Struct, frozen=True):
    """Where a change stands that goes step by step."""

    percent: int
    """Of the operations, for workers with the pool's settings; others have those before."""
    workers_new: int
    workers_old: int
    reached: bool
    """There are as many of both as there should be."""


class PoolStatus(Message, Struct, frozen=True):
    name: str
    state: Literal["starting", "ready", "degraded", "paused", "closed", "unknown"]
    """`degraded`: it serves with what is left, fewer workers or older code than it should; `reason` says why.
    `unknown`: it does not answer."""
    ready: bool
    """At least `min_ready` workers are warm."""
    desired: int
    actual: int
    spares: int
    membership_version: int
    workers: tuple[WorkerStatus, ...] = ()
    programs: dict[str, int] = {}
    reason: str = ""
    failures: int = 0
    """Workers that died, were given up or could not be started, since the supervisor began."""
    lost: int = 0
    """Of the workers that are missing, those that died or could not be started; others are on their way."""
    lost_since: float | None = None
    """Wall-clock seconds: since when `lost` is not 0."""
    ended: tuple[EndedWorker, ...] = ()
    """The last 32 workers that ended, the last one first, since the supervisor began."""
    gradual: GradualStatus | None = None
    """A change by `dspool apply --gradual` that is under way, or was cut off there: the next `apply` finishes it."""
    version: str = ""
    """Of the dspool that its supervisor runs."""
    cannot_start: str = ""
    """Why no new worker becomes ready, as the code or the configuration must change first; those that serve go on."""

    def worker_id(self, named: str | int) -> str:
        """The id of the worker that `named` means: its id, or its ordinal.

        Raises:
            UnknownWorker: there is none; names those there are.
        """
        named = str(named)
        for worker in self.workers:
            if named in (worker.id, str(worker.ordinal)):
                return worker.id
        known = [worker.id for worker in self.workers]
        raise UnknownWorker(
            f"pool {self.name} has no worker {named[:100]!r}{suggestion(named, known)}"
            f"; it has {', '.join(known) or 'none'}",
            worker=named[:100],
        )


def is_ordinal(named: str | int) -> bool:
    """Whether it names a worker by its number in the pool, and not by its id."""
    return isinstance(named, int) or (named.isascii() and named.isdigit())
