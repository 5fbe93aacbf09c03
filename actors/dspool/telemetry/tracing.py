"""Traces of operations: one from the HTTP request through queue, worker, DSPy and model calls, across processes.

The process that an operation enters decides once whether to trace it; the decision travels as W3C `traceparent`. An
untraced operation costs a random number: no span object exists for it anywhere.
"""

from __future__ import annotations

import os
import random
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from dspool.config import PoolConfig
from dspool.core.metrics.error_groups import kind_of
from dspool.errors import PoolError, from_wire
from dspool.messages import Operation
from dspool.telemetry import trace_names as names
from dspool.telemetry.events import outcome_of
from dspool.telemetry.pseudonyms import session_hash

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from dspool.telemetry.trace_export import Batches

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
NOT_TRACED: Final = ""
"""As a traceparent: the process that the operation entered has decided against tracing it."""
LONGEST_ATTRIBUTE: Final = 16_384
"""Characters; captured content and what programs add may be longer."""
_CALLERS: Final = 1024
"""Principals whose wishes to be traced are counted at once."""
_FAILED_OUTCOMES: Final = frozenset({"error", "timeout"})


class Active:
    """The traced operation that the calling code works for."""

    __slots__ = ("operation", "span", "tracing")

    def __init__(self, tracing: Tracing, span: Span, operation: Operation) -> None:
        self.tracing, self.span, self.operation = tracing, span, operation


_active: ContextVar[Active | None] = ContextVar("dspool_traced", default=None)
active: Callable[[], Active | None] = _active.get
"""The traced operation of this task or thread; None for almost all."""


