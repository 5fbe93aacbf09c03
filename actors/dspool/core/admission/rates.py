"""Limits on how much one key may ask for: a rate with bursts, and a quota for a period. Pure: `now` is an argument."""

from __future__ import annotations


class Rate:
    """A token bucket: `per_s` on average, `burst` at once."""

    __slots__ = ("_at", "_left", "burst", "per_s")

    def __init__(self, per_s: float, burst: float, *, now: float) -> None:
        if not per_s > 0 or not burst >= 1:
            raise ValueError(f"need per_s > 0 and burst >= 1, got {per_s} and {burst}")
        self.per_s, self.burst = per_s, burst
        self._left, self._at = burst, now

    def take(self, now: float) -> float:
        """0 if one more is fine (and counted), else the seconds until it would be."""
        # A clock that steps back earns nothing and costs nothing.
        self._left = min(self.burst, self._left + max(0.0, now - self._at) * self.per_s)
        self._at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / self.per_s


class Quota:
    """`limit` in each period of `period_s`; periods are aligned to the clock, so that a day is a UTC day."""

    __slots__ = ("_period", "_used", "limit", "period_s")

    def __init__(self, limit: int, period_s: float) -> None:
        if limit < 1 or not period_s > 0:
            raise ValueError(f"need limit >= 1 and period_s > 0, got {limit} and {period_s}")
        self.limit, self.period_s = limit, period_s
        self._period = -1
        self._used = 0

    def take(self, now: float) -> float:
        """0 if one more is fine (and counted), else the seconds until the next period begins."""
        period = int(now // self.period_s)
        if period > self._period:
            self._period, self._used = period, 0
        if self._used < self.limit:
            self._used += 1
            return 0.0
        return (self._period + 1) * self.period_s - now


__all__ = ["Quota", "Rate"]
