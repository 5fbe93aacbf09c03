"""Who gets through to what: every route of the service, asked in every way, made from the table of routes.

`python -m tests.security.matrix [--json]` asks the real application, in this process and without Ray, and prints a row
for each route. What stands behind the checks only notes that it was reached. `expected` is the rule, in one place.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from dspool.core.admission.access import ROLES, Role, Token, allowed, new_token
from dspool.tokens import TokenSource, write
from dspool_console import Console
from dspool_serve.access.security import LOOPBACK_NAMES, Security
from dspool_serve.api import ROUTES
from dspool_serve.api.application import Application
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route
from dspool_serve.pools import Settings

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from http_doubles import FakePool, FixedPools

JSON_BODY: Final = (b"content-type", b"application/json")
SAFE: Final = ("GET", "HEAD")


class Way(NamedTuple):
    """A way of asking: by whom, and how they prove it."""

    name: str
    role: Role | None = None
    cookie: bool = False
    word: bool = True
    """Whether changes by cookie repeat the word that only the dashboard's page knows."""
    is_open: bool = False
    """The service has no tokens."""


WAYS: Final = (
    Way("nobody"),
    Way("wrong"),
    Way("expired"),
    *(Way(role, role) for role in ROLES),
    *(Way(f"{role}*", role, cookie=True) for role in ROLES),
    Way("admin*!", "admin", cookie=True, word=False),
    Way("open", "admin", is_open=True),
)
LEGEND: Final = (
    "nobody: no token; wrong: a token of nobody; expired: an admin's of yesterday; reader, caller, admin: by token; "
    "*: by the cookie of a login; *!: by cookie, without the dashboard's word; open: a service without tokens"
)


def expected(route: Route, way: Way) -> str:
    """What must happen: "yes" (the handler runs), "401" (who are you?) or "403" (not you)."""
    if route.role is None:
        return "yes"
    # A login's cookie counts below /v1/ alone: what a browser adds by itself opens nothing else.
    if way.role is None or (way.cookie and not route.path.startswith("/v1/")):
        return "401"
    if not allowed(way.role, route.role):
        return "403"
    if way.cookie and not way.word and route.method not in SAFE:
        return "403"
    return "yes"


class Cell(NamedTuple):
    route: Route
    way: Way
    expected: str
    found: str


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Noting(Security):
    """Checks as always; behind the checks stands a note. Routes that are open to all answer as they do, but for logging
    out: that would end the login with which the next is asked."""

    reached: list[Route]

    def secured(self, routes: Iterable[Route]) -> tuple[Route, ...]:
        self.reached = []
        return super().secured(route._replace(handler=self._noting(route)) for route in routes)

    def _noting(self, route: Route) -> Any:
        async def note(context: Context, request: Request) -> Any:
            self.reached.append(route)
            answers = route.role is None and route.path != "/dashboard/logout"
            return await route.handler(context, request) if answers else Response(204, b"")

        return note


class Service:
    """The application with its console, over a double of a pool; `guarded` by tokens or open on loopback."""

    def __init__(self, tokens: TokenSource | None) -> None:
        self.security = Noting(tokens, hosts=None if tokens is not None else LOOPBACK_NAMES)
        pools = FixedPools(FakePool())
        self.console = Console(pools, self.security)
        self.app = Application(pools, Settings(), self.security, self.console)
        self.routes = (*ROUTES, *self.console.routes)

    async def ask(
        self, method: str, raw_path: str, *headers: tuple[bytes, bytes], body: bytes = b"", raw: bool = True
    ) -> Answer:
        """As a server hands it on. `raw`: with the path as it was sent, as our servers do."""
        path, _, query = raw_path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": unquote(path),
            "query_string": query.encode(),
            "headers": [(b"host", b"localhost"), *headers],
            "client": ("127.0.0.1", 40_000),
            "scheme": "http",
        }
        if raw:
            scope["raw_path"] = path.encode()
        sent: list[dict[str, Any]] = []
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            part = next(parts, None)
            return part if part is not None else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)  # type: ignore[arg-type]
        status = next(m["status"] for m in sent if m["type"] == "http.response.start")
        found = next(dict(m["headers"]) for m in sent if m["type"] == "http.response.start")
        return Answer(status, found, b"".join(m.get("body", b"") for m in sent))


