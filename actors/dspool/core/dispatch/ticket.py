"""What goes into the dispatcher and what comes out: its settings, one ticket an operation, ends and actions."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from msgspec import Struct

from dspool.errors import DeadlineExceeded, PoolError, WorkerLost
from dspool.messages import Failure, Operation, Result

Strategy = Literal["lifo", "fifo", "least_loaded"]
Affinity = Literal["strict", "prefer"]


class DispatchConfig(NamedTuple):
    strategy: Strategy = "least_loaded"
    max_queue: int = 1000
    checkout_timeout_s: float = 10.0
    """How long an operation may wait for a worker to take it; its own deadline still holds."""
    attempts: int = 3
    backoff_s: float = 0.05
    backoff_max_s: float = 1.0
    jitter: float = 0.5
    budget_ratio: float = 0.1
    budget_burst: int = 256
    """Retries beyond the ratio: a dying worker with many slots must not exhaust it."""
    refuse_poison_s: float = 300.0
    """How long to refuse a request after `attempts` workers that had it died; 0: never."""
    affinity: Affinity = "strict"
    """`strict`: an operation of a session waits for the session's owner, however busy.
    `prefer`: while another worker has a free slot, a full owner hands the session over."""


class Ticket(Struct, eq=False):
    """One operation of this client, from submission to its one end. Mutable, and equal only to itself."""

    number: int
    """Its place in the queue; never changes."""
    operation: Operation
    submitted_at: float
    deadline: float
    queue_deadline: float
    """When it ends unless a worker has taken it; on a retry, the deadline."""
    idempotent: bool
    sink: Any
    """What the caller needs to deliver the end."""
    sent_at: float = 0.0
    attempts: int = 0
    """How often a worker took it (or has not yet said that it did not)."""
    tried: tuple[str, ...] = ()
    """The workers that took it, one for each of `attempts`."""
    bounces: int = 0
    """How often a worker did not take it, for whatever reason."""
    worker: str | None = None
    """The worker that holds it now, after an early end, too."""
    queued: bool = True
    ended: bool = False

    def too_late(self, now: float) -> DeadlineExceeded:
        """The error that ends it at `now`, in the phase it is in."""
        phase, verb = ("queue", "waited for a slot") if self.queued else ("run", "ran")
        waited_s = now - self.submitted_at
        return DeadlineExceeded(
            f"operation {self.operation.id} {verb} past its deadline ({waited_s:.2f} s after it was submitted)",
            phase=phase,
            operation_id=self.operation.id,
        )

    def lost(self, worker_id: str, cause: str) -> WorkerLost:
        """The error that ends it after its worker died, when it is not tried again."""
        if not self.idempotent:
            why = "it may have taken effect and was not repeated: it is not declared idempotent"
        elif self.attempts <= 1:
            why = "it may have taken effect and was not repeated: its deadline or the budget of retries left no time"
        else:
            why = (
                f"that was try {self.attempts}: it may have taken effect each time, and is not repeated again"
            )
        return WorkerLost(
            f"worker {worker_id} died while it ran operation {self.operation.id} ({cause}); {why}",
            worker=worker_id,
            operation_id=self.operation.id,
            attempts=self.attempts,
        )


class TicketEnd(NamedTuple):
    """The one end of an operation."""

    ticket: Ticket
    report: Result | Failure | None
    """Its worker's, unless it ended here."""
    error: PoolError | None
    """What its caller gets raised; None when it ended well."""
    worker: str | None


class Actions(NamedTuple):
    """What the caller performs, in this order. Keys are worker ids."""

    send: dict[str, list[Ticket]]
    cancel: dict[str, list[str]]
    """Operation ids."""
    ends: list[TicketEnd]
    handover: dict[str, list[str]]
    """Sessions that the worker shall give up. `Dispatcher.handed_over` takes each answer."""
