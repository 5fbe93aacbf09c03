"""What Starlette would cost in place of `dspool_serve.http`: the figure of ADR 5.

One process, no server and no network: an ASGI call of `execute` on a pool that answers at once, with the same routes
and handlers. The layers take turns, block by block; what counts is the difference within a turn.

- ours: `dspool_serve.http`.
- starlette: as its documentation has it: an application with routes, endpoints that are functions, its request and
  response, and an exception handler for our errors.
- starlette_lean: only its router, and its request and response where they cost little: headers are read once into a
  dictionary, errors are caught in the endpoint.

Each is measured on the first route of the table and on one further down, as Starlette's router tries routes in order.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import msgspec
import uvloop
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response as StarletteResponse
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router as StarletteRouter

from benchmarks.common import arguments, finish, header
from dspool.errors import PayloadTooLarge, PoolError
from dspool.messages import Result
from dspool_serve.access.security import Security
from dspool_serve.api import ROUTES
from dspool_serve.api.application import Application
from dspool_serve.api.idempotency import keyed
from dspool_serve.http.problems import problem
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import ALWAYS, Response
from dspool_serve.pools import Settings

PATHS = {
    "first": "/v1/pools/default/programs/qa/execute",
    "session": "/v1/pools/default/sessions/ada/programs/qa/execute",
}
BODY = msgspec.json.encode(
    {"inputs": {"question": "What is the capital of France, and how many live there?"}}
)
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(BODY)),
    (b"x-request-id", b"9a4dd0d6-0ac6-4a70-8f0c-a1c4a2d0a1b1"),
    (b"x-forwarded-for", b"127.0.0.1"),
]
ASGI = Callable[..., Awaitable[None]]


class InstantPool:
    """Answers at once with what was asked."""

    tracing = None

    async def run(self, command: Any, **options: Any) -> Result:
        return Result(
            "op-1", "default-w0-abcdef", {"outputs": command.inputs}, 3, 0.25, 0.5, {}, offline=True
        )


class InstantPools:
    def names(self) -> list[str]:
        return ["default"]

    def get(self, name: str) -> InstantPool:
        return InstantPool()


class Name(Convertor[str]):
    """A name in a path, as `http.routing` reads it: from the raw path, so that an escaped slash stays inside."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value, errors="strict") if "%" in value else value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", Name())


class BytesHeaders:
    """Starlette's headers for handlers that ask for bytes."""

    def __init__(self, headers: Any) -> None:
        self._headers = headers

    def __contains__(self, name: bytes) -> bool:
        return name.decode() in self._headers

    def get(self, name: bytes, default: bytes | None = None) -> bytes | None:
        value = self._headers.get(name.decode())
        return default if value is None else value.encode("latin-1")


class HandlerRequest(StarletteRequest):
    """Starlette's request with what our handlers ask for besides."""

    principal = login = trace = None
    role = "admin"
    traceparent: Any = Request.traceparent
    has_body: Any = Request.has_body
    refuse_compressed: Any = Request.refuse_compressed

    @property
    def params(self) -> dict[str, Any]:
        return self.path_params

    @property
    def headers(self) -> Any:
        return BytesHeaders(super().headers)

    async def body(self, limit: int) -> bytes:  # type: ignore[override]
        announced = self.headers.get(b"content-length")
        if announced is not None and (not announced.isdigit() or int(announced) > limit):
            raise PayloadTooLarge("too large")
        parts = []
        async for part in self.stream():
            parts.append(part)
            if sum(map(len, parts)) > limit:
                raise PayloadTooLarge("too large")
        return b"".join(parts)


class LeanRequest(HandlerRequest):
    headers: Any = None

    def __init__(self, scope: Any, receive: Any) -> None:
        super().__init__(scope, receive)
        self.headers = dict(scope["headers"])


class LeanResponse(StarletteResponse):
    def init_headers(self, headers: Any = None) -> None:
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), *ALWAYS]


