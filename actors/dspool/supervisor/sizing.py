"""The sizing loop: asks for the inputs, decides, and records every decision with its numbers. While sizing is off, it
records what it would have decided."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import Decision, SizingConfig, SizingInputs, SizingState
from dspool.core.autoscale.sizing import decide
from dspool.core.lifecycle.status import PoolFacts
from dspool.messages import JSON
from dspool.messages.versioned_pickle import Message
from dspool.supervisor.ports import Sleep, within
from dspool.telemetry.events import emit

log = logging.getLogger("dspool.supervisor")

MAX_DECISIONS = 500
MAX_DRY_RUNS = 100
SAVED_DECISIONS = 50
"""So many outlive the supervisor."""
OBSERVE_TIMEOUT_S = 2.0

Observe = Callable[[], Awaitable[SizingInputs | None]]


class DecisionRecord(Message, Struct, frozen=True):
    """One decision. `times` counts how often in a row it came out the same.

    `source` is "sizing", "manual", or "dry run" for what sizing would have decided while it is off: `previous` and
    `target` are then sizes that the pool would have had.
    """

    at: float
    """Wall-clock seconds of the last time."""
    target: int
    overflow: int
    previous: int
    """Base size before."""
    action: str
    reason: str
    numbers: dict[str, float] = {}
    source: str = "sizing"
    times: int = 1
    since: float = 0.0
    """Wall-clock seconds of the first of these times."""


class Sizing:
    def __init__(
        self,
        config: PoolConfig,
        observe: Observe | None,
        *,
        facts: Callable[[], PoolFacts],
        clock: Callable[[], float],
        wall: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        """`facts()` is what the supervisor itself knows of the pool's size; it overrides the inputs."""
        self.enabled = config.enable_optimizer
        self._pool = config.name
        self._config = SizingConfig.of(config)
        self._observe = observe if config.enable_metrics else None
        self._facts = facts
        self._interval_s = config.optimization_interval_s
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._state = SizingState()
        self._records: deque[DecisionRecord] = deque(maxlen=MAX_DECISIONS)
        # Apart: they change nothing, and must not push out what did.
        self._dry_runs: deque[DecisionRecord] = deque(maxlen=MAX_DRY_RUNS)
        self._would_have: Decision | None = None

    async def run(self, apply: Callable[[Decision], None]) -> None:
        """Decide every `optimization_interval_s`; `apply` gets each decision, but not what is only a dry run."""
        while True:
            await self._sleep(self._interval_s)
            if self._observe is None:
                continue
            try:
                inputs = await within(OBSERVE_TIMEOUT_S, self._observe(), self._sleep)
            except Exception as failed:
                if self.enabled:
                    log.warning("nothing observed, the size is held: %s", failed)
                continue
            if inputs is not None and self.enabled:
                apply(self.decide(inputs))
            elif inputs is not None:
                self.dry_run(inputs)

    def decide(self, inputs: SizingInputs) -> Decision:
        """Make and record one decision."""
        return self._decide(inputs, self._facts(), "sizing")

    def dry_run(self, inputs: SizingInputs) -> None:
        """Record what sizing would decide if it were on. The pool stays as it is.

        It goes on from the size of its last dry run as if the pool had that, and after a resize by hand from this.
        """
        facts, would = self._facts(), self._would_have
        if would is not None:
            facts = facts._replace(
                desired=would.target, actual=would.target, starting=0, overflow=would.overflow
            )
        self._would_have = self._decide(inputs, facts, "dry run")

    def _decide(self, inputs: SizingInputs, facts: PoolFacts, source: str) -> Decision:
        inputs = msgspec.structs.replace(inputs, **facts._asdict())
        decision, self._state = decide(self._config, inputs, self._state, now=self._clock())
        self._record(
            DecisionRecord(
                at=self._wall(),
                target=decision.target,
                overflow=decision.overflow,
                previous=facts.desired,
                action=decision.action,
                reason=decision.reason,
                numbers=decision.numbers,
                source=source,
            )
        )
        return decision

    def record_resize(self, size: int, overflow: int, previous: int) -> None:
        action = "grow" if size > previous else "shrink" if size < previous else "hold"
        self._record(
            DecisionRecord(self._wall(), size, overflow, previous, action, "resized by hand", {}, "manual")
        )
        self._would_have = None  # the next dry run begins at this size

    def _record(self, record: DecisionRecord) -> None:
        # A pool that holds for an hour must not push the reason of its growth out of memory: repeats only count.
        is_dry = record.source == "dry run"
        records = self._dry_runs if is_dry else self._records
        if records and record.action == "hold" and _kind(records[-1]) == _kind(record):
            last = records[-1]
            records[-1] = msgspec.structs.replace(record, times=last.times + 1, since=last.since or last.at)
            return
        records.append(msgspec.structs.replace(record, since=record.at))
        if not is_dry:
            emit(
                "pool.decision",
                {"target": record.target, "overflow": record.overflow, "previous": record.previous},
                {
                    "pool": self._pool,
                    "action": record.action,
                    "reason": record.reason,
                    "source": record.source,
                    "numbers": record.numbers,
                },
            )

    def decisions(self, limit: int) -> list[DecisionRecord]:
        """The last `limit` decisions and dry runs, newest first."""
        found = sorted((*self._dry_runs, *self._records), key=lambda record: record.at)
        return found[-limit:][::-1] if limit > 0 else []

    def rows(self) -> JSON:
        return msgspec.to_builtins(list(self._records)[-SAVED_DECISIONS:])

    def restore(self, rows: JSON) -> None:
        try:
            self._records.extend(msgspec.convert(rows, list[DecisionRecord]))
        except msgspec.ValidationError as unreadable:
            log.warning("recorded decisions of an earlier supervisor are not readable: %s", unreadable)


def _kind(record: DecisionRecord) -> tuple[object, ...]:
    """What it says, without the numbers of its reason: "resized 1.2 s ago" is the same as "resized 0.7 s ago"."""
    reason = _NUMBER.sub("", record.reason)
    return record.target, record.overflow, record.action, record.source, reason


_NUMBER = re.compile(r"\d+(\.\d+)?")
