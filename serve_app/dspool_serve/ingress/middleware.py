"""Around what Serve's own HTTP servers answer: its replicas' and its fallback proxy's, which stand behind HAProxy.

Serve itself answers `/-/routes`, with the names of applications, to anybody who finds their ports on loopback.
"""

from __future__ import annotations

from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from dspool.corrections import uvicorn_connections
from dspool_serve.http.problems import RouteNotFound, problem
from dspool_serve.http.responses import respond

CALLBACK: Final = "dspool_serve.ingress.middleware:middlewares"
"""For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
ALIVE: Final = "/-/healthz"
_SERVES_OWN: Final = "/-/"


class OnlyAlive:
    """Of Serve's own paths lets through the one that tells no more than that it lives."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A coroutine function: uvicorn takes anything else for an application of ASGI 2.
        path = scope.get("path", "")
        if path.startswith(_SERVES_OWN) and path != ALIVE and scope["type"] == "http":
            await respond(send, problem(RouteNotFound("nothing is served under this path")))
        else:
            await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve asks for, in each process that serves HTTP and before it does."""
    if not HTTP_PROTOCOLS["auto"].startswith(uvicorn_connections.__name__):
        # Serve's own proxy, which is in front where there is no HAProxy; a replica has all of the corrections.
        uvicorn_connections.install(["uvicorn-silence"])
    return [Middleware(OnlyAlive)]


__all__ = ["CALLBACK", "OnlyAlive", "middlewares"]
