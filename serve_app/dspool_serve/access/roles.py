"""Which role each route needs: one table."""

from __future__ import annotations

from typing import Final

from dspool.core.admission.access import Role
from dspool_serve.http.routing import Route

Need = Role | None
"""The least role; None is open to everybody who reaches the port."""

_POOL = "/v1/pools/{pool}"
_SESSION = _POOL + "/sessions/{session}"

_PROGRAM = _POOL + "/programs/{program}"
_SESSION_PROGRAM = _SESSION + "/programs/{program}"
_VARIABLE = _SESSION + "/variables/{variable}"
_WORKER = _POOL + "/workers/{worker}"

NEEDS: Final[dict[tuple[str, str], Need]] = {
    # Open: probes of load balancers, which hold no token, and the description of the API.
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/openapi.json"): None,
    ("GET", "/docs"): None,
    ("GET", "/docs/docs.js"): None,
    ("GET", "/docs/docs.css"): None,
    # Looking at the service: numbers and names, no user's content.
    ("GET", "/metrics"): "reader",
    ("GET", "/v1/pools"): "reader",
    ("GET", _POOL): "reader",
    ("GET", _POOL + "/stats"): "reader",
    ("GET", _POOL + "/decisions"): "reader",
    ("GET", _POOL + "/rollouts"): "reader",
    ("GET", _POOL + "/metrics"): "reader",
    ("GET", _POOL + "/metrics/history"): "reader",
    ("GET", _POOL + "/events"): "reader",
    ("GET", _POOL + "/events/stream"): "reader",
    ("GET", _POOL + "/workers"): "reader",
    ("GET", _WORKER): "reader",
    ("GET", _POOL + "/programs"): "reader",
    ("GET", _PROGRAM): "reader",
    # Using it: programs of the pool, and one's own sessions.
    ("POST", _PROGRAM + "/execute"): "caller",
    ("POST", _PROGRAM + "/batch"): "caller",
    ("POST", _PROGRAM + "/stream"): "caller",
    ("POST", _POOL + "/sessions"): "caller",
    ("GET", _POOL + "/sessions"): "caller",
    ("GET", _SESSION): "caller",
    ("DELETE", _SESSION): "caller",
    ("POST", _SESSION + "/reset"): "caller",
    ("PUT", _SESSION + "/lm"): "caller",
    ("GET", _SESSION + "/history"): "caller",
    ("GET", _SESSION + "/programs"): "caller",
    ("PUT", _SESSION_PROGRAM): "caller",
    ("GET", _SESSION_PROGRAM): "caller",
    ("DELETE", _SESSION_PROGRAM): "caller",
    ("POST", _SESSION_PROGRAM + "/execute"): "caller",
    ("POST", _SESSION_PROGRAM + "/stream"): "caller",
    ("GET", _SESSION + "/variables"): "caller",
    ("GET", _VARIABLE): "caller",
    ("PUT", _VARIABLE): "caller",
    ("DELETE", _VARIABLE): "caller",
    # In a sandbox, and only where the configuration offers it.
    ("POST", _SESSION + "/execute_code"): "admin",
    # Changing what others are served, and what tells how the service is built.
    ("GET", _POOL + "/config"): "admin",
    ("POST", _PROGRAM + "/versions"): "admin",
    ("POST", _PROGRAM + "/rollback"): "admin",
    ("POST", _POOL + "/resize"): "admin",
    ("POST", _POOL + "/pause"): "admin",
    ("POST", _POOL + "/resume"): "admin",
    ("POST", _POOL + "/warm"): "admin",
    ("POST", _WORKER + "/drain"): "admin",
    ("POST", _WORKER + "/restart"): "admin",
}
"""Route -> role. A route that is not here needs an admin; a test holds the table complete."""
_DASHBOARD = "/dashboard/api"
_WATCHED = _DASHBOARD + "/pools/{pool}"

DASHBOARD: Final[dict[tuple[str, str], Need]] = {
    # Open: the page itself holds nothing, and login is how one gets in.
    ("GET", "/dashboard"): None,
    ("GET", "/dashboard/"): None,
    ("GET", "/dashboard/static/{version}/{file}"): None,
    ("GET", "/dashboard/static/{version}/{file}/{inner}"): None,
    ("GET", _DASHBOARD + "/me"): None,
    ("POST", _DASHBOARD + "/login"): None,
    ("POST", _DASHBOARD + "/logout"): None,
    # Looking: numbers and names. Ids of sessions and what they hold are shown to admins only.
    ("GET", _DASHBOARD + "/pools"): "reader",
    **{
        ("GET", f"{_WATCHED}/{what}"): "reader"
        for what in (
            "overview", "history", "markers", "live", "workers", "workers/{worker}", "cells", "sessions",
            "operations", "operations/{operation}", "sizing", "whatif", "warmup", "deployments", "events", "alerts",
            "report", "export",
        )
    },
    ("GET", _WATCHED + "/workers/{worker}/log"): "admin",
    ("GET", _DASHBOARD + "/audit"): "admin",
    **{
        ("POST", f"{_WATCHED}/{what}"): "admin"
        for what in (
            "resize", "pause", "resume", "warm", "workers/{worker}/drain", "workers/{worker}/restart",
            "programs/{program}/rollback",
        )
    },
    ("DELETE", _WATCHED + "/sessions/{session}"): "admin",
}  # fmt: skip
"""The same for the dashboard's own routes."""
_PANELS: Final = "/grafana/"
"""Panels for Ray's dashboard, which sends no token: for readers, and so of use only where there are no tokens."""


def needed(route: Route) -> Need:
    if route.method == "GET" and route.path.startswith(_PANELS):
        return "reader"
    key = (route.method, route.path)
    return DASHBOARD[key] if key in DASHBOARD else NEEDS.get(key, "admin")


__all__ = ["DASHBOARD", "NEEDS", "Need", "needed"]
