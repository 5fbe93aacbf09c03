"""The service itself: is it alive, is it ready, and how is it used."""

from __future__ import annotations

import asyncio
from functools import cache, partial
from pathlib import Path
from typing import Any

from dspool.errors import InvalidRequest, PoolError, PoolNotReady
from dspool_serve.api.common import answer_json
from dspool_serve.api.pool import look_at_all
from dspool_serve.api.schema import Health, Readiness
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

_STORE = "store"
_STORE_ANSWERS_S = 2.0
_STORE_KEPT_S = 1.0
_WITHOUT = (("without", {"type": "string", "enum": [_STORE]}),)
_WITHOUT_NAMES = frozenset({"without"})
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
    """Whether a balancer may send requests here: this process, and the node whose proxy asked it, can serve.

    A supervisor that is away is no reason against it: workers serve without. Without the store no session changes, and
    a balancer whose service has no sessions says so: `?without=store`.
    """
    without = request.query(_WITHOUT_NAMES).get("without")
    if without not in (None, _STORE):
        raise InvalidRequest(f"without={without[:50]!r}: only {_STORE} may be done without", field="without")
    states, stores = await asyncio.gather(look_at_all(context), _stores(context))
    fatal: list[str] = [] if states else ["no pool is connected yet"]
    missing: list[str] = []
    for state in states:
        pool = context.pools.get(state.name)
        reached = pool.reached()
        if state.state == "unknown" and reached >= max(1, pool.config.min_ready):
            missing.append(f"{state.name}: supervisor: {state.reason}")
        elif not state.ready:
            fatal.append(f"{state.name}: workers: {state.reason or state.state}")
        elif not reached and state.actual:
            fatal.append(f"{state.name}: workers: this process reaches none of {state.actual}")
        if why := stores.get(state.name):
            (missing if without == _STORE else fatal).append(f"{state.name}: store: {why}")
    if fatal:
        raise PoolNotReady("; ".join(fatal), retry_after_s=1.0)
    return answer_json(Readiness(True, {state.name: state.state for state in states}, missing))


async def _stores(context: Context) -> dict[str, str]:
    """By pool why its store does not answer; empty if it does. Anybody may ask: one look a second is for all."""
    names = context.pools.names()
    answers = context.service.answers
    found = await asyncio.gather(
        *(
            answers.get(("store", name), partial(_store, context, name), keep_s=_STORE_KEPT_S)
            for name in names
        )
    )
    return dict(zip(names, found, strict=True))


async def _store(context: Context, name: str) -> str:
    try:
        # Of all that is kept there the smallest.
        await asyncio.wait_for(context.pools.get(name).silences(), _STORE_ANSWERS_S)
    except TimeoutError:
        return f"no answer within {_STORE_ANSWERS_S:g} s"
    except PoolError as failed:
        return failed.message
    return ""


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
        "This node can serve: enough workers are warm and reached, and the store answers",
        Readiness,
        problems=("pool_not_ready", "invalid_request"),
        query=_WITHOUT,
        role=None,
    ),
    Route("GET", "/openapi.json", openapi, "This document", Any, role=None, knows_caller=True),
    Route("GET", "/docs", docs, "This document, to read in a browser", media="text/html", role=None),
    Route("GET", "/docs/docs.js", docs_script, "The script of /docs", media="text/javascript", role=None),
    Route("GET", "/docs/docs.css", docs_style, "The style of /docs", media="text/css", role=None),
)
