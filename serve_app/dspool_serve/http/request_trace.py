"""The span of each traced request."""

from __future__ import annotations

import time
from typing import Any

from dspool.errors import InternalError, PoolError
from dspool.telemetry import trace_names as names
from dspool.telemetry.tracing import NOT_TRACED, Tracing, traceparent_of
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.problems import problem
from dspool_serve.http.requests import Response
from dspool_serve.http.routing import Route

Answered = Response | EventStream


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
