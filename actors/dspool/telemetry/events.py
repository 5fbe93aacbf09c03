"""Events: facts about the running system, for whoever attaches a handler in this process.

`EVENTS` is the table of all of them. Without a handler, emitting costs a dictionary look-up. A handler never hurts the
code that emits: one that raises is detached and reported.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from dspool.errors import PoolError, from_wire, type_of

T = TypeVar("T")

Handler = Callable[[str, Mapping[str, float], Mapping[str, Any]], None]
"""Called as `handler(event, measurements, metadata)` in the emitting thread; it must be quick and must not block."""


class Event(NamedTuple):
    """One row of the table. `measurements` gives the unit by name; `metadata` lists the keys that may come.

    Metadata holds names, ids and numbers, never prompts, answers, variables or keys; sessions only as `session_hash`.
    """

    name: str
    meaning: str
    measurements: dict[str, str]
    metadata: tuple[str, ...]
    level: int = logging.DEBUG


_OPERATION = ("pool", "program", "command", "operation_id", "session_hash", "worker", "slot", "trace_id")
_WORKER = ("pool", "worker", "slot")

_ROWS = (
    Event(
        "pool.init", "a pool began to serve", {"duration_s": "s", "size": "workers"}, ("pool",), logging.INFO
    ),
    Event("pool.terminate", "a pool was shut down", {"duration_s": "s"}, ("pool", "reason"), logging.INFO),
    Event(
        "pool.warmup",
        "a warm-up of several workers ended",
        {"duration_s": "s", "workers": "workers", "failed": "workers"},
        ("pool", "strategy", "outcome"),
        logging.INFO,
    ),
    Event(
        "pool.resize",
        "the desired size changed",
        {"from": "workers", "to": "workers", "overflow": "workers"},
        ("pool", "reason", "action"),
        logging.INFO,
    ),
    Event(
        "pool.decision",
        "the pool decided on its size; a decision that repeats the one before is reported once",
        {"target": "workers", "overflow": "workers", "previous": "workers"},
        ("pool", "action", "reason", "source", "numbers"),
        logging.INFO,
    ),
    Event(
        "pool.utilization",
        "slot-seconds used in the last metrics interval",
        {"utilization": "ratio", "busy_s": "s", "capacity_s": "s"},
        ("pool",),
    ),
    Event(
        "pool.error",
        "a worker died or could not be started, or the pool met another error of its own",
        {"count": "errors"},
        ("pool", "worker", "slot", "code", "reason"),
        logging.ERROR,
    ),
    Event(
        "pool.recovery",
        "a dead worker was replaced by a warm one",
        {"duration_s": "s"},
        (*_WORKER, "replaced", "reason"),
        logging.WARNING,
    ),
    Event("worker.init", "a worker is warm", {"duration_s": "s"}, (*_WORKER, "overflow"), logging.INFO),
    Event(
        "worker.fallback",
        "a worker was started by exec because it could not be forked",
        {"count": "workers"},
        (*_WORKER, "reason"),
        logging.WARNING,
    ),
    Event(
        "worker.unshared",
        "a forked worker loaded by itself what it was to share with others",
        {"count": "workers"},
        (*_WORKER, "reason"),
        logging.WARNING,
    ),
    Event(
        "worker.loop_blocked",
        "code of a program held an event loop, which could do nothing else meanwhile; reported at its end",
        {"duration_s": "s"},
        (*_WORKER, "program", "operation_id", "file", "line", "function"),
        logging.WARNING,
    ),
    Event(
        "worker.terminate",
        "a worker ended",
        {"age_s": "s", "operations": "operations"},
        (*_WORKER, "reason"),
        logging.INFO,
    ),
    Event("worker.checkout", "an operation got a slot", {"wait_s": "s"}, _OPERATION),
    Event("worker.checkin", "an operation gave its slot back", {"held_s": "s"}, _OPERATION),
    Event(
        "worker.health_check",
        "a worker's health was asked for",
        {"duration_s": "s", "failures": "checks"},
        (*_WORKER, "outcome", "reason"),
    ),
    Event("operation.start", "an operation was submitted", {}, _OPERATION),
    Event(
        "operation.stop",
        "an operation ended; its only terminal record",
        {"duration_s": "s", "wait_s": "s", "run_s": "s", "attempts": "attempts"},
        (*_OPERATION, "outcome", "code"),
    ),
    Event(
        "operation.exception",
        "an operation raised",
        {"duration_s": "s"},
        (*_OPERATION, "outcome", "code"),
        logging.INFO,
    ),
    Event("queue.depth", "operations that wait for a slot", {"queued": "operations"}, ("pool",)),
    Event(
        "limit.refused",
        "a limit on what somebody may keep or ask for refused requests; reported at most once a second",
        {"count": "requests"},
        ("pool", "limit"),
        logging.INFO,
    ),
    Event("session.created", "a session began", {}, ("pool", "session_hash", "worker"), logging.INFO),
    Event(
        "session.moved",
        "a session was rebuilt on another worker",
        {"duration_s": "s", "items": "changes"},
        ("pool", "session_hash", "worker", "from_worker", "reason"),
        logging.INFO,
    ),
    Event(
        "session.expired",
        "a session was idle for too long",
        {"idle_s": "s"},
        ("pool", "session_hash"),
        logging.INFO,
    ),
    Event(
        "session.lost",
        "a session could not be rebuilt",
        {"count": "sessions"},
        ("pool", "session_hash", "worker", "code"),
        logging.ERROR,
    ),
    Event(
        "store.serving",
        "a session store began to serve its pool",
        {"epoch": "epoch"},
        ("pool", "node"),
        logging.INFO,
    ),
    Event(
        "store.replaced",
        "a session store saw that another one serves its pool, and ended",
        {},
        ("pool", "reason"),
        logging.ERROR,
    ),
    Event(
        "program.deployed",
        "a version of a pool program is on all workers",
        {"duration_s": "s", "workers": "workers"},
        ("pool", "program", "version"),
        logging.INFO,
    ),
    Event(
        "program.canary",
        "a new version was tried on one worker",
        {
            "duration_s": "s",
            "operations": "operations",
            "error_rate": "ratio",
            "run_s": "s",
            "error_rate_before": "ratio",
            "run_s_before": "s",
        },
        ("pool", "program", "version", "worker", "action", "reason"),
        logging.INFO,
    ),
    Event(
        "program.saved_elsewhere",
        "a pool program or its state was saved with another Python or DSPy than the worker has that loads it",
        {"count": "versions"},
        ("pool", "program", "version", "reason"),
        logging.WARNING,
    ),
    Event(
        "program.source_changed",
        "a new worker has other source than the current version of a pool program is made of; `reason` says whether it "
        "stays out, or what version that is now",
        {"modules": "modules"},
        ("pool", "program", "version", "worker", "reason"),
        logging.WARNING,
    ),
    Event(
        "telemetry.handler_failed",
        "a handler raised and was detached",
        {"count": "handlers"},
        ("handler", "event", "error"),
        logging.ERROR,
    ),
)

EVENTS: dict[str, Event] = {event.name: event for event in _ROWS}
"""All events there are, by name."""

_log = logging.getLogger("dspool.telemetry")
_handlers: dict[str, tuple[Handler, ...]] = dict.fromkeys(EVENTS, ())


# --- attaching and emitting ---


def attach(handler: Handler, events: Iterable[str] = ("*",)) -> Handler:
    """Call `handler` for these events: names, "group.*", or "*" for all. Returns `handler`.

    Raises:
        ValueError: there is no such event.
    """
    names: set[str] = set()
    for pattern in events:
        group = pattern.removesuffix("*")
        matches = [
            name for name in EVENTS if (name.startswith(group) if group != pattern else name == pattern)
        ]
        if not matches:
            raise ValueError(f"no event is called {pattern!r}; there are: {', '.join(EVENTS)}")
        names.update(matches)
    for name in names:
        if handler not in _handlers[name]:
            _handlers[name] = (*_handlers[name], handler)
    return handler


def detach(handler: Handler) -> None:
    """Stop calling `handler` for any event; nothing happens if it is not attached."""
    for name, handlers in _handlers.items():
        if handler in handlers:
            _handlers[name] = tuple(other for other in handlers if other != handler)


def attached(event: str) -> bool:
    """Whether anybody listens: worth asking before computing costly measurements."""
    return bool(_handlers[event])


def emit(event: str, measurements: Mapping[str, float] = {}, metadata: Mapping[str, Any] = {}) -> None:
    """Tell all handlers of `event` (a key of `EVENTS`). Handlers must not change the mappings."""
    handlers = _handlers.get(event)
    if handlers is None:
        _log.error("no event is called %r: nobody was told", event)
        return
    for handler in handlers:
        try:
            handler(event, measurements, metadata)
        except BaseException as failed:  # observing never hurts
            _drop(handler, event, failed)


def _drop(handler: Handler, event: str, failed: BaseException) -> None:
    detach(handler)
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
    # The type only: the text of an exception may quote the handler's arguments.
    error = type_of(failed)
    _log.error("telemetry handler %s raised %s at %s and was detached", name, error, event)
    emit("telemetry.handler_failed", {"count": 1}, {"handler": name, "event": event, "error": error})


def undeclared(event: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> set[str]:
    """The names that the table lacks for `event`; tests hold emitters to the table."""
    row = EVENTS[event]
    return (set(measurements) - set(row.measurements)) | (set(metadata) - set(row.metadata))


# --- spans ---


class Span:
    """A block of code: `prefix.start` at its beginning, `prefix.stop` or `prefix.exception` at its end.

    For `with` and `async with` alike. `span.result(value)` passes `value` through and takes the outcome from it: an
    error that the code returns instead of raising is not "ok".
    """

    __slots__ = ("_began", "_clock", "code", "measurements", "metadata", "outcome", "prefix")

    def __init__(self, prefix: str, metadata: Mapping[str, Any], clock: Callable[[], float]) -> None:
        self.prefix = prefix
        self.metadata = dict(metadata)
        """Metadata of the end event; the code inside may add to it."""
        self.measurements: dict[str, float] = {}
        """As `metadata`."""
        self.outcome = "ok"
        self.code: str | None = None
        self._clock = clock
        self._began = clock()

    def result(self, value: T) -> T:
        """`value` is the code's result: an exception, or something with an `error`, decides the outcome."""
        error = value if isinstance(value, BaseException) else getattr(value, "error", None)
        if error:
            self.outcome, self.code = outcome_of(error)
        return value

    def __enter__(self) -> Span:
        emit(f"{self.prefix}.start", {}, self.metadata)
        self._began = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end = "stop"
        if raised is not None:
            end = "exception"
            self.outcome, self.code = outcome_of(raised)
        measurements = {"duration_s": self._clock() - self._began, **self.measurements}
        emit(
            f"{self.prefix}.{end}",
            measurements,
            {**self.metadata, "outcome": self.outcome, "code": self.code},
        )

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, raised, traceback)