def clock_offset_ns(
    wall: Callable[[], int] = time.time_ns,
    monotonic: Callable[[], int] = time.monotonic_ns,
    *,
    looks: int = 5,
) -> int:
    """What to add to monotonic nanoseconds to have wall-clock ones, as long as nobody sets the clock.

    A process may lose its processor between two looks, and spans of several processes would be out of order by as much:
    of several pairs the one that took the shortest counts.
    """
    offsets = []
    for _ in range(looks):
        before, at, after = monotonic(), wall(), monotonic()
        offsets.append((after - before, at - (before + after) // 2))
    return min(offsets)[1]


class Tracing:
    """Makes and exports the spans of one process for one pool. Safe to use from any thread."""

    def __init__(
        self,
        config: PoolConfig,
        role: str,
        *,
        processor: Batches | None = None,
        dice: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`role` is the process ("client", "http", a worker id); it names the file of its spans."""
        self.pool = config.name
        self.capture_content = config.telemetry.capture_content
        self._config, self._role = config, role
        self._share, self._dice = config.telemetry.sampling, dice
        self._clock, self._limit = clock, config.telemetry.max_traces_per_s
        self._all = _Credit(self._limit, clock())
        self._callers: OrderedDict[str | None, _Credit] = OrderedDict()
        self._processor = processor
        self._provider: TracerProvider | None = None
        self._tracer: Any = None
        self._off = False
        self._lock = threading.Lock()
        # Spans have wall times; this maps our monotonic times to them.
        self._offset_ns = clock_offset_ns()

    @property
    def dropped(self) -> int:
        """Spans that could not be exported."""
        return self._processor.dropped if self._processor is not None else 0

    def prepare(self) -> None:
        """Load the SDK and make the exporters now, so that the first traced operation need not (70 ms)."""
        if self._tracer is None and not self._off:
            with self._lock:
                if self._tracer is None and not self._off:
                    self._open()

    def should_trace(self, traceparent: str | None) -> bool:
        """Whether to trace an operation: as its parent if it has one, else by `telemetry.sampling`. The parent is one
        of ours, or was named by code of this process; for what comes from elsewhere ask `admits`.
        """
        if self._off or traceparent == NOT_TRACED:
            return False
        if traceparent is not None:
            match = _TRACEPARENT.fullmatch(traceparent)
            if match is not None:
                return bool(int(match[3], 16) & 1)
        return self._share > 0.0 and self._dice() < self._share and self._all.take(self._clock())

    def admits(self, traceparent: str | None, principal: str | None) -> bool:
        """Whether to trace an operation that `principal` sent: as `should_trace`, and never more than
        `telemetry.max_traces_per_s`, of which the wishes of one principal take at most half.
        """
        if trace_id_of(traceparent) is None:
            return self.should_trace(None)
        return self.should_trace(traceparent) and self.admits_more(traceparent, principal)

    def admits_more(self, traceparent: str | None, principal: str | None) -> bool:
        """Whether one more operation goes into the trace that `admits` allowed: it costs as much as the first."""
        wished = trace_id_of(traceparent) is not None
        return (not wished or self._caller(principal)) and self._all.take(self._clock())

    def trusts(self, principal: str | None) -> bool:
        """Whether the trace that `principal` names is continued. Without access tokens there is only one principal."""
        return principal is None or self._config.telemetry.trust_traceparent

    def start(
        self,
        name: str,
        attributes: Mapping[str, Any],
        *,
        parent: str | Span | None = None,
        kind: str = "INTERNAL",
        at: float | None = None,
        link: str | None = None,
    ) -> Span | None:
        """A span that began `at` (monotonic seconds; None: now) below `parent`: a traceparent, a span, or None for the
        current one. `link` is a traceparent that it points to. End it with `end`. None when tracing is off.
        """
        self.prepare()
        if self._off:
            return None
        from opentelemetry import trace

        if isinstance(parent, str):
            context = _remote(parent)
        else:
            context = None if parent is None else trace.set_span_in_context(parent)
        span: Span = self._tracer.start_span(
            name,
            context,
            kind=trace.SpanKind[kind],
            attributes={key: value for key, value in attributes.items() if value is not None},
            links=None if link is None else _links(link),
            start_time=None if at is None else self._ns(at),
        )
        return span

    def end(
        self, span: Span, *, error: BaseException | Mapping[str, Any] | None = None, at: float | None = None
    ) -> None:
        """End a span; with `error` it failed. The span keeps the error's code, the type that a program raised and its
        line: texts may quote the user."""
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            outcome, code = outcome_of(error)
            span.set_attribute(names.OUTCOME, outcome)
            span.set_attribute(names.ERROR_TYPE, code or outcome)
            for name, text in _raised(error).items():
                span.set_attribute(name, text)
            if outcome in _FAILED_OUTCOMES:
                span.set_status(Status(StatusCode.ERROR))
        span.end(None if at is None else self._ns(at))

    def resume(self, operation: Operation, *, worker: str, at: float) -> Active | None:
        """In a worker: start the span of its part of `operation`, if that is traced."""
        parent = operation.traceparent
        if parent is None or not parent.endswith("1") or not self.should_trace(parent):
            return None
        command = operation.command
        tag = str(type(command).__struct_config__.tag)
        # Users name a session's programs.
        program = getattr(command, "program", None) if operation.session is None else None
        attributes = {
            **operation_attributes(operation, self.pool, tag, program),
            names.POOL: self._config.name,
            names.WORKER: worker,
        }
        name = names.WORK.format(command=tag)
        span = self.start(name, attributes, parent=parent, kind="SERVER", at=at)
        return None if span is None else Active(self, span, operation)

    def flush(self) -> None:
        """Export the waiting spans. Blocks."""
        if self._processor is not None:
            self._processor.force_flush()

    def close(self) -> None:
        """Export the waiting spans and close. Blocks up to some seconds."""
        if self._processor is not None:
            self._processor.shutdown()

    def _caller(self, principal: str | None) -> bool:
        credit = self._callers.pop(principal, None)
        if credit is None:
            credit = _Credit(None if self._limit is None else self._limit / 2, self._clock())
        self._callers[principal] = credit
        while len(self._callers) > _CALLERS:
            self._callers.popitem(last=False)
        return credit.take(self._clock())

    def _open(self) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        from dspool.telemetry.trace_export import Batches, exporters

        if self._processor is None:
            span_exporters = exporters(self._config, f"{self._role}-{os.getpid()}")
            if not span_exporters:
                self._off = True
                return
            self._processor = Batches(span_exporters)
        resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", "dspool"),
                "service.instance.id": self._role,
                "process.pid": os.getpid(),
                "host.name": socket.gethostname(),
                names.POOL: self._config.name,
            }
        )
        # `ALWAYS_ON`: sampling is decided before there is a span. A provider of our own: an application keeps its own.
        limits = SpanLimits(max_span_attribute_length=LONGEST_ATTRIBUTE)
        self._provider = TracerProvider(
            resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False, span_limits=limits
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("dspool")

    def _ns(self, at: float) -> int:
        return int(at * 1e9) + self._offset_ns


class _Credit:
    """Traces that may begin: `rate` a second, after a while without one at most a second's worth at once."""

    def __init__(self, rate: float | None, now: float) -> None:
        self._rate, self._at = rate, now
        self._left = self._most = max(1.0, rate or 1.0)

    def take(self, now: float) -> bool:
        if self._rate is None:
            return True
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


@contextmanager
def inside(operation: Active) -> Iterator[None]:
    """Code in here works for `operation`: spans of DSPy, and of any library with OpenTelemetry, hang below it."""
    from opentelemetry import context, trace

    token = _active.set(operation)
    context_token = context.attach(trace.set_span_in_context(operation.span))
    try:
        yield
    finally:
        context.detach(context_token)
        _active.reset(token)


def operation_attributes(
    operation: Operation, pool: str, command: str, program: str | None
) -> dict[str, Any]:
    """The attributes that every span of an operation has."""
    session = operation.session
    return {
        names.OPERATION_ID: operation.id,
        names.COMMAND: command,
        names.PROGRAM: program,
        names.SESSION: None if session is None else session_hash(session, pool),
    }


def _raised(error: BaseException | Mapping[str, Any]) -> dict[str, str]:
    """What a program raised and where, as far as it is known, as attributes: names, and nothing that may quote."""
    if isinstance(error, Mapping):
        error = from_wire(dict(error))
    if not isinstance(error, PoolError):
        return {}
    try:
        kind = kind_of("", error)
    except BaseException:  # a program's own kind of PoolError runs code of its own
        return {}
    return {name: text for name, text in ((names.EXCEPTION, kind.exception), (names.AT, kind.at)) if text}


def traceparent_of(span: Span) -> str:
    """The W3C header that makes `span` the parent of what follows, in whatever process."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace's id; None when there is none."""
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    return None if match is None else match[1]


def not_sampled(traceparent: str) -> str:
    """The same trace, with the word that it is not traced here; the flags are its last two characters."""
    return f"{traceparent[:-2]}00"


def unsampled(traceparent: str | None) -> str | None:
    """`traceparent` if it is valid: callees must know of a decision against tracing."""
    return traceparent if trace_id_of(traceparent) is not None else None


def _remote(traceparent: str) -> Any:
    from opentelemetry import trace
    from opentelemetry.context import Context

    parent = _span_context(traceparent)
    return (
        Context() if parent is None else trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())
    )


def _links(traceparent: str) -> Any:
    from opentelemetry import trace

    context = _span_context(traceparent)
    return None if context is None else [trace.Link(context)]


def _span_context(traceparent: str) -> Any:
    from opentelemetry import trace

    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return None
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags)
