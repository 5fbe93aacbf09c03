"""The service itself: is it alive, is it ready, and how is it used."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from dspool.errors import PoolNotReady
from dspool_serve.api.common import answer_json
from dspool_serve.api.pool import look_at_all
from dspool_serve.api.schema import Health, Readiness
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

_TYPES = {".html": b"text/html; charset=utf-8", ".js": b"text/javascript", ".css": b"text/css"}
_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)
"""Only what this service itself serves: a description that held markup could do nothing with it."""


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
    if request.is_stranger:
        return Response(200, context.service.document)
    # Whoever may look at the programs finds an operation for each.
    typed = context.service.typed_document
    return Response(200, await context.service.answers.get("openapi", typed.current))


async def docs(context: Context, request: Request) -> Response:
    return _packaged("docs.html")


async def docs_script(context: Context, request: Request) -> Response:
    return _packaged("docs.js")


async def docs_style(context: Context, request: Request) -> Response:
    return _packaged("docs.css")


@cache
def _packaged(name: str) -> Response:
    """A file of the pages of `/docs`, which need nothing from the internet."""
    path = Path(__file__).with_name("static") / name
    return Response(200, path.read_bytes(), _TYPES[path.suffix], (_POLICY,))


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
    Route("GET", "/openapi.json", openapi, "This document", Any, role=None, knows_caller=True),
    Route("GET", "/docs", docs, "This document, to read in a browser", media="text/html", role=None),
    Route("GET", "/docs/docs.js", docs_script, "The script of /docs", media="text/javascript", role=None),
    Route("GET", "/docs/docs.css", docs_style, "The style of /docs", media="text/css", role=None),
)
