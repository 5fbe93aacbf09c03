"""Limits on how much one key may ask for: a rate with bursts, and a quota for a period. Pure: `now` is an argument."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from dspool.messages.versioned_pickle import Message

DAY_S: Final = 86_400.0


class RateLimits(Message, Struct, frozen=True):
    """What one token may ask for. None is no limit."""

    rate_per_s: float | None = None
    burst: float | None = None
    """None is one second's worth, at least one."""
    quota_per_day: int | None = None


class Allowance(Message, Struct, frozen=True):
    """`granted` operations may begin. If fewer than requested: one more may after `wait_s`, and `why`."""

    granted: int
    wait_s: float = 0.0
    why: str = ""
    limit: str = ""
    """The limit that holds it back."""


class Allowances:
    """The limits of many tokens, counted in one place for all clients."""

    def __init__(self) -> None:
        self._by_token: dict[str, tuple[RateLimits, Rate | None, Quota | None]] = {}

    def take(self, token: str, limits: RateLimits, count: int, *, now: float, wall: float) -> Allowance:
        """Up to `count` operations of `token`. Limits that changed start afresh."""
        entry = self._by_token.get(token)
        if entry is None or entry[0] != limits:
            entry = self._by_token[token] = (limits, _rate(limits, now), _quota(limits))
        _, rate, quota = entry
        for granted in range(count):
            if rate is not None and (wait_s := rate.wait_s(now)) > 0:
                why = f"more than {rate.per_s:g} operations or changes a second of this token"
                return Allowance(granted, wait_s, why, "rate_per_s")
            if quota is not None and (wait_s := quota.take(wall)) > 0:
                why = f"the day's {quota.limit} operations or changes of this token are used up"
                return Allowance(granted, wait_s, why, "quota_per_day")
            if rate is not None:
                rate.take(now)
        return Allowance(count)


def _rate(limits: RateLimits, now: float) -> Rate | None:
    if limits.rate_per_s is None:
        return None
    burst = limits.burst if limits.burst is not None else max(1.0, limits.rate_per_s)
    return Rate(limits.rate_per_s, burst, now=now)


def _quota(limits: RateLimits) -> Quota | None:
    return None if limits.quota_per_day is None else Quota(limits.quota_per_day, DAY_S)


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
        wait_s = self.wait_s(now)
        if wait_s == 0.0:
            self._left -= 1.0
        return wait_s

    def wait_s(self, now: float) -> float:
        """0 if one more would be fine, else the seconds until then."""
        # A clock that steps back earns nothing and costs nothing.
        self._left = min(self.burst, self._left + max(0.0, now - self._at) * self.per_s)
        self._at = now
        return 0.0 if self._left >= 1.0 else (1.0 - self._left) / self.per_s


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


__all__ = ["Allowance", "Allowances", "Quota", "Rate", "RateLimits"]
