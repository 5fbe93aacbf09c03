"""The service itself: is it alive, is it ready, and how is it used."""

from __future__ import annotations

from typing import Any

from dspool.errors import PoolNotReady
from dspool_serve.api import docs_page
from dspool_serve.api.common import answer_json
from dspool_serve.api.pool import look_at_all
from dspool_serve.api.schema import Health, Readiness
from dspool_serve.context import Context
from dspool_serve.http.requests import Request, Response
from dspool_serve.http.routing import Route


async def healthz(context: Context, request: Request) -> Response:
    """The process answers. Says nothing about workers: that is `readyz`."""
    return Response(200, context.service.health)


async def readyz(context: Context, request: Request) -> Response:
    states = await look_at_all(context)
    late = [f"{state.name}: {state.reason or state.state}" for state in states if not state.ready]
    if late or not states:
        raise PoolNotReady("; ".join(late) or "no pool is connected yet", retry_after_s=1.0)
    return answer_json(Readiness(True, {state.name: state.state for state in states}))


async def openapi(context: Context, request: Request) -> Response:
    return Response(200, context.service.document)


async def docs(context: Context, request: Request) -> Response:
    return docs_page.file("docs.html")


async def docs_script(context: Context, request: Request) -> Response:
    return docs_page.file("docs.js")


async def docs_style(context: Context, request: Request) -> Response:
    return docs_page.file("docs.css")


ROUTES: tuple[Route, ...] = (
    Route("GET", "/healthz", healthz, "The service answers", Health, role=None),
    Route(
        "GET",
        "/readyz",
        readyz,
        "Enough workers are warm",
        Readiness,
        problems=("pool_not_ready",),
        role=None,
    ),
    Route("GET", "/openapi.json", openapi, "This document", Any, role=None),
    Route("GET", "/docs", docs, "This document, to read in a browser", media="text/html", role=None),
    Route("GET", "/docs/docs.js", docs_script, "The script of /docs", media="text/javascript", role=None),
    Route("GET", "/docs/docs.css", docs_style, "The style of /docs", media="text/css", role=None),
)
