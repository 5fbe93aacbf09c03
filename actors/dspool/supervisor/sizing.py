"""The sizing loop: asks for the inputs, decides, and records every decision with its numbers."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from dspool.config import PoolConfig
from dspool.core.autoscale.sizing import Decision, SizingConfig, SizingInputs, SizingState, decide
from dspool.core.lifecycle.status import PoolFacts
from dspool.messages import JSON
from dspool.messages.versioned_pickle import Message
from dspool.supervisor.ports import Sleep, within
from dspool.telemetry.events import emit

log = logging.getLogger("dspool.supervisor")

MAX_DECISIONS = 500
SAVED_DECISIONS = 50
"""So many outlive the supervisor."""
OBSERVE_TIMEOUT_S = 2.0

Observe = Callable[[], Awaitable[SizingInputs | None]]


class DecisionRecord(Message, Struct, frozen=True):
    """One decision. `source` is "sizing" or "manual"; `times` counts how often in a row it came out the same."""

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
        self._observe = observe
        self._facts = facts
        self._interval_s = config.optimization_interval_s
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._state = SizingState()
        self._records: deque[DecisionRecord] = deque(maxlen=MAX_DECISIONS)

    async def run(self, apply: Callable[[Decision], None]) -> None:
        """Decide every `optimization_interval_s` while enabled; `apply` gets each decision."""
        while True:
            await self._sleep(self._interval_s)
            if not self.enabled or self._observe is None:
                continue
            try:
                inputs = await within(OBSERVE_TIMEOUT_S, self._observe(), self._sleep)
            except Exception as failed:
                log.warning("nothing observed, the size is held: %s", failed)
                continue
            if inputs is not None:
                apply(self.decide(inputs))

    def decide(self, inputs: SizingInputs) -> Decision:
        """Make and record one decision."""
        facts = self._facts()
        inputs = msgspec.structs.replace(inputs, **facts._asdict())
        config = msgspec.structs.replace(self._config, enabled=self.enabled)
        decision, self._state = decide(config, inputs, self._state, now=self._clock())
        self._record(
            DecisionRecord(
                at=self._wall(),
                target=decision.target,
                overflow=decision.overflow,
                previous=facts.desired,
                action=decision.action,
                reason=decision.reason,
                numbers=decision.numbers,
            )
        )
        return decision

    def record_resize(self, size: int, overflow: int, previous: int) -> None:
        action = "grow" if size > previous else "shrink" if size < previous else "hold"
        self._record(
            DecisionRecord(self._wall(), size, overflow, previous, action, "resized by hand", {}, "manual")
        )

    def _record(self, record: DecisionRecord) -> None:
        # A pool that holds for an hour must not push the reason of its growth out of memory: repeats only count.
        last = self._records[-1] if self._records else None
        is_repeat = last is not None and (
            (last.target, last.overflow, last.action, _kind(last), last.source)
            == (record.target, record.overflow, record.action, _kind(record), record.source)
        )
        if last is not None and is_repeat and record.action == "hold":
            self._records[-1] = msgspec.structs.replace(
                record, times=last.times + 1, since=last.since or last.at
            )
        else:
            self._records.append(msgspec.structs.replace(record, since=record.at))
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
        """The last `limit` decisions, newest first."""
        return list(self._records)[-limit:][::-1] if limit > 0 else []

    def rows(self) -> JSON:
        return msgspec.to_builtins(list(self._records)[-SAVED_DECISIONS:])

    def restore(self, rows: JSON) -> None:
        try:
            self._records.extend(msgspec.convert(rows, list[DecisionRecord]))
        except msgspec.ValidationError as unreadable:
            log.warning("recorded decisions of an earlier supervisor are not readable: %s", unreadable)


def _kind(record: DecisionRecord) -> str:
    """Its reason without the numbers: "resized 1.2 s ago" is the same reason as "resized 0.7 s ago"."""
    return _NUMBER.sub("", record.reason)


_NUMBER = re.compile(r"\d+(\.\d+)?")
