"""The routes by resource: one small function each, and the tables that name them.

`ROUTES` is also what the OpenAPI document is made from, so a route cannot exist undocumented.
"""

from __future__ import annotations

from dspool_serve.observing import OBSERVING
from dspool_serve.router import Route
from dspool_serve.routes import code, events, pool, programs, service, sessions, variables, workers
from dspool_serve.scraping import SCRAPING

ROUTES: tuple[Route, ...] = (
    *programs.ROUTES,
    *sessions.ROUTES,
    *variables.ROUTES,
    *code.ROUTES,
    *workers.ROUTES,
    *pool.ROUTES,
    *OBSERVING,
    *events.ROUTES,
    *service.ROUTES,
    *SCRAPING,
)

__all__ = ["ROUTES"]
