"""The ASGI application: finds the route, runs it, and turns every error into problem+json.

A client that disconnects cancels its operation: the connection ends the task that runs this application (see
`dspool.corrections.uvicorn_connections`), or Ray Serve does where that is off. No watcher is paid for here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, Protocol

import msgspec

import dspool
from dspool.corrections.uvicorn_connections import end_with_connection, on_server_stop
from dspool.errors import Cancelled, InternalError, PoolError
from dspool.telemetry import trace_names as names
from dspool.telemetry.tracing import NOT_TRACED, Tracing, not_sampled, trace_id_of, traceparent_of
from dspool_serve.access.security import Security
from dspool_serve.api import ROUTES
from dspool_serve.api.idempotency import keyed
from dspool_serve.api.metrics import FRESH_S, Scrapes
from dspool_serve.api.openapi import described, document
from dspool_serve.api.schema import Health
from dspool_serve.api.typed_operations import TypedDocument
from dspool_serve.context import Context, ServiceFacts
from dspool_serve.costly import CostlyReads
from dspool_serve.fresh import Fresh
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.problems import problem
from dspool_serve.http.requests import Receive, Request, Scope
from dspool_serve.http.responses import Response, Send, respond
from dspool_serve.http.routing import Route, Router
from dspool_serve.pools import Pools, Settings

log = logging.getLogger("dspool.http")
WORKER_ANSWERS: Final = 2048
"""Answers of single workers that are kept."""

Answer = Response | EventStream


class Extension(Protocol):
    """More routes for people who look: `dspool_console`, which this package does not know."""

    @property
    def routes(self) -> tuple[Route, ...]:
        """Those below `/v1/` are part of the API, and of its description."""
        ...

    def start(self) -> None:
        """Called when the pools are open."""
        ...

    def close(self) -> None: ...


class Application:
    """An ASGI application that serves `pools`. Holds no state of its own beyond them."""

    def __init__(
        self,
        pools: Pools,
        settings: Settings | None = None,
        security: Security | None = None,
        console: Extension | None = None,
    ) -> None:
        self._pools = pools
        self._settings = settings or Settings()
        header = self._settings.client_header
        self._client_header = None if header is None else header.encode()
        self._console = console
        self._security = security or Security()
        version = str(getattr(dspool, "__version__", "0"))
        routes = ROUTES if console is None else (*ROUTES, *console.routes)
        generic = msgspec.json.encode(
            document(described(routes), version=version, root_path=self._settings.root_path)
        )
        facts = ServiceFacts(
            health=msgspec.json.encode(Health("ok", version)),
            document=generic,
            typed_document=TypedDocument(pools, generic),
            metrics=Scrapes(pools),
            answers=Fresh(FRESH_S),
            worker_answers=Fresh(FRESH_S, limit=WORKER_ANSWERS),
            waits=self._security.waits,
            costly=CostlyReads(),
        )
        self._context = Context(pools, pools.get, self._settings, facts)
        # Who asks is settled before anything else, also before an Idempotency-Key is claimed.
        self._router = Router(self._security.secured(keyed(routes)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            end_with_connection(scope)
            request = Request(scope, receive, self._settings.body_timeout_s, self._client_header)
            response = await self._answer(request)
            echo = request.headers.get(b"x-request-id") if self._settings.echo_request_id else None
            if isinstance(response, EventStream):
                with on_server_stop(scope, response.server_stops):
                    await response.send(send, echo)
            else:
                await respond(send, response, echo)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            # Nothing is served over WebSocket: closing before accepting is a 403.
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, request: Request) -> Answer:
        # Paths hold names that users gave: our log gets the route's own.
        where = "no route"
        try:
            request.refuse_repeated()
            route = self._router.match(request)
            where = f"{route.method} {route.path}"
            return await _traced(self._context, request, route)
        except PoolError as error:
            if isinstance(error, InternalError):
                log.error("%s failed: %s", where, error.message)
            return problem(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return problem(Cancelled("the operation was cancelled"))
        except Exception as unexpected:
            # The traceback goes to our log; the client gets no inside information.
            log.exception("%s failed", where)
            kind = type(unexpected).__name__
            return problem(InternalError(f"unexpected {kind}; the service's log has the details"))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._pools.open()
                    if self._console is not None:
                        self._console.start()
                except PoolError as failed:
                    await send({"type": "lifespan.startup.failed", "message": failed.message})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._console is not None:
                    self._console.close()
                await asyncio.to_thread(self._security.audit.close)
                await self._pools.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


class RequestTrace:
    """The span of one HTTP request, if it is traced. That is decided when an operation is about to be run for it."""

    __slots__ = ("_began", "_decided", "_route", "_span", "_tracing")

    def __init__(self, tracing: Tracing, route: Route) -> None:
        self._tracing, self._route = tracing, route
        self._began = time.monotonic()
        self._span: Any = None
        self._decided = False

    def traceparent(self, given: str | None, principal: str | None) -> str | None:
        """What the operation is run with: below this request's span, or marked as not traced."""
        tracing = self._tracing
        continued = given if tracing.trusts(principal) else None
        first, self._decided = not self._decided, True
        if first and tracing.admits(given, principal):
            attributes = {names.HTTP_METHOD: self._route.method, names.HTTP_ROUTE: self._route.path}
            name = names.REQUEST.format(method=self._route.method, route=self._route.path)
            link = None if continued is not None else given
            if link is not None:
                attributes[names.CALLER_TRACE] = trace_id_of(link) or ""
            # The empty one: no span that happens to be current is the parent of a caller's request.
            self._span = tracing.start(
                name, attributes, parent=continued or NOT_TRACED, kind="SERVER", at=self._began, link=link
            )
        # The further operations of a batch count too.
        if self._span is not None and (first or tracing.admits_more(given, principal)):
            return traceparent_of(self._span)
        return NOT_TRACED if continued is None else not_sampled(continued)

    def end(self, answer: Answer) -> Answer:
        """The span ends, that of a stream with it; the caller learns the trace in the answer's `traceparent`."""
        if self._span is None:
            return answer
        self._span.set_attribute(names.HTTP_STATUS, answer.status)
        header = (b"traceparent", traceparent_of(self._span).encode())
        if isinstance(answer, EventStream):
            answer.headers = (*answer.headers, header)
            answer.on_end.append(lambda: self._tracing.end(self._span))
            return answer
        self._tracing.end(self._span)
        return answer._replace(headers=(*answer.headers, header))

    def fail(self, error: BaseException) -> Answer:
        """The span ends with `error`, and the answer names both. Raises `error` if it is not the caller's to see."""
        if self._span is None:
            raise error
        if not isinstance(error, PoolError) or isinstance(error, InternalError):
            self._tracing.end(self._span, error=error)
            raise error
        answer = problem(error)
        self._span.set_attribute(names.ERROR_TYPE, error.code)
        return self.end(answer)


async def _traced(context: Context, request: Request, route: Route) -> Answer:
    """What `route` answers, within the request's span if its pool traces it."""
    name = request.params.get("pool")
    # Whether there is such a pool is not said here: the handler first looks at who asks.
    tracing = context.pools.get(name).tracing if name is not None and name in context.pools.names() else None
    if tracing is None:
        return await route.handler(context, request)
    trace = request.trace = RequestTrace(tracing, route)
    try:
        return trace.end(await route.handler(context, request))
    except BaseException as error:
        return trace.fail(error)
