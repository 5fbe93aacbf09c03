"""Answers that are there as a whole, and how they are sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

JSON_TYPE = b"application/json"

_NOT_STORED = (b"cache-control", b"no-store")
ALWAYS: tuple[tuple[bytes, bytes], ...] = ((b"x-content-type-options", b"nosniff"), _NOT_STORED)
"""Headers of every answer; one that says `cache-control` itself has its own."""


class Response(NamedTuple):
    status: int
    body: bytes
    content_type: bytes = JSON_TYPE
    headers: tuple[tuple[bytes, bytes], ...] = ()


async def respond(send: Send, response: Response, request_id: bytes | None = None) -> None:
    """Send `response`; with `request_id`, echo it as `x-request-id`."""
    headers = [
        (b"content-length", b"%d" % len(response.body)),
        *ALWAYS,
        *response.headers,
    ]
    if response.headers and any(name == b"cache-control" for name, _ in response.headers):
        headers.remove(_NOT_STORED)
    if response.body:
        headers.append((b"content-type", response.content_type))
    if request_id is not None:
        headers.append((b"x-request-id", request_id))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
