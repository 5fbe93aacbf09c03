"""The thin layer between ASGI and the routes: reading a request, sending an answer.

No framework on the hot path; `docs/explanation/adr/0005-http-stack.md` says why and what it saves.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

from dspool.core.admission.access import Role, Token
from dspool.errors import CallerError, Cancelled, InvalidRequest, PayloadTooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON_TYPE = b"application/json"

_NOT_KEPT = (b"cache-control", b"no-store")
ALWAYS: tuple[tuple[bytes, bytes], ...] = ((b"x-content-type-options", b"nosniff"), _NOT_KEPT)
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class RequestTooSlow(CallerError):
    """The body did not arrive in time."""

    code = "request_too_slow"


class Login(NamedTuple):
    """A login to the dashboard that was recognised."""

    token: Token
    began: int
    ends: int
    nonce: str


class Trace(Protocol):
    def traceparent(self, given: str | None) -> str | None:
        """What an operation is run with that was asked for with the context `given`."""
        ...


class Response(NamedTuple):
    status: int
    body: bytes
    content_type: bytes = JSON_TYPE
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Request:
    """One HTTP request. `params` are the path's parameters, decoded."""

    __slots__ = (
        "_body_timeout_s",
        "_read",
        "headers",
        "login",
        "params",
        "principal",
        "receive",
        "role",
        "scope",
        "trace",
    )

    def __init__(self, scope: Scope, receive: Receive, body_timeout_s: float = 30.0) -> None:
        self.scope = scope
        self._body_timeout_s = body_timeout_s
        self.receive = receive
        # A repeated header's last value counts: the server in front has refused repeated Content-Length.
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.params: dict[str, str] = {}
        self.principal: str | None = None
        """Who asks; None is nobody in particular, or the pool's own."""
        self.role: Role = "admin"
        """What that one may do; without tokens everybody may do everything."""
        self.login: Login | None = None
        """The login to the dashboard that it came with."""
        self._read: bytes | None = None
        self.trace: Trace | None = None

    def put_back(self, body: bytes) -> None:
        """`body` was read ahead; whoever asks for it next gets it."""
        self._read = body

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context that an operation of this request runs in, if any; reading it decides on tracing."""
        value = self.headers.get(b"traceparent")
        well_formed = value is not None and _TRACEPARENT.fullmatch(value) is not None
        given = value.decode("ascii") if value is not None and well_formed else None
        return given if self.trace is None else self.trace.traceparent(given)

    def query(self, allowed: frozenset[str]) -> dict[str, str]:
        """The query parameters; the first of a name counts.

        Raises:
            InvalidRequest: a parameter that is not in `allowed`.
        """
        raw: bytes = self.scope.get("query_string", b"")
        if not raw:
            return {}
        try:
            pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=32, errors="strict")
        except ValueError as bad:
            raise InvalidRequest("the query string cannot be read") from bad
        found: dict[str, str] = {}
        for name, value in pairs:
            if name not in allowed:
                expected = ", ".join(sorted(allowed)) or "none"
                raise InvalidRequest(f"unknown query parameter {name[:50]!r}; known: {expected}")
            found.setdefault(name, value)
        return found

    async def body(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            PayloadTooLarge: more than `limit` bytes, announced or sent; the rest is not read.
            Cancelled: the client went away first.
            RequestTooSlow: it took longer than the body may take.
        """
        if self._read is not None:
            return self._read
        announced = self.headers.get(b"content-length")
        if announced is not None and (
            len(announced) > 18 or not announced.isdigit() or int(announced) > limit
        ):
            raise _too_large(limit)
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away while sending its request")
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > limit:
                raise _too_large(limit)
            return body
        # A body in one piece never comes here: it pays for no timer.
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await self._rest(bytearray(body), limit)
        except TimeoutError:
            raise RequestTooSlow(f"the body took longer than {self._body_timeout_s:g} s to arrive") from None

    async def _rest(self, parts: bytearray, limit: int) -> bytes:
        more = True
        while more:
            if len(parts) > limit:
                raise _too_large(limit)
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the client went away while sending its request")
            parts += message.get("body", b"")
            more = message.get("more_body", False)
        if len(parts) > limit:
            raise _too_large(limit)
        return bytes(parts)


async def respond(send: Send, response: Response, request_id: bytes | None = None) -> None:
    """Send `response`; with `request_id`, echo it as `x-request-id`."""
    headers = [
        (b"content-length", b"%d" % len(response.body)),
        *ALWAYS,
        *response.headers,
    ]
    if response.headers and any(name == b"cache-control" for name, _ in response.headers):
        headers.remove(_NOT_KEPT)
    if response.body:
        headers.append((b"content-type", response.content_type))
    if request_id is not None:
        headers.append((b"x-request-id", request_id))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit} bytes; raise service.max_body_bytes if that is right", limit=limit
    )