class World:
    """A service with tokens, one without, and somebody for each way of asking."""

    def __init__(self, directory: Path) -> None:
        self._texts: dict[str, str] = {}
        kept = []
        for number, role in enumerate((*ROLES, "expired")):
            text, token = new_token(
                role,
                "admin" if role == "expired" else role,
                secrets.token_urlsafe(32),
                f"{number:08x}",
                expires_at=1.0 if role == "expired" else None,
            )
            self._texts[role] = text
            kept.append(token)
        self._texts["wrong"] = f"dsp_{0:08x}_" + "x" * 43
        write(directory / "tokens.yaml", kept)
        self.guarded, self.open = Service(TokenSource(directory / "tokens.yaml")), Service(None)
        self.kept: dict[str, Token] = {token.name: token for token in kept}
        self._logins: dict[str, tuple[bytes, bytes]] = {}

    def service(self, way: Way) -> Service:
        return self.open if way.is_open else self.guarded

    async def proof(self, way: Way, method: str) -> tuple[tuple[bytes, bytes], ...]:
        """The headers with which somebody asks in this way."""
        if way.is_open or way.name == "nobody":
            return ()
        if not way.cookie:
            return ((b"authorization", f"Bearer {self._texts[way.name]}".encode()),)
        assert way.role is not None
        if way.role not in self._logins:
            self._logins[way.role] = await self._logged_in(way.role)
        cookie, word = self._logins[way.role]
        repeats = way.word and method not in SAFE
        return ((b"cookie", cookie), *(((b"x-dspool-csrf", word),) if repeats else ()))

    async def _logged_in(self, role: str) -> tuple[bytes, bytes]:
        answer = await self.guarded.ask(
            "POST",
            "/dashboard/login",
            JSON_BODY,
            (b"x-dspool-csrf", b"1"),
            (b"sec-fetch-site", b"same-origin"),
            body=json.dumps({"token": self._texts[role]}).encode(),
        )
        assert answer.status == 200, answer.body
        return answer.headers[b"set-cookie"].partition(b";")[0], json.loads(answer.body)["csrf"].encode()

    async def cell(self, route: Route, way: Way) -> Cell:
        service = self.service(way)
        service.security.reached.clear()
        proof = await self.proof(way, route.method)
        service.security.reached.clear()
        answer = await service.ask(route.method, filled(route.path), JSON_BODY, *proof, body=b"{}")
        reached = [(one.method, one.path) for one in service.security.reached]
        found = "yes" if reached == [(route.method, route.path)] else str(answer.status)
        return Cell(route, way, expected(route, way), found if len(reached) < 2 else f"{found}{reached}")


def filled(path: str) -> str:
    """`path` with a name for each of its parameters."""
    return path.replace("{pool}", "default").replace("{", "").replace("}", "")


async def cells(directory: Path) -> list[Cell]:
    world = World(directory)
    return [await world.cell(route, way) for route in world.guarded.routes for way in WAYS]


def printed(found: list[Cell]) -> str:
    rows = [("", "", "needs", *(way.name for way in WAYS))]
    for start in range(0, len(found), len(WAYS)):
        row = found[start : start + len(WAYS)]
        route = row[0].route
        told = (c.found if c.found == c.expected else f"{c.found}, not {c.expected}" for c in row)
        rows.append((route.method, route.path, route.role or "-", *told))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    wrong = sum(cell.found != cell.expected for cell in found)
    size = f"{len(rows) - 1} routes x {len(WAYS)} ways of asking = {len(found)} cells, {wrong} wrong"
    return "\n".join([*(line.rstrip() for line in lines), "", LEGEND, size])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(cells(Path(directory)))
    if as_json:
        rows = [
            {"method": c.route.method, "path": c.route.path, "role": c.route.role, "way": c.way.name}
            | {"expected": c.expected, "found": c.found}
            for c in found
        ]
        print(json.dumps({"cells": rows, "size": len(rows)}, indent=1))
    else:
        print(printed(found))
    return int(any(cell.found != cell.expected for cell in found))


if __name__ == "__main__":
    sys.exit(main())
