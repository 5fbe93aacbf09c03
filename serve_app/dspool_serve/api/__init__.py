"""The routes by resource: one small function each, and the tables that name them.

`ROUTES` is also what the OpenAPI document is made from, so a route cannot exist undocumented.
"""

from __future__ import annotations

from dspool_serve.api import (
    cancelling,
    code,
    events,
    logs,
    metrics,
    pool,
    pool_sessions,
    programs,
    service,
    sessions,
    tables,
    variables,
    workers,
)
from dspool_serve.http.routing import Route

ROUTES: tuple[Route, ...] = (
    *programs.ROUTES,
    *sessions.ROUTES,
    *variables.ROUTES,
    *code.ROUTES,
    *workers.ROUTES,
    *cancelling.ROUTES,
    *pool.ROUTES,
    *pool_sessions.ROUTES,
    *metrics.ROUTES,
    *tables.ROUTES,
    *events.ROUTES,
    *logs.ROUTES,
    *service.ROUTES,
)

__all__ = ["ROUTES"]
