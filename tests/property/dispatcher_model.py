"""What the model knows of operations and workers, and what it draws: submissions, and steps of a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import strategies as st

from dspool.core.dispatch.dispatcher import Ticket, TicketEnd

SESSIONS = ("s1", "s2", "s3")
MAX_QUEUE = 12

RATE_LIMITED = {"code": "model_rate_limited", "message": "", "details": {"retry_after_s": 0.3}}
PROGRAM_FAILED = {"code": "program_error", "message": "", "details": {}}
CANCELLED = {"code": "cancelled", "message": "", "details": {}}


@dataclass
class Op:
    """What the model knows of one operation."""

    ticket: Ticket
    session: str | None
    idempotent: bool
    deadline: float
    checkout_by: float
    started: bool = False
    retried: bool = False
    pristine: bool = True
    """Never came back from a worker."""
    bounces: int = 0
    at: str | None = None
    """The worker that has it, on its way there included; stays set after an early end until the worker is done."""
    rests_until: float = 0.0
    """The longest it may rest before its next attempt."""
    ends: list[TicketEnd] = field(default_factory=list)

    @property
    def request(self) -> tuple[str, str | None]:
        """What is the same for two callers that ask for the same."""
        return self.ticket.operation.command.program, self.session

    @property
    def alive(self) -> bool:
        return not self.ends

    @property
    def queued(self) -> bool:
        return self.alive and self.at is None

    def may_start(self, now: float) -> bool:
        in_time = now < (self.deadline if self.retried else self.checkout_by)
        return self.queued and in_time and self.rests_until < now


@dataclass
class SimWorker:
    slots: int
    member: bool = True
    others: int = 0
    """Slots that other clients fill, in truth."""
    capacity: int = 0
    """Slots that the dispatcher may fill, from what it was told."""
    silent_until: float | None = None
    """Until then the dispatcher believes that it is (partly) full or unreachable."""
    refused: bool = False
    """It said busy to this client, and has to tell when it has room."""
    inbox: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


class Turn(NamedTuple):
    """One step of one worker."""

    ends: bool = False
    pick: int = 0
    error: dict | None = None
    exact: bool = True
    reports: bool = True
    """Whether its load comes with the end; always if it had refused something and has room now."""


TURNS = st.builds(
    Turn,
    ends=st.booleans(),
    pick=st.integers(0, 5),
    error=st.sampled_from([None, RATE_LIMITED, RATE_LIMITED, PROGRAM_FAILED, CANCELLED]),
    exact=st.booleans(),
    reports=st.booleans(),
)


SUBMISSIONS = st.tuples(
    st.sampled_from([None, None, *SESSIONS]),
    st.sampled_from([True, True, False]),
    st.sampled_from([30.0, 30.0, 3.0, 1.0, 0.05, 0.0]),
    st.sampled_from([None, None, "the same"]),
)
