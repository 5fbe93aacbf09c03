"""Looking at a pool over HTTP: its metrics and events as JSON, and the span of each traced request."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dspool.core.metrics.measures import HistoryView, MetricsSnapshot
from dspool.errors import InternalError, PoolError, PoolNotReady
from dspool.telemetry import trace_names as names
from dspool.telemetry.event_log import EventPage
from dspool.telemetry.observation import MAX_PAGE, MAX_POLL_S
from dspool.telemetry.tracing import NOT_TRACED, Tracing, traceparent_of
from dspool_serve.http.bodies import number
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.problems import problem
from dspool_serve.http.requests import Request, Response
from dspool_serve.http.routing import Route

if TYPE_CHECKING:
    from dspool_serve.api.application import Application

ANSWER_S: Final = 5.0
"""How long the metrics actor may take; it may be on its way back from a restart."""
MAX_HISTORY_S: Final = 90_000.0

Answered = Response | EventStream

_encode = msgspec.json.Encoder().encode


class RequestTrace:
    """The span of one HTTP request, if it is traced. That is decided when an operation is about to be run for it."""

    __slots__ = ("_asked", "_began", "_route", "_span", "_tracing")

    def __init__(self, tracing: Tracing, route: Route) -> None:
        self._tracing, self._route = tracing, route
        self._began = time.monotonic()
        self._span: Any = None
        self._asked = False

    def traceparent(self, given: str | None) -> str | None:
        """What the operation is run with: below this request's span, or marked as not traced."""
        tracing = self._tracing
        if not self._asked:
            self._asked = True
            if tracing.wanted(given):
                about = {names.HTTP_METHOD: self._route.method, names.HTTP_ROUTE: self._route.path}
                name = names.REQUEST.format(method=self._route.method, route=self._route.path)
                self._span = tracing.start(name, about, parent=given, kind="SERVER", at=self._began)
        if self._span is not None:
            return traceparent_of(self._span)
        return NOT_TRACED if given is None else given

    def answered(self, response: Answered) -> Answered:
        """The span ends, that of a stream with it; the caller learns the trace in the answer's `traceparent`."""
        if self._span is None:
            return response
        self._span.set_attribute(names.HTTP_STATUS, response.status)
        header = (b"traceparent", traceparent_of(self._span).encode())
        if isinstance(response, EventStream):
            response.headers = (*response.headers, header)
            response.on_end.append(lambda: self._tracing.end(self._span))
            return response
        self._tracing.end(self._span)
        return response._replace(headers=(*response.headers, header))

    def failed(self, error: BaseException) -> Answered:
        """The span ends with `error`, and the answer tells of both. Raises `error` if it is not the caller's to see."""
        if self._span is None:
            raise error
        if not isinstance(error, PoolError) or isinstance(error, InternalError):
            self._tracing.end(self._span, error=error)
            raise error
        response = problem(error)
        self._span.set_attribute(names.ERROR_TYPE, error.code)
        return self.answered(response)


async def traced(app: Application, request: Request, route: Route) -> Answered:
    """What `route` answers, within the request's span if its pool traces it."""
    pool = request.params.get("pool")
    # Of a pool that is not there nothing is said here: first the handler looks who asks.
    known = pool is not None and pool in app.pools.names()
    tracing = getattr(app.pools.get(pool), "tracing", None) if pool is not None and known else None
    if tracing is None:
        return await route.handler(app, request)
    trace = request.trace = RequestTrace(tracing, route)
    try:
        return trace.answered(await route.handler(app, request))
    except BaseException as error:
        return trace.failed(error)


# --- metrics and events -----------------------------------------------------------------------------


async def get_metrics(app: Application, request: Request) -> Response:
    request.query(frozenset())
    reading = await _patiently(app.pools.get(request.params["pool"]).reading())
    return Response(200, _encode(reading.snapshot))


async def get_history(app: Application, request: Request) -> Response:
    query = request.query(frozenset({"duration_s"}))
    seconds = number(query, "duration_s", 300.0, least=1.0, most=MAX_HISTORY_S)
    return Response(200, _encode(await _patiently(app.pools.get(request.params["pool"]).history(seconds))))


async def get_events(app: Application, request: Request) -> Response:
    query = request.query(frozenset({"since", "limit", "timeout_s"}))
    since = int(number(query, "since", 0, least=0, most=2**53))
    limit = int(number(query, "limit", 100, least=1, most=MAX_PAGE))
    wait_s = number(query, "timeout_s", 0.0, least=0.0, most=MAX_POLL_S)
    pool = app.pools.get(request.params["pool"])
    return Response(200, _encode(await _patiently(pool.events(since, limit, timeout_s=wait_s), wait_s)))


async def _patiently(asked: Any, more_s: float = 0.0) -> Any:
    try:
        return await asyncio.wait_for(asked, ANSWER_S + more_s)
    except TimeoutError:
        raise PoolNotReady("the metrics actor does not answer; try again", retry_after_s=1.0) from None


_PROBLEMS: Final = ("unknown_pool", "invalid_request", "not_allowed", "pool_not_ready", "worker_lost")
_EVENTS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("since", {"type": "integer", "minimum": 0, "default": 0}),
    ("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}),
    ("timeout_s", {"type": "number", "minimum": 0, "maximum": MAX_POLL_S, "default": 0}),
)
_HISTORY: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("duration_s", {"type": "number", "minimum": 1, "maximum": MAX_HISTORY_S, "default": 300}),
)
_POOL: Final = "/v1/pools/{pool}"

OBSERVING: Final = (
    Route(
        "GET", f"{_POOL}/metrics", get_metrics, "The pool's figures now", MetricsSnapshot, problems=_PROBLEMS
    ),
    Route(
        "GET",
        f"{_POOL}/metrics/history",
        get_history,
        "The pool's figures over the last seconds, oldest first",
        HistoryView,
        problems=_PROBLEMS,
        query=_HISTORY,
    ),
    Route(
        "GET",
        f"{_POOL}/events",
        get_events,
        "What happened in the pool; waits for the next event with timeout_s",
        EventPage,
        problems=_PROBLEMS,
        query=_EVENTS,
    ),
)

__all__ = ["OBSERVING", "RequestTrace", "traced"]
