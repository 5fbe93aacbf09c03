"""DSPy's own transport and ours do the same: how they are asked, what they give back, and over which connections."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import resource
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from dspy._vendor.lm15.transports import TransportRequest
from dspy._vendor.lm15.transports._exceptions import ConnectError, ProtocolError
from dspy._vendor.lm15.transports._http11 import build_request_head
from dspy._vendor.lm15.transports._url import parse_url
from hypothesis import given
from hypothesis import strategies as st

from dspool.programs.models.transport import LeanTransport, request_head
from tests.raw_http import BODY, CHUNKED, TRANSPORTS, WHOLE, Reply, Server, asked, failure, listening, post
from tests.tls import certificate


@pytest.fixture(params=TRANSPORTS)
def kind(request: pytest.FixtureRequest) -> Any:
    return TRANSPORTS[request.param]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with listening() as server:
        yield server


# --- what goes out ---


async def test_the_same_bytes_are_sent(server: Server):
    for kind in TRANSPORTS.values():
        async with kind() as transport:
            await asked(transport, post(server.url))
            await asked(transport, TransportRequest("GET", server.url))
            await asked(
                transport, TransportRequest("POST", server.url, [("host", "other"), ("user-agent", "x")], b"")
            )
    assert len(server.asked) == 6
    assert server.asked[:3] == server.asked[3:]


_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)


@given(
    st.lists(
        st.tuples(st.sampled_from(["A", "Host", "accept", "Content-Length", "User-Agent"]), _TEXT), max_size=4
    ),
    st.none() | st.integers(0, 10**9),
    st.sampled_from([("h", 80, False), ("h", 443, True), ("::1", 8000, False), ("h", 8443, True)]),
)
def test_a_head_is_written_as_dspy_writes_it(headers, body_length, place):
    host, port, tls = place
    theirs = build_request_head(
        method="POST",
        target="/v1?x=1",
        host=host,
        port=port,
        is_tls=tls,
        headers=headers,
        body_length=body_length,
    )
    url = parse_url(f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}/v1?x=1")
    assert request_head("POST", "/v1?x=1", url.host_header(), headers, body_length, "lm15/stdlib") == theirs


@pytest.mark.parametrize("bad", ["a\r\nX: 1", "a\nb", "a\0"])
async def test_a_header_cannot_begin_another_one(server: Server, kind: Any, bad: str):
    async with kind() as transport:
        failed = await failure(asked(transport, TransportRequest("POST", server.url, [("X-Key", bad)], b"")))
        assert isinstance(failed, ProtocolError)
        assert transport.pool_stats()["in_use"] == 0
    assert not server.asked


# --- what comes back ---

GZIP = gzip.compress(BODY)
DEFLATE = zlib.compress(BODY)
ANSWERS: dict[str, Reply] = {
    "a length": [WHOLE],
    "byte by byte": [WHOLE[at : at + 1] for at in range(len(WHOLE))],
    "chunks": [CHUNKED + b"9\r\n" + BODY[:9] + b"\r\n", b"9;x=y\r\n" + BODY[9:] + b"\r\n0\r\n\r\n"],
    "chunks byte by byte": [bytes([one]) for one in CHUNKED + b"12\r\n" + BODY + b"\r\n0\r\nT: x\r\n\r\n"],
    "until the end": [b"HTTP/1.1 200 OK\r\n\r\n" + BODY[:5], BODY[5:], None],
    "http 1.0": [b"HTTP/1.0 200 OK\r\n\r\n" + BODY, None],
    "closing": [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 18\r\n\r\n" + BODY, None],
    "gzip": [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(GZIP) + GZIP],
    "deflate in chunks": [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%s\r\n" % (len(DEFLATE), DEFLATE),
        b"0\r\n\r\n",
    ],
    "gzip until the end": [b"HTTP/1.1 200 OK\r\nContent-Encoding: x-gzip\r\n\r\n" + GZIP, None],
    "an error": [b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 18\r\n\r\n" + BODY],
}


@pytest.mark.parametrize("reply", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_read_however_it_comes(server: Server, reply: Reply):
    server.replies = [reply]
    found = []
    for kind in TRANSPORTS.values():
        async with kind() as transport:
            found.append(await asked(transport, post(server.url)))
            assert transport.pool_stats()["in_use"] == 0
    assert found[0] == found[1]
    assert found[0][3] == BODY


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"200 OK\r\nContent-Length: 0"])
async def test_an_answer_without_a_body_ends_with_its_head(server: Server, kind: Any, status: bytes):
    server.replies = [[b"HTTP/1.1 " + status + b"\r\n\r\n"]]
    async with kind() as transport:
        assert (await asked(transport, post(server.url)))[3] == b""
        assert transport.pool_stats() == {"idle": 1, "in_use": 0, "total_opened": 1}


async def test_pieces_and_lines_arrive_as_they_are_sent(server: Server, kind: Any):
    async with kind() as transport:
        arrived = asyncio.Event()
        server.replies = [
            [CHUNKED + b"8\r\ndata: a\n\r\n", 0.02, b"a\r\n\ndata: b\n\n\r\n", b"3\r\nend\r\n0\r\n\r\n"]
        ]
        async with transport.stream(post(server.url)) as response:
            lines = []
            async for line in response.aiter_lines():
                lines.append(line)
                arrived.set()
        assert lines == [b"data: a\n", b"\n", b"data: b\n", b"\n", b"end"]
        async with transport.stream(post(server.url)) as response:
            assert b"".join([piece async for piece in response]) == b"data: a\n\ndata: b\n\nend"


async def test_an_interim_answer_is_not_taken_for_the_answer(server: Server):
    server.replies = [[b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 0.01, WHOLE]]
    async with LeanTransport() as transport:
        status, _, headers, body = await asked(transport, post(server.url))
    assert (status, dict(headers), body) == (200, {"Content-Length": "18", "X-Request-Id": "7"}, BODY)


# --- connections ---


async def test_a_connection_is_used_again(server: Server, kind: Any):
    async with kind() as transport:
        for _ in range(3):
            await asked(transport, post(server.url))
        assert transport.pool_stats() == {"idle": 1, "in_use": 0, "total_opened": 1}
    assert server.connections == 1


async def test_one_that_the_server_closed_meanwhile_is_not(server: Server, kind: Any):
    server.replies = [[WHOLE, None]]
    async with kind() as transport:
        for _ in range(3):
            assert (await asked(transport, post(server.url)))[3] == BODY
            await server.gone.wait()
            server.gone.clear()
    assert server.connections == 3


async def test_what_nobody_asked_for_is_not_taken_for_the_next_answer(server: Server):
    late = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
    server.replies = [[WHOLE, 0.01, late], [WHOLE + late], [WHOLE]]
    async with LeanTransport() as transport:
        for _ in range(4):
            assert (await asked(transport, post(server.url)))[0] == 200
            await asyncio.sleep(0.05)


async def test_one_that_was_not_read_to_its_end_is_closed(server: Server, kind: Any):
    server.replies = [[CHUNKED + b"5\r\nhello\r\n", 5.0]]
    async with kind() as transport:
        async with transport.stream(post(server.url)) as response:
            async for piece in response:
                assert piece == b"hello"
                break
        assert transport.pool_stats()["in_use"] == transport.pool_stats()["idle"] == 0


async def test_a_call_that_is_cancelled_closes_its_connection_and_leaves_its_place(server: Server, kind: Any):
    server.replies = [[5.0, WHOLE], [CHUNKED + b"5\r\nhello\r\n", 5.0], [WHOLE]]
    async with kind(max_connections=1) as transport:
        for _ in range(2):
            call = asyncio.create_task(asked(transport, post(server.url)))
            before = len(server.asked)
            while len(server.asked) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert transport.pool_stats()["in_use"] == 0
        assert (await asked(transport, post(server.url)))[3] == BODY


async def test_no_more_connections_are_open_than_allowed(server: Server, kind: Any):
    server.replies = [[0.01, WHOLE]]
    async with kind(max_connections=2) as transport:
        await asyncio.gather(*(asked(transport, post(server.url)) for _ in range(8)))
    assert server.connections == 2


async def test_who_waits_too_long_for_one_is_told_of_the_limit(server: Server, kind: Any):
    server.replies = [[5.0, WHOLE]]
    async with kind(max_connections=1, pool_timeout=0.05) as transport:
        first = asyncio.create_task(asked(transport, post(server.url)))
        while not server.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert "all 1 connections were busy" in str(await failure(asked(transport, post(server.url))))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_connections_with_high_file_numbers_are_used_again(server: Server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with contextlib.ExitStack() as files:
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            files.enter_context(Path("/dev/null").open())  # noqa: ASYNC230
        async with LeanTransport() as transport:
            for _ in range(3):
                await asked(transport, post(server.url))
    assert server.connections == 1


async def test_a_closed_transport_takes_no_call(server: Server, kind: Any):
    transport = kind()
    await asked(transport, post(server.url))
    await transport.aclose()
    await server.gone.wait()
    assert "closed" in str(await failure(asked(transport, post(server.url))))
    assert server.open == 0


# --- proxies and TLS ---


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, "")
            monkeypatch.delenv(spelling)
    return lambda **names: [monkeypatch.setenv(name, value) for name, value in names.items()] and None


async def test_a_proxy_is_asked_for_the_whole_address(server: Server, environment: Callable[..., None]):
    for number, kind in enumerate(TRANSPORTS.values()):
        host = f"model{number}.example"
        environment(http_proxy=f"http://user:pass@127.0.0.1:{server.port}", no_proxy="direct.example")
        async with kind() as transport:
            await asked(transport, post(f"http://{host}:8000/v1"))
        head = server.asked[-1].decode()
        assert head.startswith(f"POST http://{host}:8000/v1 HTTP/1.1\r\nHost: {host}:8000\r\n")
        assert "Proxy-Authorization: Basic dXNlcjpwYXNz\r\n" in head


async def test_what_is_to_go_directly_does(server: Server, kind: Any, environment: Callable[..., None]):
    async with listening() as proxy:
        environment(http_proxy=f"http://127.0.0.1:{proxy.port}", no_proxy="127.0.0.1")
        async with kind() as transport:
            await asked(transport, post(server.url))
        assert not proxy.asked


async def test_tls_is_checked_and_spoken(kind: Any, tmp_path: Path):
    files = certificate(tmp_path, "localhost")
    async with listening(files.server()) as secure:
        url = f"https://localhost:{secure.port}/v1"
        async with kind(ca_bundle=str(files.ca)) as transport:
            for _ in range(2):
                assert (await asked(transport, post(url)))[3] == BODY
        async with kind() as transport:
            assert "certificate" in str(await failure(asked(transport, post(url))))
        async with kind(ca_bundle=str(files.ca)) as transport:
            wrong = await failure(asked(transport, post(f"https://127.0.0.1:{secure.port}/v1")))
            assert isinstance(wrong, ConnectError)


async def test_tls_through_a_proxy_goes_through_a_tunnel(
    kind: Any, tmp_path: Path, environment: Callable[..., None]
):
    # A host of its own: the way to one is looked up once in a process.
    host = f"{kind.__name__.lower()}.example"
    files = certificate(tmp_path, host)
    tunnels: list[bytes] = []
    async with listening(files.server()) as secure:

        async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tunnels.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            inside_reader, inside = await asyncio.open_connection("127.0.0.1", secure.port)
            await asyncio.gather(_through(reader, inside), _through(inside_reader, writer))

        proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
        environment(https_proxy=f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        async with kind(ca_bundle=str(files.ca)) as transport:
            for _ in range(2):
                assert (await asked(transport, post(f"https://{host}/v1")))[3] == BODY
        proxy.close()
    assert [one.split(b"\r\n")[0] for one in tunnels] == [f"CONNECT {host}:443 HTTP/1.1".encode()]


async def _through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()
