"""A worker's clients and their operations on it, from admission to report, and the errors that can end one there."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from typing import TYPE_CHECKING

from dspool.errors import Cancelled, DeadlineExceeded, InternalError, PoolError, ProgramError, type_of
from dspool.messages import Operation

if TYPE_CHECKING:
    from msgspec import Raw

    from dspool.programs.sessions.session import Session
    from dspool.telemetry.tracing import Active
    from dspool.wire.connection import WorkerEnd

_log = logging.getLogger(__name__)


class ClientPeer:
    """One client at this worker: what of it is held, and what it has not yet been told."""

    __slots__ = ("busy", "chunks", "end", "finished", "gone", "handed_over", "held", "moved")

    def __init__(self, end: WorkerEnd) -> None:
        self.end = end
        self.held: dict[str, Execution] = {}
        self.gone = False
        self.finished: list[Raw] = []
        self.busy: list[str] = []
        self.moved: list[tuple[str, str]] = []
        self.handed_over: list[tuple[str, bool]] = []
        self.chunks: dict[str, list[Raw]] = {}


class Execution:
    """One admitted operation. It holds its slot until it is reported."""

    __slots__ = (
        "admitted_at",
        "credit",
        "deadline",
        "end",
        "expired",
        "more",
        "operation",
        "peer",
        "session",
        "started_at",
        "stop",
        "task",
        "timer",
        "traced",
        "version",
    )

    def __init__(self, operation: Operation, peer: ClientPeer, now: float, credit: int) -> None:
        self.operation = operation
        self.peer = peer
        self.admitted_at = now
        self.deadline = now + operation.timeout_s
        self.started_at: float | None = None
        self.session: Session | None = None
        self.task: asyncio.Task[None] | None = None
        """What runs it, if it can be cancelled."""
        self.stop: threading.Event | None = None
        """Asks the thread that runs it to make no further call."""
        self.timer: asyncio.TimerHandle | None = None
        self.expired = False
        """Its deadline passed while it was here."""
        self.end = False
        """It was cancelled: its result no longer matters to anybody."""
        self.credit = credit
        """Stream events that its client still has room for."""
        self.more: asyncio.Event | None = None
        self.traced: Active | None = None
        """Its span, if it is one of those that are traced."""
        self.version = 0
        """The version of a pool program that it runs; 0 for everything else."""

    @property
    def unwanted(self) -> bool:
        return self.end or self.expired

    @property
    def runs(self) -> bool:
        """Its program runs, in a task or a thread: not still in a line, nor waiting for the store."""
        return self.task is not None or self.stop is not None

    def interrupt(self) -> None:
        """Make what runs it stop, as soon as it can."""
        if self.task is not None:
            self.task.cancel()
        if self.stop is not None:
            self.stop.set()
        if self.more is not None:
            self.more.set()

    def given_up(self, now: float) -> PoolError:
        """Why it is unwanted."""
        return self.too_late(now) if self.expired else self.cancelled()

    def cancelled(self) -> Cancelled:
        return Cancelled(f"operation {self.operation.id} was cancelled")

    def too_late(self, now: float) -> DeadlineExceeded:
        phase = "run" if self.started_at is not None else "queue"
        return DeadlineExceeded(
            f"operation {self.operation.id} passed its deadline after {now - self.admitted_at:.2f} s on its worker",
            phase=phase,
            operation_id=self.operation.id,
        )

    def ended_by(self, raised: BaseException, now: float) -> PoolError:
        """What to report when running it raised `raised`."""
        if self.unwanted:
            # Stopping makes libraries fail in their own ways; the cause is ours all the same.
            return self.given_up(now)
        if isinstance(raised, PoolError):
            return raised
        # Nobody here raises what is no `Exception`, and nobody cancelled it: it was the program itself.
        return defect(raised) if issubclass(type(raised), Exception) else ProgramError.of(raised)


def defect(raised: BaseException) -> InternalError:
    """The error to report for one that nobody expected; where it came from goes to the log, what it said does not."""
    kind = type_of(raised)
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(raised.__traceback__)[-4:]]
    _log.error("an operation raised %s at %s", kind, " < ".join(reversed(places)))
    # The type only: a message may hold what the user sent.
    return InternalError(f"the worker failed on this operation ({kind}); see its log", kind=kind)
