"""Whether and when an operation is retried, and how fast the pool has ended operations lately."""

from __future__ import annotations

from dspool.core.dispatch.ticket import DispatchConfig, Ticket
from dspool.errors import PoolError

_RETRYABLE_CODES = frozenset({"model_rate_limited", "model_unreachable"})
_FREE_BOUNCES = 4
_BOUNCE_PAUSE_S = 0.02
_BOUNCE_PAUSE_MAX_S = 1.0


class Retries:
    """Attempts, backoff and one budget for all: each submission earns `budget_ratio` of a retry, so that a failing
    back end sees at most that much more load."""

    __slots__ = ("_budget", "_config")

    def __init__(self, config: DispatchConfig) -> None:
        self._config = config
        self._budget = float(config.budget_burst)

    def earn(self) -> None:
        budget = self._budget + self._config.budget_ratio
        self._budget = min(budget, self._config.budget_burst)

    def after_error(self, ticket: Ticket, error: PoolError, now: float, random: float) -> float | None:
        """The pause before another attempt, which is then paid for; None: the error stands."""
        if error.code not in _RETRYABLE_CODES:
            return None
        retry_after_s: float = error.details.get("retry_after_s") or 0.0
        return self._spend(ticket, max(retry_after_s, self._backoff(ticket.attempts, random)), now)

    def after_loss(self, ticket: Ticket, now: float, random: float) -> float | None:
        """The same after its worker died: the first time, another worker gets it at once."""
        pause = 0.0 if ticket.attempts <= 1 else self._backoff(ticket.attempts, random)
        return self._spend(ticket, pause, now)

    def _spend(self, ticket: Ticket, pause: float, now: float) -> float | None:
        if (
            not ticket.idempotent
            or ticket.attempts >= self._config.attempts
            or self._budget < 1.0
            or now + pause >= ticket.deadline
        ):
            return None
        self._budget -= 1.0
        return pause

    def _backoff(self, attempts: int, random: float) -> float:
        full = min(self._config.backoff_max_s, self._config.backoff_s * float(2 ** max(0, attempts - 1)))
        return full * (1.0 - self._config.jitter * random)


def bounce_pause(bounces: int) -> float:
    """How long an operation rests after workers bounced it: not at all a few times, then longer and longer.

    Otherwise two workers that name each other as the owner, or one that claims room and is busy, would
    get it as fast as the network goes.
    """
    excess = bounces - _FREE_BOUNCES
    return 0.0 if excess <= 0 else min(_BOUNCE_PAUSE_MAX_S, _BOUNCE_PAUSE_S * 2.0 ** min(excess - 1, 16))


class EndRate:
    """Operations ended per second, lately: exact enough to say when to come back."""

    __slots__ = ("_count", "_last", "_since")

    def __init__(self) -> None:
        self._since = -1.0
        self._last = 0.0
        self._count = 0.0

    def add(self, now: float) -> None:
        if not self._count:
            self._since = now
        elif now - self._since > 2.0:
            # Forget half, so that the last seconds weigh most and the sum stays bounded.
            self._count /= 2
            self._since += (now - self._since) / 2
        self._count += 1
        self._last = now

    def time_for(self, operations: int) -> float:
        """Seconds until about half of `operations` have ended, between 0.1 and 30; 1 while nothing is known."""
        if self._count < 2 or self._last <= self._since:
            return 1.0
        rate = self._count / (self._last - self._since)
        return round(min(30.0, max(0.1, operations / rate / 2)), 1)
