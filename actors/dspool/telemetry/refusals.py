"""What limits refused, as events that come at most once a second, so that a flood of refusals is not one of events."""

from __future__ import annotations

import asyncio
from collections import Counter

from dspool.telemetry.events import emit

EVERY_S = 1.0


class Refusals:
    """The refusals of one pool in one process."""

    def __init__(self, pool: str, *, every_s: float = EVERY_S) -> None:
        self._pool, self._every_s = pool, every_s
        self._counts: Counter[str] = Counter()
        self._due = False

    def count(self, limit: str) -> None:
        """One more request that the limit of this name refused. Needs a running event loop."""
        self._counts[limit] += 1
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(self._every_s, self._tell)

    def _tell(self) -> None:
        self._due = False
        counts, self._counts = self._counts, Counter()
        for limit, count in counts.items():
            emit("limit.refused", {"count": count}, {"pool": self._pool, "limit": limit})
