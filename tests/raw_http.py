"""A server of bytes: it answers as a test says, well or badly. And what both transports of models are asked with."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from dspy._vendor.lm15.transports import TransportError, TransportRequest

from dspool.programs.models.transport import LeanTransport

TRANSPORTS: dict[str, Any] = {"dspy": LeanTransport.__mro__[1], "lean": LeanTransport}
Reply = list[bytes | float | None]
"""Bytes that the server sends, pauses in seconds, None: it closes the connection."""

BODY = b'{"answer": "Rome"}'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\nX-Request-Id: 7\r\n\r\n" + BODY
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """Answers each request with the next of its replies; the last one again and again."""

    def __init__(self) -> None:
        self.replies: list[Reply] = [[WHOLE]]
        self.asked: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.reads = True
        self.gone = asyncio.Event()
        """A client has closed a connection."""
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/chat/completions?a=b"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while self.reads and (head := await self._head(reader)):
                self.asked.append(head)
                reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                for piece in reply:
                    if piece is None:
                        return
                    if isinstance(piece, float):
                        await asyncio.sleep(piece)
                    else:
                        writer.write(piece)
                        await writer.drain()
            if not self.reads:
                await self.gone.wait()
        except OSError:
            pass
        finally:
            self.open -= 1
            self.gone.set()
            writer.close()

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            ),
            0,
        )
        return head + await reader.readexactly(length)


@contextlib.asynccontextmanager
async def listening(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        server.gone.set()


def post(url: str, body: bytes = b'{"model": "m"}', **more: Any) -> TransportRequest:
    headers = [("Content-Type", "application/json"), ("Authorization", "Bearer key")]
    return TransportRequest("POST", url, headers, body, **more)


async def asked(transport: Any, request: TransportRequest) -> tuple[int, str, list[tuple[str, str]], bytes]:
    async with transport.stream(request) as response:
        return response.status, response.reason, response.headers, await response.read()


async def failure(made: Awaitable[Any]) -> TransportError:
    with pytest.raises(TransportError) as raised:
        await made
    return raised.value
