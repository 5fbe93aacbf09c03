"""The operations console: dashboard, alerts, Grafana and the panels for Ray's dashboard. Nothing below knows it."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from dspool_console.dashboard import DASHBOARD
from dspool_console.dashboard.service import ConsoleContext, Dashboard
from dspool_console.ray_panels import PANEL_ROUTES
from dspool_serve.access.security import Security
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.routing import Route
from dspool_serve.pools import Pools


class Console:
    """The console of one service: its dashboard and the panels for Ray's, as routes beside the API's."""

    def __init__(self, pools: Pools, security: Security, *, wall: Callable[[], float] = time.time) -> None:
        self.dashboard = Dashboard(pools, wall=wall)
        self._security = security
        security.logins = self.dashboard.logins
        self.routes: tuple[Route, ...] = (
            *(route._replace(handler=self._with_dashboard(route)) for route in DASHBOARD),
            *PANEL_ROUTES,
        )

    def start(self) -> None:
        self.dashboard.start()

    def close(self) -> None:
        self.dashboard.close()

    def _with_dashboard(self, route: Route) -> Callable[[Context, Request], Awaitable[Any]]:
        dashboard, security, handler = self.dashboard, self._security, route.handler

        # Its name is the operation's id in the description of the API.
        @functools.wraps(handler)
        def handle(context: Context, request: Request) -> Awaitable[Any]:
            console = ConsoleContext(
                context.pools, context.caller, context.settings, context.service, dashboard, security
            )
            return handler(console, request)

        return handle


__all__ = ["Console"]
