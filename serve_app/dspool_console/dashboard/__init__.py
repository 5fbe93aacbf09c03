"""The operations dashboard: `/dashboard`, a page that people keep open.

`static` is the page itself, without a build step. It asks the API below `/v1`, of which these routes are the part that
needs more than one pool's actors: `view` makes the overview (pure), `hub` tells every viewer what changes in the same
bytes, and asks the pool only while somebody looks; `traces`, `whatif` and `report` answer what their names say.
"""

from __future__ import annotations

from typing import Final

from dspool_console.dashboard import alerts, login, operations, pages, report, whatif
from dspool_serve.http.routing import Route

DASHBOARD: Final[tuple[Route, ...]] = (
    *login.ROUTES,
    *pages.ROUTES,
    *alerts.ROUTES,
    *operations.ROUTES,
    *whatif.ROUTES,
    *report.ROUTES,
)

__all__ = ["DASHBOARD"]