class _Unobserved(Span):
    """The span when no handler is attached: it still has the outcome, but emits nothing and reads no clock."""

    __slots__ = ()

    def __init__(self) -> None:
        self.metadata = {}
        self.measurements = {}
        self.outcome = "ok"
        self.code = None

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if raised is not None:
            self.outcome, self.code = outcome_of(raised)


def span(prefix: str, metadata: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic) -> Span:
    """A `Span` over `prefix.start`, `prefix.stop` and `prefix.exception`, which must be in `EVENTS`.

    Raises:
        KeyError: they are not.
    """
    if _handlers[f"{prefix}.start"] or _handlers[f"{prefix}.stop"] or _handlers[f"{prefix}.exception"]:
        return Span(prefix, metadata, clock)
    return _Unobserved()


def outcome_of(error: BaseException | Mapping[str, Any]) -> tuple[str, str | None]:
    """(outcome, code) of a raised or returned error, or of a `PoolError.to_wire()` mapping."""
    if isinstance(error, Mapping):
        error = from_wire(dict(error))
    if isinstance(error, PoolError):
        try:
            return error.outcome, error.code
        except BaseException:  # a program's own kind of PoolError runs code of its own
            return "error", type_of(error)
    if isinstance(error, asyncio.CancelledError):
        return "cancelled", None
    if isinstance(error, TimeoutError):
        return "timeout", None
    return "error", type_of(error)
