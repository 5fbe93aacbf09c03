"""When a dead worker may be started again: restart intensity as in OTP, and a backoff.

Pure: `now` and the jitter (a number in [0, 1)) are passed in.
"""

from __future__ import annotations

from collections import deque


def backoff(attempt: int, base_s: float, max_s: float, jitter: float) -> float:
    """Seconds to wait before try number `attempt` (1, 2, ...): doubling, capped, spread over its upper half.

    The spread keeps many pools that failed for one reason from trying again at one moment.
    """
    if attempt < 1:
        return 0.0
    # 2**64 is beyond any cap; the bound keeps a pool that fails for days from computing huge integers.
    whole = min(max_s, base_s * 2.0 ** min(attempt - 1, 64))
    return whole * (0.5 + 0.5 * jitter)


class Breaker:
    """Counts failures of workers and says whether, and when, the next may be started.

    Two rules. More than `intensity` failures within `period_s` open the breaker: the pool is degraded, and starts
    one worker at a time. And a worker that could not start, or that died soon after it was warm while the breaker
    is open, delays the next start by a backoff, which a worker that settled (lived for `settled_s`) resets.
    """

    def __init__(self, *, intensity: int, period_s: float, backoff_s: float, backoff_max_s: float) -> None:
        self.intensity = intensity
        self.period_s = period_s
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._failures: deque[float] = deque()
        self._attempt = 0
        self.not_before = 0.0
        """No worker may be started before this time."""

    @property
    def settled_s(self) -> float:
        """A worker that lived this long is no part of a crash loop: at this pace the breaker would stay closed."""
        return self.period_s / max(1, self.intensity)

    def failed(self, now: float, *, lived_s: float | None, jitter: float) -> None:
        """A worker died after it had been warm for `lived_s`, or (None) did not start or become warm."""
        self._failures.append(now)
        if lived_s is not None and lived_s >= self.settled_s:
            self._attempt = 0
        elif lived_s is None or self.is_open(now):
            self._attempt += 1
            delay = backoff(self._attempt, self._backoff_s, self._backoff_max_s, jitter)
            self.not_before = max(self.not_before, now + delay)

    def settled(self) -> None:
        """A worker lived long enough: the next failure starts again at the shortest backoff."""
        self._attempt = 0

    def recent(self, now: float) -> int:
        """Failures within the last `period_s`."""
        while self._failures and self._failures[0] <= now - self.period_s:
            self._failures.popleft()
        return len(self._failures)

    def is_open(self, now: float) -> bool:
        """True while more than `intensity` failures lie within `period_s`."""
        return self.recent(now) > self.intensity

    def closes_at(self, now: float) -> float | None:
        """When an open breaker closes if nothing more fails; None if it is closed."""
        if not self.is_open(now):
            return None
        return self._failures[len(self._failures) - self.intensity - 1] + self.period_s
