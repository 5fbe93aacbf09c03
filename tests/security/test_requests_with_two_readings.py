"""Requests that two readers could take for different ones: each is refused, and no handler sees it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dspool_console
import dspool_serve
from dspool_serve.api.application import Application
from dspool_serve.http import requests
from dspool_serve.pools import Settings
from tests.unit.http_doubles import FakePool, FixedPools

QA = "/v1/pools/default/programs/qa/execute"
BODY = b'{"inputs": {"question": "?"}}'
USUAL = [
    (b"host", b"localhost"),
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(BODY)),
]


async def status_of(pool, *headers, type="http"):
    """The status with these headers beside the usual ones; of a WebSocket, what was sent first."""
    sent = []
    pieces = iter([{"type": "http.request", "body": BODY, "more_body": False}])

    async def receive():
        return next(pieces, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    app = Application(FixedPools(pool), Settings())
    scope = {"type": type, "method": "POST", "path": QA, "headers": [*USUAL, *headers], "query_string": b""}
    await app(scope, receive, send)
    return sent[0].get("status", sent[0]["type"])


@pytest.mark.parametrize("name", sorted(requests._ONCE))
async def test_a_header_that_decides_something_comes_once(name):
    pool = FakePool()
    twice = [(name, b"1"), (name, b"2")]
    assert await status_of(pool, *twice) == 400
    # The same value twice is no better: who refuses it in front, and who does not?
    assert await status_of(pool, twice[0], twice[0]) == 400
    assert pool.asked == []


async def test_a_header_that_is_a_list_may_come_in_pieces():
    pool = FakePool()
    assert (
        await status_of(pool, (b"accept", b"text/html"), (b"accept", b"*/*"), (b"via", b"1"), (b"via", b"2"))
        == 200
    )
    assert len(pool.asked) == 1


_READ = re.compile(
    r"""headers(?:\.get\(|\[)b"([a-z-]+)"|b"([a-z-]+)" (?:not )?in (?:request\.)?headers\b(?!\.)"""
    r'''|^_?[A-Z_]+(?:: Final)? = b"(x-[a-z-]+|[a-z]+-key)"''',
    re.M,
)
"""A header's name where it is read, or the constant that holds it."""


def test_every_header_that_the_service_reads_is_a_list_or_comes_once():
    lists = {"accept", "accept-encoding", "if-none-match"}
    code = [
        file.read_text()
        for of in (dspool_serve, dspool_console)
        for file in Path(of.__file__).parent.rglob("*.py")
    ]
    read = {name for text in code for found in _READ.findall(text) for name in found if name}
    assert {"authorization", "idempotency-key", "x-dspool-priority", "x-dspool-csrf"} <= read
    assert {name.encode() for name in read - lists} <= requests._ONCE


async def test_a_websocket_is_closed_before_it_is_one():
    pool = FakePool()
    assert await status_of(pool, type="websocket") == "websocket.close"
    assert pool.asked == []
