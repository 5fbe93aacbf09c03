"""What clients and workers add up about operations, and the deltas that carry it to the metrics actor.

A recorder costs about a microsecond a call and bounded memory, however long nothing can be delivered: it holds
sums and histograms, not samples. Its deltas have numbers and running totals, so that a delta that
arrives twice counts once, and the next makes up for one that never arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from dspool.core.metrics.error_groups import ErrorCount, ErrorCounts
from dspool.core.metrics.tally import (
    ERROR,
    INDEX_OF,
    MAX_PROGRAMS,
    OTHER,
    OUTCOMES,
    SERVED,
    TIMEOUT,
    Tally,
    add_usage,
    count_code,
    no_outcomes,
)
from dspool.core.metrics.window import BusyIntegral
from dspool.errors import PoolError
from dspool.messages.versioned_pickle import Message

HEARTBEAT_S: Final = 2.0
"""An idle client still reports this often, so that its gauges stay fresh."""


class ClientDelta(Message, Struct, tag="client", array_like=True):
    """What one client process did for one pool since its last delta."""

    pool: str
    reporter: str
    seq: int
    """1, 2, ...; the same delta keeps its number however often it is sent."""
    interval_s: float
    """Measured seconds that the numbers cover."""
    programs: dict[str, Tally]
    totals: list[int]
    """Ended operations by outcome since the client began, this delta included."""
    dropped: int = 0
    """Samples (spans, events) that the client could not keep. Operations are never dropped."""
    queued: int = 0
    running: int = 0
    oldest_wait_s: float = 0.0
    peak_demand: int = 0
    """Most operations of this client waiting or running at one moment."""
    final: bool = False
    """The client closes: its gauges no longer count."""
    errors: list[ErrorCount] = []
    """What the operations that did not end well ended with."""


class WorkerDelta(Message, Struct, tag="worker", array_like=True):
    """What one worker did since its last delta. Workers always report, busy or not."""

    pool: str
    reporter: str
    """The worker id."""
    seq: int
    interval_s: float
    ordinal: int
    """The worker's number in the pool: the bounded key."""
    slots: int
    """Operations it can run at once."""
    busy_s: float
    """Slot-seconds spent running operations in the interval, those still running included."""
    tally: Tally
    peak_running: int = 0
    running: int = 0
    sessions: int = 0
    rss_mb: float = 0.0
    overflow: bool = False
    final: bool = False
    dropped: int = 0
    """Samples (spans, events) that the worker could not keep."""
    model_calls: dict[str, int] = {}
    """As `MetricsSnapshot.model_calls`, since the last delta."""


Delta = ClientDelta | WorkerDelta


class ClientRecorder:
    """Adds up the operations of one client of one pool. Not thread-safe: one event loop owns it.

    Call `submitted` once and `record` once for each operation, whatever happens to it in between.
    """

    def __init__(self, pool: str, reporter: str, *, now: float, max_programs: int = MAX_PROGRAMS) -> None:
        self.pool = pool
        self.reporter = reporter
        self.demand = 0
        """Operations submitted and not ended."""
        self._max_programs = max_programs
        self._programs: dict[str, Tally] = {}
        self._totals = no_outcomes()
        self._errors = ErrorCounts()
        self._dropped = 0
        self._peak = 0
        self._seq = 0
        self._since = now
        self._sent_at = now
        self._sent_idle = False
        self._unsent: ClientDelta | None = None

    def submitted(self, program: str) -> None:
        """An operation came in. `program` is a bounded name: a pool program, or the command for session work."""
        tally = self._programs.get(program) or self._tally(program)
        tally.arrivals += 1
        self.demand += 1
        if self.demand > self._peak:
            self._peak = self.demand

    def record(
        self,
        program: str,
        outcome: str,
        latency_s: float,
        wait_s: float = 0.0,
        run_s: float = 0.0,
        usage: Mapping[str, Mapping[str, int | float]] | None = None,
        code: str | None = None,
    ) -> None:
        """An operation ended: its only terminal record.

        Args:
            outcome: one of `OUTCOMES`; anything else counts as "error".
            latency_s: submit to end. wait_s: submit to start, or to end if it never started.
            usage: tokens by model, as in `Finished.usage`. code: the error's code unless it ended ok.
        """
        tally = self._programs.get(program) or self._tally(program)
        index = INDEX_OF.get(outcome, ERROR)
        tally.outcomes[index] += 1
        self._totals[index] += 1
        self.demand -= 1
        if index < SERVED:
            tally.latency.record(latency_s)
            tally.wait.record(wait_s)
        tally.run_s += run_s
        if usage:
            add_usage(tally, usage)
        if code is not None:
            count_code(tally.errors, code)

    def failed(
        self, program: str, error: PoolError, *, version: int, worker: str | None, operation: str
    ) -> None:
        """What `error` was that `record` counted by its code. `version` 0: none ran."""
        if error.outcome != "cancelled":
            self._errors.add(program, error, version=version, worker=worker, operation=operation)

    def retried(self, program: str) -> None:
        """The pool tries an operation again; it is still one operation."""
        (self._programs.get(program) or self._tally(program)).retries += 1

    def dropped(self, number: int = 1) -> None:
        self._dropped += number

    @property
    def totals(self) -> dict[str, int]:
        """Ended operations by outcome since the recorder began."""
        return dict(zip(OUTCOMES, self._totals, strict=True))

    def take_delta(
        self,
        now: float,
        *,
        queued: int = 0,
        running: int = 0,
        oldest_wait_s: float = 0.0,
        final: bool = False,
    ) -> ClientDelta | None:
        """What to send now, or None when there is nothing worth sending. Gauges are those of this moment.

        A returned delta comes first, unchanged. After the last busy delta one idle one follows, which
        tells that the load ended; then a heartbeat every `HEARTBEAT_S`.
        """
        if self._unsent is not None:
            delta, self._unsent = self._unsent, None
            return delta
        idle = not self._programs and not self._dropped and not self.demand
        if idle and self._sent_idle and not final and now - self._sent_at < HEARTBEAT_S:
            # Nothing happened in this time: it must not dilute the rate of the next delta.
            self._since = now
            return None
        self._seq += 1
        delta = ClientDelta(
            self.pool,
            self.reporter,
            self._seq,
            max(0.0, now - self._since),
            self._programs,
            list(self._totals),
            self._dropped,
            queued,
            running,
            oldest_wait_s,
            self._peak,
            final,
            self._errors.take(),
        )
        self._programs = {}
        self._dropped = 0
        self._peak = self.demand
        self._since = self._sent_at = now
        self._sent_idle = idle
        return delta

    def give_back(self, delta: ClientDelta) -> None:
        """`delta` may not have arrived: `take_delta` returns it again, unchanged, before anything newer.

        It keeps its number, so it counts once even if it arrived. Operations add up meanwhile.
        """
        self._unsent = delta

    def _tally(self, program: str) -> Tally:
        if len(self._programs) >= self._max_programs:
            program = OTHER
        return self._programs.setdefault(program, Tally())