def answer(response: Response, kind: type[StarletteResponse] = StarletteResponse) -> StarletteResponse:
    made = kind(response.body, response.status)
    if kind is StarletteResponse:
        made.raw_headers.extend(ALWAYS)
    made.raw_headers.append((b"content-type", response.content_type))
    made.raw_headers.extend(response.headers)
    return made


def table(endpoint: Callable[[Any], Any]) -> list[StarletteRoute]:
    routes = Security().secured(keyed(ROUTES))
    return [
        StarletteRoute(re.sub(r"\{(\w+)\}", r"{\1:name}", one.path), endpoint(one), methods=[one.method])
        for one in routes
    ]


def starlette(context: Any) -> ASGI:
    def endpoint(route: Any) -> Any:
        async def handle(request: StarletteRequest) -> StarletteResponse:
            return answer(await route.handler(context, HandlerRequest(request.scope, request.receive)))

        return handle

    async def failed(request: StarletteRequest, error: Exception) -> StarletteResponse:
        assert isinstance(error, PoolError)
        return answer(problem(error))

    return by_raw_path(Starlette(routes=table(endpoint), exception_handlers={PoolError: failed}))


def starlette_lean(context: Any) -> ASGI:
    class Endpoint:
        def __init__(self, route: Any) -> None:
            self._handler = route.handler

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                response = answer(await self._handler(context, LeanRequest(scope, receive)), LeanResponse)
            except PoolError as error:
                response = answer(problem(error))
            await response(scope, receive, send)

    return by_raw_path(StarletteRouter(table(Endpoint), redirect_slashes=False))


def by_raw_path(application: ASGI) -> ASGI:
    async def routed(scope: Any, receive: Any, send: Any) -> None:
        scope["path"] = scope["raw_path"].decode("latin-1")
        await application(scope, receive, send)

    return routed


async def block(application: ASGI, path: str, requests: int) -> float:
    """Processor time of one request, in microseconds."""
    message = {"type": "http.request", "body": BODY, "more_body": False}
    sent: list[Any] = []

    async def receive() -> Any:
        return message

    async def send(part: Any) -> None:
        sent.append(part)

    began = time.thread_time()
    for _ in range(requests):
        sent.clear()
        scope = {"type": "http", "http_version": "1.1", "scheme": "http", "root_path": "", "method": "POST"}
        scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": list(HEADERS)}
        await application(scope, receive, send)
    taken_s = time.thread_time() - began
    assert sent[0]["status"] == 200, sent
    return taken_s / requests * 1e6


async def measure(requests: int, turns: int) -> list[dict[str, Any]]:
    ours = Application(InstantPools(), Settings(echo_request_id=False))  # type: ignore[arg-type]
    layers = {
        "ours": ours,
        "starlette": starlette(ours._context),
        "starlette_lean": starlette_lean(ours._context),
    }
    rows = []
    for route, path in PATHS.items():
        taken: dict[str, list[float]] = {name: [] for name in layers}
        for turn in range(turns + 1):
            for name, layer in layers.items():
                us = await block(layer, path, requests)
                if turn:
                    taken[name].append(us)
        for name, values in taken.items():
            more = statistics.median(us - base for us, base in zip(values, taken["ours"], strict=True))
            rows.append(
                {
                    "route": route,
                    "layer": name,
                    "us": round(statistics.median(values), 1),
                    "least_us": round(min(values), 1),
                    "more_us": round(more, 1),
                    "more_least_us": round(min(values) - min(taken["ours"]), 1),
                }
            )
    return rows


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    requests, turns = (50, 3) if options.quick else (300, 200)
    header("http layers: processor time of one `execute` without server, network and pool")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(measure(requests, turns))
    for row in rows:
        print(
            f"  {row['route']:8s} {row['layer']:15s} {row['us']:6.1f} us (least {row['least_us']:.1f}), "
            f"{row['more_us']:+.1f} us in the same turn (of the least: {row['more_least_us']:+.1f})"
        )
    finish({"rows": rows, "requests": requests, "turns": turns}, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
