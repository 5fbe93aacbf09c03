"""Everything that dspool raises, one tree.

PoolError
├── ConfigError            the configuration was refused; says which value
├── CallerError            the request cannot succeed as it is; outcome "client_error"
│   ├── InvalidRequest     a missing, unknown or mistyped field; a bad program spec
│   ├── PayloadTooLarge    the request is larger than the configured limit
│   ├── NotAllowed         the configuration or the caller's role forbids it
│   ├── Unauthenticated    no access token, or not one of ours
│   ├── PoisonRequest      the workers that had this request died, one after another; refused for a time
│   ├── QuotaExceeded      more kept in the store than the caller, or the whole pool, may have
│   ├── KeyReused          an idempotency key was used for another request
│   ├── Conflict           it clashes with what is there (name taken, size being changed)
│   │   ├── InProgress     the first request with an idempotency key has not ended yet
│   │   └── OutcomeUnknown the first request with an idempotency key was lost with its server: it may have run
│   ├── UnknownName        nothing of that name
│   │   ├── UnknownPool
│   │   ├── UnknownProgram
│   │   ├── UnknownSession (never created, ended or expired)
│   │   └── UnknownWorker
├── Rejected               refused before any work was done, safe to retry; outcome "rejected"
│   ├── QueueFull
│   ├── RateLimited        more than the caller's rate or quota
│   ├── PoolPaused
│   ├── PoolNotReady       no warm worker
│   ├── PoolClosed
│   └── TooManySessions
├── DeadlineExceeded       the operation's deadline passed, in the queue or while running; outcome "timeout"
├── Cancelled              the caller went away or asked for it; outcome "cancelled"
├── ModelError             the LM back end refused or failed (status, retry_after_s)
│   ├── ModelUnreachable
│   ├── ModelRateLimited
│   ├── ModelAuthFailed
│   └── ModelRefused       the model gave no answer, or a cut one: refused, filtered or truncated (reason, refusal)
├── ProgramError           the program raised, or its answer did not fit its signature
├── SandboxUnavailable     there is no sandbox to run code in
├── WorkerLost             the worker died after the operation had started
├── WorkerStartFailed      a worker could not be started or warmed
├── ChangeWentBack         `dspool apply --gradual` took a change back by itself
├── Unreachable            a remote pool does not answer; it may have done the work
│   └── IngressFailed      its proxy answers, and what is behind that does not
├── StaleLease             a worker whose lease on a session is old tried to use it
├── StoreFailed            the session store could not commit
└── InternalError          a defect in dspool
"""

from __future__ import annotations

import asyncio
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dspool import raised as told
from dspool.raised import place_of as place_of
from dspool.raised import type_of as type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Outcome = Literal["ok", "client_error", "error", "timeout", "rejected", "cancelled"]

_by_code: dict[str, type[PoolError]] = {}
_LIKE_NAMES, _LIKE_LETTERS = 30, 32
"""How much a suggestion looks at."""


