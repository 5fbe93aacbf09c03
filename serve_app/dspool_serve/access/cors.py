"""Which pages of other origins a browser lets use the API: `service.cors_origins`, nobody by default.

Such a page shows a token of its own. A browser sends it no login: that belongs to the dashboard's own page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

API: Final = "/v1/"
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_SENT: Final = (
    "authorization",
    "content-type",
    "idempotency-key",
    "last-event-id",
    "traceparent",
    "x-dspool-priority",
    "x-request-id",
    "x-request-timeout-seconds",
)
_READ: Final = ("location", "retry-after", "traceparent", "x-request-id")
_REMEMBERED_S: Final = 600


class CrossOrigin:
    """Answers a browser that asks for a page of one of `origins`, and tells it that the page may read answers."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._api = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_SENT,
            expose_headers=_READ,
            max_age=_REMEMBERED_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        of_api = scope["type"] == "http" and scope["path"].startswith(API)
        await (self._api if of_api else self._app)(scope, receive, send)


__all__ = ["API", "CrossOrigin"]
