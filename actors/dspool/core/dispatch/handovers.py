"""Affinity `prefer`: which sessions may be asked back from a full owner now."""

from __future__ import annotations

import math

from msgspec import Struct

PAUSE_S = 1.0
"""Between two requests for the same session."""
PATIENCE_S = 5.0
"""An answer that takes longer will not come."""


class _Request(Struct):
    worker: str
    asked_at: float
    open: bool = True

    @property
    def until(self) -> float:
        return self.asked_at + (PATIENCE_S if self.open else PAUSE_S)


class Handovers:
    """The requests that still matter: unanswered, or made less than a pause ago."""

    __slots__ = ("_requests", "open")

    def __init__(self) -> None:
        self._requests: dict[str, _Request] = {}
        """By session, in the order in which they were made."""
        self.open = 0
        """How many are unanswered."""

    def __len__(self) -> int:
        return len(self._requests)

    def ask(self, session: str, worker_id: str, now: float) -> float:
        """-inf and the request counts as made, or the time from which on it may be."""
        request = self._requests.get(session)
        if request is not None:
            if now < request.until:
                return request.until
            self._forget(session)
        self._requests[session] = _Request(worker_id, now)
        self.open += 1
        return -math.inf

    def answered(self, session: str, worker_id: str) -> bool:
        """False if nothing was asked of this worker, or too long ago."""
        request = self._requests.get(session)
        if request is None or not request.open or request.worker != worker_id:
            return False
        request.open = False
        self.open -= 1
        return True

    def gone(self, worker_id: str) -> None:
        """The worker will not answer any more. The pause holds, whoever owns the session next."""
        for request in self._requests.values():
            if request.worker == worker_id and request.open:
                request.open = False
                self.open -= 1

    def expire(self, now: float) -> None:
        """Forget what no longer matters. What lies behind a slow answer waits for it: `ask` goes by its own time."""
        while self._requests:
            session, request = next(iter(self._requests.items()))
            if now < request.until:
                return
            self._forget(session)

    def next_expiry(self) -> float:
        """When `expire` has something to do; inf if never."""
        return next(iter(self._requests.values())).until if self._requests else math.inf

    def _forget(self, session: str) -> None:
        self.open -= self._requests.pop(session).open
