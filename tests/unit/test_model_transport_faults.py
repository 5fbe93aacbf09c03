"""DSPy's own transport and ours fail alike: with the same error, in the same words, and nothing left open."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dspy._vendor.lm15.transports._exceptions import (
    ConnectError,
    ProtocolError,
    ReadError,
    ReadTimeout,
    WriteTimeout,
)

from dspool.programs.models.transport import LeanTransport
from tests.raw_http import BODY, CHUNKED, TRANSPORTS, WHOLE, Reply, Server, asked, failure, listening, post

GZIP = gzip.compress(BODY)


@pytest.fixture(params=TRANSPORTS)
def kind(request: pytest.FixtureRequest) -> Any:
    return TRANSPORTS[request.param]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with listening() as server:
        yield server


FAULTS: dict[str, tuple[Reply, type[Exception]]] = {
    "no answer": ([None], ReadError),
    "half a head": ([b"HTTP/1.1 200 OK\r\nContent-", None], ReadError),
    "half a body": ([WHOLE[:-3], None], ProtocolError),
    "half a chunk": ([CHUNKED + b"9\r\nabc", None], ProtocolError),
    "no end of chunks": ([CHUNKED + b"3\r\nabc\r\n", None], ProtocolError),
    "no http": ([b"SSH-2.0-OpenSSH\r\n\r\n", None], ProtocolError),
    "no length": ([b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", None], ProtocolError),
    "no chunk": ([CHUNKED + b"x\r\n", None], ProtocolError),
    "a long head": ([b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, None], ProtocolError),
    "an unknown coding": (
        [b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nabc", None],
        ProtocolError,
    ),
    "two codings of a transfer": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", None],
        ProtocolError,
    ),
    "a coding that is none": (
        [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", None],
        ProtocolError,
    ),
    "half a coding": (
        [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 12\r\n\r\n" + GZIP[:12], None],
        ProtocolError,
    ),
}
SAME_TEXT = set(FAULTS) - {"no http", "no length", "no chunk", "a long head"}
"""What is malformed each parser says in its own words."""


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_broken_answer_is_the_same_error(server: Server, fault: str):
    reply, expected = FAULTS[fault]
    server.replies = [reply]
    texts = []
    for kind in TRANSPORTS.values():
        async with kind() as transport:
            failed = await failure(asked(transport, post(server.url)))
            assert type(failed) is expected
            texts.append(str(failed))
            assert transport.pool_stats()["in_use"] == transport.pool_stats()["idle"] == 0
    if fault in SAME_TEXT:
        assert texts[0] == texts[1]


async def test_a_server_that_is_not_there_is_a_failed_connection():
    async with listening() as gone:
        url = gone.url
    texts = set()
    for kind in TRANSPORTS.values():
        async with kind() as transport:
            failed = await failure(asked(transport, post(url)))
            assert isinstance(failed, ConnectError)
            texts.add(str(failed))
    assert len(texts) == 1


@pytest.mark.parametrize("reply", [[5.0], [CHUNKED + b"5\r\nhello\r\n", 5.0]], ids=["head", "body"])
async def test_silence_ends_with_the_time_to_read(server: Server, reply: Reply):
    server.replies = [reply]
    texts = set()
    for kind in TRANSPORTS.values():
        async with kind(read_timeout=30.0) as transport:
            failed = await failure(asked(transport, post(server.url, read_timeout=0.05)))
            assert isinstance(failed, ReadTimeout)
            texts.add(str(failed))
            assert transport.pool_stats()["in_use"] == 0
    assert len(texts) == 1


async def test_a_slow_answer_that_goes_on_is_no_silence(server: Server, kind: Any):
    server.replies = [[piece for at in range(18) for piece in (0.02, BODY[at : at + 1])]]
    server.replies[0].insert(0, WHOLE.removesuffix(BODY))
    async with kind(read_timeout=0.3) as transport:
        assert (await asked(transport, post(server.url)))[3] == BODY


async def test_a_server_that_takes_nothing_ends_with_the_time_to_write(server: Server):
    server.reads = False
    for kind in TRANSPORTS.values():
        async with kind(write_timeout=0.1) as transport:
            failed = await failure(asked(transport, post(server.url, bytes(50_000_000))))
            assert isinstance(failed, WriteTimeout)


async def test_an_answer_that_nobody_takes_is_not_kept_whole(server: Server):
    total = 50_000_000
    server.replies = [[b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total, bytes(total)]]
    async with LeanTransport() as transport, transport.stream(post(server.url)) as response:
        await asyncio.sleep(0.1)
        assert sum(map(len, response._connection.pieces)) < 2_000_000
        assert len(await response.read()) == total
