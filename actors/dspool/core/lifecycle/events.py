"""Events and actions: the words between the pool state and the supervisor.

Events are facts, in the past tense or as requests; actions are orders. All are frozen and hold plain data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dspool.messages import JSON, Member, Membership, WorkerState, WorkerStatus

# --- events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored:
    """What an earlier supervisor of this pool persisted; the first event, if there was one."""

    desired: int | None = None
    overflow: int = 0
    version: int = 0
    paused: bool = False
    awake: bool = False
    gradual: JSON = None
    """Where a change stood that goes step by step."""


@dataclass(frozen=True, slots=True)
class WorkerAdopted:
    """A worker that an earlier supervisor started still runs; `state` is its last known state."""

    worker_id: str
    ordinal: int
    member: Member
    state: WorkerState
    status: WorkerStatus | None = None
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Booted:
    """Every running worker is adopted: from now on the pool keeps its size."""


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """The process is up and listening; not warm yet."""

    worker_id: str
    member: Member


@dataclass(frozen=True, slots=True)
class StepDone:
    """One warm-up step succeeded; shows how far a warming worker is."""

    worker_id: str
    step: str


@dataclass(frozen=True, slots=True)
class WarmFinished:
    worker_id: str


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """It did not start or become warm, but something of it may run: kill it."""

    worker_id: str
    why: str
    lasts: bool = False
    """Another worker would fail alike."""


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """The process is gone for certain."""

    worker_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class HealthOk:
    worker_id: str
    status: WorkerStatus


@dataclass(frozen=True, slots=True)
class HealthMissed:
    """A check failed or timed out. `certain`: the worker is useless beyond doubt, so act at once."""

    worker_id: str
    why: str
    certain: bool = False


@dataclass(frozen=True, slots=True)
class Suspected:
    """A client could not talk to the worker, though its health check passed."""

    worker_id: str
    why: str


@dataclass(frozen=True, slots=True)
class ResizeRequested:
    size: int


@dataclass(frozen=True, slots=True)
class SizingDecided:
    target: int
    overflow: int
    reason: str = "sizing"


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Drain it now; its replacement starts at the same time."""

    worker_id: str
    why: str = "drained by hand"


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """Replace it: first warm the replacement, then drain it."""

    worker_id: str
    why: str = "restarted by hand"


@dataclass(frozen=True, slots=True)
class Drained:
    """It runs nothing and holds no session any more (or its time to drain is over)."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class CanaryRequested:
    """Start one worker beside the others, which tries new versions in a fresh process. It waits for its promotion."""


@dataclass(frozen=True, slots=True)
class CanaryPromoted:
    """It takes traffic beside the others, and counts for nobody's place."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class CanaryAccepted:
    """It is a worker like others from now on, and takes the place of one: all older ones are replaced."""

    worker_id: str
    why: str


@dataclass(frozen=True, slots=True)
class CanaryRefused:
    worker_id: str
    why: str


@dataclass(frozen=True, slots=True)
class PauseRequested:
    paused: bool


@dataclass(frozen=True, slots=True)
class GradualStep:
    """A change to these settings stands at so many percent; None: it is through.

    Only a record for the supervisor that comes with these settings, if they are not the pool's.
    """

    settings: str
    percent: int | None


@dataclass(frozen=True, slots=True)
class ProgramsChanged:
    """The current version of each pool program."""

    programs: dict[str, int]


@dataclass(frozen=True, slots=True)
class Woken:
    """A lazy pool has its first caller."""


@dataclass(frozen=True, slots=True)
class VersionSeen:
    """A client knows this membership version."""

    version: int


@dataclass(frozen=True, slots=True)
class CloseRequested:
    """Drain all workers and stop; kill those left after `timeout_s`."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Restored
    | WorkerAdopted
    | Booted
    | WorkerStarted
    | StepDone
    | WarmFinished
    | WorkerFailed
    | WorkerDied
    | HealthOk
    | HealthMissed
    | Suspected
    | ResizeRequested
    | SizingDecided
    | DrainRequested
    | RestartRequested
    | CanaryRequested
    | CanaryPromoted
    | CanaryAccepted
    | CanaryRefused
    | Drained
    | PauseRequested
    | GradualStep
    | ProgramsChanged
    | Woken
    | VersionSeen
    | CloseRequested
    | Tick
)


# --- actions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartWorker:
    worker_id: str
    ordinal: int


@dataclass(frozen=True, slots=True)
class WarmWorker:
    worker_id: str


@dataclass(frozen=True, slots=True)
class Promote:
    """A spare now takes traffic. The same batch of actions publishes the membership that says so."""

    worker_id: str
    ordinal: int


@dataclass(frozen=True, slots=True)
class DrainWorker:
    worker_id: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class StopWorker:
    worker_id: str


@dataclass(frozen=True, slots=True)
class KillWorker:
    worker_id: str
    why: str


@dataclass(frozen=True, slots=True)
class FreeLeases:
    worker_id: str


@dataclass(frozen=True, slots=True)
class PublishMembership:
    membership: Membership


@dataclass(frozen=True, slots=True)
class DeclareDegraded:
    """The pool serves with the workers that are left; an empty reason says that this is over."""

    reason: str


@dataclass(frozen=True, slots=True)
class Persist:
    """Write it down for the next supervisor of this pool."""

    key: str
    value: JSON


@dataclass(frozen=True, slots=True)
class Emit:
    """A telemetry event."""

    name: str
    measurements: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, JSON] = field(default_factory=dict)


Action = (
    StartWorker
    | WarmWorker
    | Promote
    | DrainWorker
    | StopWorker
    | KillWorker
    | FreeLeases
    | PublishMembership
    | DeclareDegraded
    | Persist
    | Emit
)