class PoolError(Exception):
    """The root. `code` is stable: it goes over the wire and into HTTP problem types.

    `details` holds plain JSON values only and never user content (prompts, answers, keys).
    """

    code: ClassVar[str] = "pool_error"
    outcome: ClassVar[Outcome] = "error"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # The first wins: Ray makes a subclass of its own of each error that an actor raises.
        _by_code.setdefault(cls.code, cls)

    def __getattr__(self, name: str) -> Any:
        # `error.retry_after_s` reads details["retry_after_s"].
        details = self.__dict__.get("details", {})
        if name in details:
            return details[name]
        like = "" if name.startswith("_") else suggestion(name, details)
        raise AttributeError(f"{type(self).__name__} has no detail {name}{like}")

    def __reduce__(self) -> tuple[Any, ...]:
        if "code" in self.__dict__:
            return (from_wire, (self.to_wire(),))
        return (_rebuild, (type(self), self.message, self.details))

    def to_wire(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "details": self.details}


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean answer?` if one of `known` is like `name`; else nothing. For the end of a message.

    Callers choose names of both kinds, and to compare two takes the product of their lengths: the start of those that
    are about as long is looked at, of others nothing.
    """
    from difflib import get_close_matches  # it is needed only when something is wrong

    near = nsmallest(_LIKE_NAMES, known, key=lambda one: abs(len(one) - len(name)))
    starts = {one[:_LIKE_LETTERS]: one for one in reversed(near)}
    close = get_close_matches(name[:_LIKE_LETTERS], list(starts), n=1)
    return f"; did you mean {starts[close[0]]}?" if close else ""


def from_wire(data: dict[str, Any]) -> PoolError:
    """The error that `to_wire` described; one with an unknown code is a plain `PoolError` that has it."""
    code = data.get("code", PoolError.code)
    error = _rebuild(_by_code.get(code, PoolError), data.get("message", ""), data.get("details") or {})
    if error.code != code:
        error.__dict__["code"] = code
    return error


def _rebuild(kind: type[PoolError], message: str, details: dict[str, Any]) -> PoolError:
    return kind(message, **details)


class ConfigError(PoolError):
    code = "config_error"
    outcome = "client_error"


class CallerError(PoolError):
    code = "caller_error"
    outcome = "client_error"


class InvalidRequest(CallerError):
    code = "invalid_request"


class PayloadTooLarge(CallerError):
    code = "payload_too_large"


class PoisonRequest(CallerError):
    code = "poison_request"


class QuotaExceeded(CallerError):
    """`limit` names the setting, `most` is its value, `scope` is "principal" or "pool". Waiting alone does not help."""

    code = "quota_exceeded"


class NotAllowed(CallerError):
    code = "not_allowed"


class Unauthenticated(CallerError):
    code = "unauthenticated"


class KeyReused(CallerError):
    code = "idempotency_key_reused"


class Conflict(CallerError):
    code = "conflict"


class InProgress(Conflict):
    code = "idempotency_in_progress"


class OutcomeUnknown(Conflict):
    code = "idempotency_outcome_unknown"


class UnknownName(CallerError):
    code = "unknown_name"


class UnknownPool(UnknownName):
    code = "unknown_pool"


class UnknownProgram(UnknownName):
    code = "unknown_program"


class UnknownSession(UnknownName):
    code = "unknown_session"


class UnknownWorker(UnknownName):
    code = "unknown_worker"


class Rejected(PoolError):
    """Refused before any work was done. `retry_after_s` says when trying again makes sense."""

    code = "rejected"
    outcome = "rejected"


class QueueFull(Rejected):
    code = "queue_full"


class RateLimited(Rejected):
    code = "rate_limited"


class PoolPaused(Rejected):
    code = "pool_paused"


class PoolNotReady(Rejected):
    code = "pool_not_ready"


class PoolClosed(Rejected):
    code = "pool_closed"


class TooManySessions(Rejected):
    code = "too_many_sessions"


class DeadlineExceeded(PoolError):
    """`phase` is "queue" or "run": whether the operation had started."""

    code = "deadline_exceeded"
    outcome = "timeout"


class Cancelled(PoolError):
    code = "cancelled"
    outcome = "cancelled"


class ModelError(PoolError):
    """`status` is the back end's HTTP status, if there was one; `retry_after_s` if it asked for a pause."""

    code = "model_error"


class ModelUnreachable(ModelError):
    code = "model_unreachable"


class ModelRateLimited(ModelError):
    code = "model_rate_limited"


class ModelAuthFailed(ModelError):
    code = "model_auth_failed"


class ModelRefused(ModelError):
    """`reason` is "refused", "filtered" (by the provider's content filter) or "truncated" (at `max_tokens`).

    `refusal` is what the model itself says, where it says anything: an answer, so for the caller and for no log.
    """

    code = "model_refused"


class ProgramError(PoolError):
    """`exception` is the type that the author's code raised, `at` the author's line (`shop.basic:56`), and `text`, if
    it may be told, what the exception says: see `dspool.raised`. The message itself quotes nobody.
    """

    code = "program_error"

    @classmethod
    def of(
        cls,
        raised: BaseException,
        what: str = "the program",
        *,
        loading: bool = False,
        hide: Callable[[str], str] = str,
    ) -> ProgramError:
        """For anything that foreign code raised. While `loading` there is no user's content, and all texts are told.

        Raises nothing: it uses none of the exception's own methods and attributes, but for its text.
        """
        kind, place = type_of(raised), told.own_place_of(raised)
        details = {"exception": kind, "at": place}
        if text := told.text_of(raised, whole=loading, hide=hide):
            details["text"] = text
        return cls(f"{what} raised {kind} at {place}", **details)

    def __str__(self) -> str:
        text = self.details.get("text")
        # One that came over HTTP has it in its message.
        return f"{self.message}: {text}" if text and not self.message.endswith(text) else self.message


class SandboxUnavailable(PoolError):
    code = "sandbox_unavailable"


class WorkerLost(PoolError):
    code = "worker_lost"


class WorkerStartFailed(PoolError):
    code = "worker_start_failed"


class ChangeWentBack(PoolError):
    code = "change_went_back"


class Unreachable(PoolError):
    code = "unreachable"


class IngressFailed(Unreachable):
    code = "ingress_failed"


class StaleLease(PoolError):
    code = "stale_lease"


class StoreFailed(PoolError):
    code = "store_failed"


class InternalError(PoolError):
    code = "internal_error"


def is_own(raised: BaseException) -> bool:
    """Whether it is one of the errors above, and not of a type that foreign code derived from them."""
    return type(raised) in _own


def is_cancellation(raised: BaseException) -> bool:
    """Whether somebody cancelled the running task. Any program can raise `CancelledError` by itself."""
    task = asyncio.current_task() if issubclass(type(raised), asyncio.CancelledError) else None
    return task is not None and task.cancelling() > 0


_own = frozenset(
    kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, PoolError)
)
