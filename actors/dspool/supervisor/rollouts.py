"""What a roll-out is doing now and what the last one did, for people who watch it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
from msgspec import Struct

from dspool.errors import PoolError
from dspool.messages import VersionNumbers

Phase = Literal["loading", "canary", "rolling out", "done", "rolled back", "failed"]


class Rollout(Struct, kw_only=True):
    """One deployment or roll-back. Times are wall-clock seconds."""

    program: str
    version: int
    previous: int | None
    phase: Phase
    began_at: float
    ended_at: float | None = None
    canary: str | None = None
    """The worker that tries the new version."""
    canary_s: float = 0.0
    """Longest time that it is watched."""
    old: VersionNumbers | None = None
    """What the version before did since the canary took the new one."""
    new: VersionNumbers | None = None
    reason: str = ""
    workers_done: int = 0
    workers_total: int = 0


ROLLOUTS_KEPT = 50


class Rollouts:
    """The one that runs and the last ones that ended."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._running: Rollout | None = None
        self._ended: deque[Rollout] = deque(maxlen=ROLLOUTS_KEPT)

    @property
    def running(self) -> Rollout | None:
        return msgspec.structs.replace(self._running) if self._running else None

    @property
    def last(self) -> Rollout | None:
        return self._ended[-1] if self._ended else None

    def recent(self) -> list[Rollout]:
        """Newest first, the one that runs included."""
        running = self.running
        return [*([running] if running else []), *reversed(self._ended)]

    @contextmanager
    def of(self, program: str, version: int, previous: int | None, phase: Phase) -> Iterator[Rollout]:
        """Follow one until the end of the block; it went well unless the block raises."""
        rollout = self._running = Rollout(
            program=program, version=version, previous=previous, phase=phase, began_at=self._wall()
        )
        try:
            yield rollout
        except BaseException as failed:
            if rollout.phase != "rolled back":
                rollout.phase = "failed"
                rollout.reason = failed.message if isinstance(failed, PoolError) else type(failed).__name__
            raise
        else:
            rollout.phase = "done"
        finally:
            rollout.ended_at = self._wall()
            self._running = None
            self._ended.append(rollout)


__all__ = ["Phase", "Rollout", "Rollouts"]
