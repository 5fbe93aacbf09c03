"""The ASGI application: finds the route, runs it, and turns every error into problem+json.

A client that disconnects cancels its operation: the connection ends the task that runs this application (see
`dspool.corrections.uvicorn_connections`), or Ray Serve does where that is off. No watcher is paid for here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import msgspec

import dspool
from dspool.corrections.uvicorn_connections import end_with_connection
from dspool.errors import Cancelled, InternalError, NotAllowed, PoolError
from dspool_serve.access.security import Security
from dspool_serve.api import ROUTES
from dspool_serve.api.idempotency import keyed
from dspool_serve.api.openapi import document
from dspool_serve.api.schema import Health
from dspool_serve.api.scrape import Scrapes
from dspool_serve.context import Context, ServiceFacts
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.problems import problem
from dspool_serve.http.request_trace import Answered, RequestTrace
from dspool_serve.http.requests import Receive, Request, Response, Scope, Send, respond
from dspool_serve.http.routing import Route, Router
from dspool_serve.pools import Pools, Settings

log = logging.getLogger("dspool.http")


class Extension(Protocol):
    """More routes beside the API's, for people who look: `dspool_console`, which this package does not know."""

    @property
    def routes(self) -> tuple[Route, ...]: ...

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
        self._console = console
        version = str(getattr(dspool, "__version__", "0"))
        facts = ServiceFacts(
            health=msgspec.json.encode(Health("ok", version)),
            document=msgspec.json.encode(document(ROUTES, version=version)),
            metrics=Scrapes(pools),
        )
        self._context = Context(pools, pools.get, self._settings, facts)
        routes = ROUTES if console is None else (*ROUTES, *console.routes)
        # Who asks is settled before anything else, also before an Idempotency-Key is claimed.
        self._router = Router((security or Security()).secured(keyed(routes)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            end_with_connection(scope)
            request = Request(scope, receive, self._settings.body_timeout_s)
            response = await self._answer(request)
            echo = request.headers.get(b"x-request-id") if self._settings.echo_request_id else None
            if isinstance(response, EventStream):
                await response.send(send, echo)
            else:
                await respond(send, response, echo)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            # Nothing is served over WebSocket: closing before accepting is a 403.
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, request: Request) -> Response | EventStream:
        # Paths hold names that users gave: our log gets the route's own.
        where = "no route"
        try:
            route = self._router.match(request)
            where = f"{route.method} {route.path}"
            _refuse_other_sites(request)
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
                await self._pools.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _traced(context: Context, request: Request, route: Route) -> Answered:
    """What `route` answers, within the request's span if its pool traces it."""
    pool = request.params.get("pool")
    # Of a pool that is not there nothing is said here: first the handler looks who asks.
    tracing = context.pools.get(pool).tracing if pool is not None and pool in context.pools.names() else None
    if tracing is None:
        return await route.handler(context, request)
    trace = request.trace = RequestTrace(tracing, route)
    try:
        return trace.answered(await route.handler(context, request))
    except BaseException as error:
        return trace.failed(error)


def _refuse_other_sites(request: Request) -> None:
    """A web page of another site must not run operations through a visitor's browser. Programs are not affected."""
    if request.headers.get(b"sec-fetch-site") == b"cross-site":
        raise NotAllowed("requests from pages of other sites are refused")
