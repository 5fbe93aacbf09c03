"""What happened in a simulation, told by those who called and by the programs that ran: plain facts, no judgement.

Nothing of the engine is imported here or in `checker`: a mistake of the system cannot agree with itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Call:
    """One call of one caller, from when it was sent to what came back."""

    id: str
    client: str
    what: str
    """execute, stream, set, get, session execute, end, or bad set: of a value that cannot be stored."""
    sent_at: float
    timeout_s: float
    session: str | None = None
    principal: str | None = None
    key: str | None = None
    value: Any = None
    """What `set` writes; None: it deletes."""
    idempotent: bool = False
    attempts: int = 3
    """How often it may run if it is idempotent."""
    ended_at: float | None = None
    outcome: str | None = None
    """ok, an error's code, or "cancelled by its caller"."""
    answer: Any = None
    worker: str | None = None
    ends: int = 0
    heeds: bool = True
    """Whether its program ends when it is cancelled."""
    calm: bool = False
    """Sent when the faults had stopped and the pool was whole again: it must succeed."""
    moves: bool = False
    """The worker of its session was full when it was sent, others were not, and the session may move."""


@dataclass
class Run:
    """One time that a program or command ran on a worker."""

    call: str
    worker: str
    session: str | None
    began_at: float
    version: int = 0
    code: str = ""
    ended_at: float | None = None


@dataclass
class History:
    clock: Callable[[], float]
    calls: dict[str, Call] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    deaths: dict[str, float] = field(default_factory=dict)
    """When each worker process died."""
    stopped: dict[str, float] = field(default_factory=dict)
    """When each worker that left in order was told to end."""
    ordered: dict[str, float] = field(default_factory=dict)
    """When each worker was told to end for the first time, in order or because it was given up."""
    frozen: list[tuple[str, float, float]] = field(default_factory=list)
    """(process, from, to) of each pause."""
    blocked: list[tuple[str, float, float]] = field(default_factory=list)
    """(worker, from, to) while a program let nothing else run there."""
    quiet_from: float | None = None
    """When faults stopped."""
    ready_again_at: float | None = None
    errors: list[str] = field(default_factory=list)
    """What the engine itself logged as an error or let escape."""
    lost_clients: set[str] = field(default_factory=set)
    """Those that died with their node."""
    last_status: str = ""
    plan: list[Any] = field(default_factory=list)
    """The faults that were planned."""
    leftovers: list[str] = field(default_factory=list)
    """What was still held at the end."""
    counted: int | None = None
    """Ended operations, as the pool's own metrics have them at the end; None: it had none."""
    health_s: tuple[float, ...] = ()
    """How long before a worker is given up each of its health checks began, all of which it must have missed."""
    slots: int = 0
    over: bool = False
    simulated_s: float = 0.0
    callbacks: int = 0

    def call(self, call: Call) -> Call:
        self.calls[call.id] = call
        return call

    def ended(self, call: Call, outcome: str, answer: Any = None, worker: str | None = None) -> None:
        if self.over:
            return
        call.ends += 1
        call.ended_at, call.outcome, call.answer, call.worker = self.clock(), outcome, answer, worker

    def began(self, call: str, worker: str, session: str | None, version: int = 0, code: str = "") -> Run:
        run = Run(call, worker, session, self.clock(), version, code)
        if not self.over:
            self.runs.append(run)
        return run

    def fault(self, kind: str, **facts: Any) -> None:
        self.faults.append({"at": round(self.clock(), 6), "kind": kind, **facts})

    def digest(self) -> str:
        """Equal for equal histories, to the last digit."""
        parts = (
            [asdict(call) for call in self.calls.values()],
            [asdict(run) for run in self.runs],
            self.faults,
            self.frozen,
            self.errors,
        )
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