class WorkerRecorder:
    """Adds up what one worker runs. Not thread-safe: the worker's event loop owns it."""

    def __init__(
        self, pool: str, worker_id: str, ordinal: int, slots: int, *, now: float, overflow: bool = False
    ) -> None:
        self.pool = pool
        self.reporter = worker_id
        self.ordinal = ordinal
        self.slots = slots
        self.overflow = overflow
        self._busy = BusyIntegral(now)
        self._busy_before = 0.0
        self._tally = Tally()
        self._totals = no_outcomes()
        self._seq = 0
        self._since = now
        self._unsent: WorkerDelta | None = None

    def started(self, now: float) -> None:
        """An operation took a slot."""
        self._tally.arrivals += 1
        self._busy.change(1, now)

    def finished(
        self,
        now: float,
        outcome: str,
        run_s: float,
        usage: Mapping[str, Mapping[str, int | float]] | None = None,
        code: str | None = None,
    ) -> None:
        """An operation gave its slot back; once for each `started`."""
        self._busy.change(-1, now)
        tally = self._tally
        index = INDEX_OF.get(outcome, ERROR)
        tally.outcomes[index] += 1
        self._totals[index] += 1
        tally.run_s += run_s
        if index < SERVED:
            tally.latency.record(run_s)
        if usage:
            add_usage(tally, usage)
        if code is not None:
            count_code(tally.errors, code)

    @property
    def running(self) -> int:
        return self._busy.running

    @property
    def operations(self) -> int:
        """Ended operations since the worker began."""
        return sum(self._totals)

    @property
    def errors(self) -> int:
        return self._totals[ERROR] + self._totals[TIMEOUT]

    def busy_s(self, now: float) -> float:
        """Slot-seconds spent running operations since the worker began."""
        return self._busy.total(now)

    def take_delta(
        self,
        now: float,
        *,
        sessions: int = 0,
        rss_mb: float = 0.0,
        dropped: int = 0,
        model_calls: Callable[[], dict[str, int]] = dict,
        final: bool = False,
    ) -> WorkerDelta:
        """What to send now; also when idle, because idle slot-seconds count too. A returned delta comes first.

        `model_calls` takes what was counted of them since it was called last.
        """
        if self._unsent is not None:
            delta, self._unsent = self._unsent, None
            return delta
        self._seq += 1
        busy = self._busy.total(now)
        delta = WorkerDelta(
            self.pool,
            self.reporter,
            self._seq,
            max(0.0, now - self._since),
            self.ordinal,
            self.slots,
            busy - self._busy_before,
            self._tally,
            self._busy.take_peak(),
            self._busy.running,
            sessions,
            rss_mb,
            self.overflow,
            final,
            dropped,
            model_calls(),
        )
        self._busy_before = busy
        self._tally = Tally()
        self._since = now
        return delta

    def give_back(self, delta: WorkerDelta) -> None:
        """As `ClientRecorder.give_back`."""
        self._unsent = delta
