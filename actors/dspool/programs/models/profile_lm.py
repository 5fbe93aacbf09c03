"""The LM of a profile behind HTTP: when a call of it may go out, and when it is tried again."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import dspy
from dspy.clients.call_context import StreamProgress, adapter_fallback_scope
from dspy.utils import exceptions as lm_errors

from dspool.errors import Cancelled
from dspool.programs.models.operation import OperationScope, current, current_profile
from dspool.proxies import proxy_for

_BACKOFF_S: Final = 0.25
"""Pause before the second try, about; doubles each time. A back end's own `Retry-After` counts more."""
_RATE_LIMIT_TRIES: Final = 10
"""Tries after 429s that say how long to wait."""
_LONGEST_PAUSE_S: Final = 3600.0
"""Whatever a back end asks for: one wrong answer must not end a profile for as long as its worker lives."""
_TRANSIENT_STATUS: Final = frozenset({408, 409, 425})
"""Besides 429 and all from 500: the back end was busy with something else, or waited for us."""


class RateGate:
    """The rate limit of one profile as a worker knows it: until when the back end wants no calls."""

    def __init__(self, max_wait_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_wait_s = max_wait_s
        self._clock = clock
        self._silent_until = 0.0

    def pause_for(self, retry_after_s: float | None) -> None:
        """Record a 429 that asks for a pause of `retry_after_s` seconds."""
        if retry_after_s is not None and math.isfinite(retry_after_s):
            pause_s = min(retry_after_s, _LONGEST_PAUSE_S)
            self._silent_until = max(self._silent_until, self._clock() + pause_s)

    def pause_s(self) -> float:
        """Seconds until calls may go out; 0 when they may now."""
        return max(0.0, self._silent_until - self._clock())


class ModelCounts:
    """What the calls of a worker's models came to. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, what: str) -> None:
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + 1

    def take(self) -> dict[str, int]:
        """The counts since the last time."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts


class ProfileLM(dspy.LM):
    """An LM behind HTTP that tries again what may go better then, and stops when its operation is cancelled.

    That is a 429, a 5xx (also 408, 409, 425) and a connection that broke off: after `Retry-After`, or a short pause and
    at most `attempts` tries in all, while the pauses of one call add up to no more than `max_rate_limit_wait_s`, end
    before the operation's deadline, and nothing of the answer was streamed. After a 429 whose pause is longer, the
    calls that follow within it fail without being sent.
    """

    gate: RateGate
    profile: str
    attempts: int
    counts: ModelCounts

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        scope = current()
        stop = None if scope is None else scope.stop
        tries = _Tries(self, scope)
        while True:
            if stop is not None and stop.is_set():
                raise Cancelled("the operation was cancelled before its next LM call")
            if pause_s := tries.pause_s():
                stop.wait(pause_s) if stop is not None else time.sleep(pause_s)
                continue
            with self._sent() as progress:
                try:
                    return super().__call__(prompt, messages=messages, **kwargs)
                except dspy.LMError as failed:
                    tries.failed(failed, progress)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        tries = _Tries(self, current())
        while True:
            if pause_s := tries.pause_s():
                await asyncio.sleep(pause_s)
                continue
            with self._sent() as progress:
                try:
                    return await super().acall(prompt, messages=messages, **kwargs)
                except dspy.LMError as failed:
                    tries.failed(failed, progress)

    @contextmanager
    def _sent(self) -> Iterator[StreamProgress]:
        token = current_profile.set(self.profile)
        try:
            with adapter_fallback_scope() as progress:
                yield progress
        finally:
            current_profile.reset(token)


class _Tries:
    """The tries of one call."""

    def __init__(self, lm: ProfileLM, scope: OperationScope | None) -> None:
        self._lm = lm
        self._deadline = math.inf if scope is None else scope.deadline
        self._made = 0
        self._pauses_s = 0.0
        self._pause_s = 0.0
        self._last: lm_errors.LMError | None = None

    def pause_s(self) -> float:
        """Seconds to wait now; 0: send it. Raises the last error if there is no time for that."""
        pause_s = max(self._pause_s, self._lm.gate.pause_s())
        if not pause_s:
            return 0.0
        self._pause_s = 0.0
        too_long = self._pauses_s + pause_s > self._lm.gate.max_wait_s
        if too_long or time.monotonic() + pause_s >= self._deadline:
            if self._last is not None:
                raise self._last
            limited = lm_errors.LMRateLimitError(
                "rate limited", model=self._lm.model, status=429, retry_after=round(pause_s, 3)
            )
            limited.profile = self._lm.profile
            raise limited
        self._pauses_s += pause_s
        return pause_s

    def failed(self, error: lm_errors.LMError, progress: StreamProgress) -> None:
        """Raises `error`, which then says how many tries there were (`attempts`), unless it is worth another one."""
        self._made += 1
        error.proxy = proxy_for(self._lm.kwargs.get("api_base"))
        error.attempts = self._made
        error.profile = self._lm.profile
        self._last = error
        asked_s = error.retry_after
        if isinstance(error, lm_errors.LMRateLimitError):
            self._lm.gate.pause_for(asked_s)
        most = _RATE_LIMIT_TRIES if asked_s and error.status == 429 else self._lm.attempts
        if progress.emitted or not is_transient(error) or self._made >= most:
            raise error
        self._pause_s = asked_s or _BACKOFF_S * 2 ** (self._made - 1) * random.uniform(0.5, 1.5)
        self._lm.counts.add("retries")


def is_transient(error: lm_errors.LMError) -> bool:
    """Whether the same call may go better in a moment. A back end that took its whole time once will do so again."""
    if isinstance(error, lm_errors.LMRateLimitError):
        return True
    if error.status is not None:
        return error.status >= 500 or error.status in _TRANSIENT_STATUS
    return isinstance(error, lm_errors.LMTransportError) and not timed_out(error)


def timed_out(error: BaseException) -> bool:
    """Whether a transport error is a timeout (the engine has one class for all of them)."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__.endswith("Timeout"):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
