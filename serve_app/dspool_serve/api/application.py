"""The ASGI application: finds the route, runs it, and turns every error into problem+json.

A client that disconnects cancels its operation: the connection ends the task that runs this application (see
`dspool_serve.http.connections`), or Ray Serve does where that is not installed. No watcher is paid for here.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

import dspool
from dspool.errors import Cancelled, InternalError, NotAllowed, PoolError
from dspool_console.dashboard.routes import DASHBOARD
from dspool_console.dashboard.service import Dashboard
from dspool_console.ray_panels import FRAMES
from dspool_serve.access.security import Security
from dspool_serve.api import ROUTES
from dspool_serve.api.idempotency import keyed
from dspool_serve.api.metrics import traced
from dspool_serve.api.openapi import document
from dspool_serve.api.pools import Pools, Settings
from dspool_serve.api.schema import Health
from dspool_serve.api.scrape import Scrapes
from dspool_serve.http.connections import watched
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.problems import problem
from dspool_serve.http.requests import Receive, Request, Response, Scope, Send, respond
from dspool_serve.http.routing import Router

log = logging.getLogger("dspool.http")


class Application:
    """An ASGI application that serves `pools`. Holds no state of its own beyond them."""

    def __init__(
        self, pools: Pools, settings: Settings | None = None, security: Security | None = None
    ) -> None:
        self.pools = pools
        self.settings = settings or Settings()
        version = str(getattr(dspool, "__version__", "0"))
        self.health = msgspec.json.encode(Health("ok", version))
        self.document = msgspec.json.encode(document(ROUTES, version=version))
        self.scrapes = Scrapes(pools)
        security = security or Security()
        self.security = security
        self.dashboard = Dashboard(pools)
        security.sessions = self.dashboard.sessions
        # Who asks is settled before anything else, also before an Idempotency-Key is claimed.
        self._router = Router(security.secured(keyed((*ROUTES, *FRAMES, *DASHBOARD))))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            watched(scope)
            request = Request(scope, receive, self.settings.body_timeout_s)
            response = await self._answer(request)
            echo = request.headers.get(b"x-request-id") if self.settings.echo_request_id else None
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
            return await traced(self, request, route)
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
                    await self.pools.open()
                    self.dashboard.start()
                except PoolError as failed:
                    await send({"type": "lifespan.startup.failed", "message": failed.message})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                self.dashboard.close()
                await self.pools.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _refuse_other_sites(request: Request) -> None:
    """A web page of another site must not run operations through a visitor's browser. Programs are not affected."""
    if request.headers.get(b"sec-fetch-site") == b"cross-site":
        raise NotAllowed("requests from pages of other sites are refused")
