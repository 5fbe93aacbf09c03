"""No query string makes a route fail: every parameter of every route, with values that nobody expects."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from dspool.config import PoolConfig
from dspool.errors import PoolNotReady
from dspool_console import Console
from dspool_serve.access.security import Security
from dspool_serve.api import ROUTES
from dspool_serve.http.routing import Route
from tests.unit.http_doubles import FakePool, FixedPools, served

NUMBERS = (
    "-1",
    "0",
    "1",
    "1.5",
    "1e3",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "0x10",
    "1_0",
    "9" * 30,
    "9" * 5_000,
)
TEXTS = (
    "",
    "abc",
    "true",
    "null",
    "[]",
    "{}",
    "a,b",
    "a" * 10_000,
    "\u0663",
    "\u00b2",
    "\U0001f600",
    "<script>",
    "' or 1",
)
ENCODED = ("%00", "%ff", "%ed%a0%80", "%", "%zz", "%0d%0ax: y", "..%2f..", "+", "&&&&", ";", "=")
"""As they stand in a query."""
ALWAYS = (
    "limit",
    "cursor",
    "since",
    "range",
    "slot",
    "after",
    "from",
    "to",
    "refresh",
    "theme",
    "panelId",
    "query",
)
PARAMS = {"pool": "default", "program": "qa", "session": "ada", "worker": "default-w0-abcdef"}
STREAMS = ("/events", "/live", "/stream")


def routes() -> list[Route]:
    pools = FixedPools(FakePool())
    every = (*ROUTES, *Console(pools, Security()).routes)
    return [route for route in every if route.method == "GET" and not route.stream]


def path_of(route: Route) -> str:
    parts = (PARAMS.get(part[1:-1], "x") if part.startswith("{") else part for part in route.path.split("/"))
    return "/".join(parts)


class Away(FakePool):
    """Whatever else somebody wants of it: its actors do not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PoolConfig(name="default", enable_metrics=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def ask(*args: Any, **more: Any) -> Any:
            raise PoolNotReady("nobody is there")

        return ask


async def known_names(http: httpx.AsyncClient, route: Route) -> set[str]:
    """What the route says that it takes, and what it takes without saying so."""
    answer = await http.get(path_of(route) + "?no-such-name=1")
    told = answer.json().get("detail", "") if answer.status_code == 422 else ""
    said = told.partition("known: ")[2]
    hidden = {name.strip() for name in said.split(",")} - {"", "none"}
    return {*hidden, *(name for name, _ in route.query), *ALWAYS}


async def status_of(http: httpx.AsyncClient, path: str) -> int:
    try:
        return (await asyncio.wait_for(http.get(path), 2.0)).status_code
    except TimeoutError:
        return 0  # a stream, which goes on


@pytest.mark.parametrize("route", routes(), ids=lambda route: route.path)
async def test_no_query_makes_a_route_fail(route: Route, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.CRITICAL, "dspool.http")
    transport = httpx.ASGITransport(app=served(Away()))
    async with httpx.AsyncClient(transport=transport, base_url="http://dspool") as http:
        path = path_of(route)
        if path.endswith(STREAMS) or await status_of(http, path) in (0, 500):
            pytest.skip("the double of a pool cannot answer it")
        names = await known_names(http, route)
        assert names >= {name for name, _ in route.query}
        values = (*map(quote, (*NUMBERS, *TEXTS)), *ENCODED)
        queries = [f"{name}={value}" for name in sorted(names) for value in values]
        queries += [f"{query}&{query}" for query in queries[::10]]
        queries += ["&".join(["a=1"] * 10_000), "%" * 1_000, "=" * 1_000, "a" * 60_000]
        failed = [query[:80] for query in queries if await status_of(http, f"{path}?{query}") in (0, 500)]
        assert not failed


async def test_most_routes_are_asked():
    transport = httpx.ASGITransport(app=served(Away()))
    async with httpx.AsyncClient(transport=transport, base_url="http://dspool") as http:
        answered = 0
        for route in routes():
            path = path_of(route)
            answered += not path.endswith(STREAMS) and await status_of(http, path) not in (0, 500)
    assert answered >= 0.7 * len(routes()), (answered, len(routes()))
