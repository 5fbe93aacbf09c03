"""HTTP/1.1 for calls of a model: DSPy's own asynchronous transport with another middle.

How it connects, its TLS, proxies, limits and time-outs, and the texts of its errors are DSPy's: `LeanTransport` is one
of its transports. Between them DSPy waits for each piece of an answer in a task of its own, with a timer and a second
future, and parses it in Python. Here one protocol a connection takes in what arrives, `httptools` (the parser below
uvicorn) reads it, and who waits is woken directly. tests/unit/test_model_transports.py holds both to the same.

aiohttp and httpx were measured in its place: docs/explanation/performance.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from typing import Any, Final

from dspool.programs.models.connection import ModelConnection, ProtocolError, WriteError

# By name: lm15 says that it is typed, and DSPy around it is not.
_LM15: Final = "dspy._vendor.lm15.transports"
_transports: Any = import_module(_LM15)
_dspys: Any = import_module(f"{_LM15}._async")
_coding: Any = import_module(f"{_LM15}._http11")
_route_origin: Any = import_module(f"{_LM15}._proxy").route_origin
_parse_url: Any = functools.lru_cache(maxsize=512)(import_module(f"{_LM15}._url").parse_url)

_FORBIDDEN: Final = re.compile("[\r\n\0]")


def install() -> None:
    """Have DSPy's engines make this transport from now on."""
    _transports.StdlibAsyncTransport = LeanTransport


class LeanTransport(_transports.StdlibAsyncTransport):
    """Of one event loop, as DSPy's own."""

    _pool: Any
    """DSPy's own, with connections of ours."""

    async def _do_stream(self, request: Any) -> Any:
        if self._closed:
            raise _transports.TransportError("transport is closed")
        if request.method.upper() == "HEAD":
            raise ProtocolError(
                "an answer to HEAD cannot be read: its head says the length of a body that is not sent"
            )
        parsed = _parse_url(request.url)
        # Asked by its name there: a correction keeps what it finds.
        proxy = _dspys.proxy_route_for(parsed, proxy=self._proxy, trust_env=self._trust_env)
        origin = _route_origin(parsed, proxy)
        head = self._head(request, parsed, proxy)
        await self._pool.acquire_slot(timeout=self._pool_timeout)
        connection: ModelConnection | None = None
        try:
            connection = await self._sent(request, parsed, proxy, origin, head)
            timeout_s = request.read_timeout or self._read_timeout
            while not connection.head_complete:
                connection.check()
                await connection.more(timeout_s, "waiting for headers: ")
            return _Answer(connection, timeout_s, self._pool)
        except BaseException:
            if connection is not None:
                await self._pool.discard(connection)
            self._pool.release_slot()
            raise

    async def _sent(
        self,
        request: Any,
        parsed: Any,
        proxy: Any,
        origin: tuple[str, str, int],
        head: bytes,
    ) -> ModelConnection:
        """A connection over which the request went out: one that was kept and, if that broke meanwhile, a new one."""
        write_timeout_s = request.write_timeout or self._write_timeout
        kept: ModelConnection | None = await self._pool.checkout(origin)
        if kept is not None:
            try:
                await kept.send(head, request.body, write_timeout_s)
            except WriteError:
                await self._pool.discard(kept)
            except BaseException:
                await self._pool.discard(kept)
                raise
            else:
                return kept
        connect_timeout_s = request.connect_timeout or self._connect_timeout
        opened = await self._open(parsed, proxy=proxy, origin=origin, connect_timeout=connect_timeout_s)
        connection = ModelConnection(opened)
        await self._pool.register_new(connection)
        try:
            await connection.send(head, request.body, write_timeout_s)
        except BaseException:
            await self._pool.discard(connection)
            raise
        return connection

    def _head(self, request: Any, parsed: Any, proxy: Any) -> bytes:
        target, headers = parsed.target, request.headers
        if proxy is not None and not parsed.is_tls:
            # A proxy is asked for the whole address; `Host` still names the target.
            target = f"http://{parsed.host_header()}{parsed.target}"
            if proxy.basic_auth is not None:
                headers = [*headers, ("Proxy-Authorization", proxy.basic_auth)]
        has_body = request.method.upper() not in ("GET", "DELETE") or bool(request.body)
        return request_head(
            request.method,
            target,
            parsed.host_header(),
            headers,
            len(request.body or b"") if has_body else None,
            self._user_agent,
        )


def request_head(
    method: str,
    target: str,
    host: str,
    headers: list[tuple[str, str]],
    body_length: int | None,
    user_agent: str,
) -> bytes:
    """What DSPy's `build_request_head` makes.

    Raises:
        ProtocolError: a line end or a NUL in one of these.
    """
    given = {name.lower() for name, _ in headers}
    lines = [f"{method} {target} HTTP/1.1"]
    if "host" not in given:
        lines.append(f"Host: {host}")
    if "user-agent" not in given:
        lines.append(f"User-Agent: {user_agent}")
    if "accept" not in given:
        lines.append("Accept: */*")
    if "accept-encoding" not in given:
        lines.append("Accept-Encoding: identity")
    if body_length is not None and "content-length" not in given:
        lines.append(f"Content-Length: {body_length}")
    lines += [f"{name}: {value}" for name, value in headers]
    if any(map(_FORBIDDEN.search, lines)):
        # Not which: the value may be a key.
        raise ProtocolError("forbidden byte in HTTP request line or header")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("iso-8859-1")


class _Answer(_transports.AsyncTransportResponse):
    """The answer of a connection. It gives the connection back once all of it was read, and closes it otherwise."""

    def __init__(self, connection: ModelConnection, timeout_s: float, pool: Any) -> None:
        self.status = connection.status
        self.reason = connection.reason
        self.headers = connection.headers
        self.http_version = connection.http_version
        self._connection, self._timeout_s, self._pool = connection, timeout_s, pool
        self._released = self._complete = False
        self._decode = _decoding(connection)

    async def read(self) -> bytes:
        pieces = [piece async for piece in self._iter()]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def aiter_lines(self) -> AsyncIterator[bytes]:
        rest = b""
        async for piece in self._iter():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    async def _iter(self) -> AsyncIterator[bytes]:
        connection, decode = self._connection, self._decode
        try:
            while True:
                if pieces := connection.take():
                    piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                    if decode is None:
                        yield piece
                    else:
                        for decoded in decode.feed(piece):
                            yield decoded
                    continue
                if connection.complete:
                    break
                connection.check()
                await connection.more(self._timeout_s, "mid-body: ")
            if decode is not None and (tail := decode._finish()):
                yield tail
            self._complete = True
        finally:
            await self._release_once(body_consumed=self._complete)

    async def _release_once(self, *, body_consumed: bool) -> None:
        if self._released:
            return
        self._released = True
        try:
            if body_consumed and self._connection.reusable:
                await self._pool.checkin(self._connection)
            else:
                await self._pool.discard(self._connection)
        finally:
            self._pool.release_slot()


class _Unframed:
    """The framing that `ContentDecoder` asks: the parser has undone it already."""

    leftover = b""

    def __init__(self, connection: ModelConnection) -> None:
        self._connection = connection

    @property
    def complete(self) -> bool:
        return self._connection.complete

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def eof(self) -> None:
        pass


def _decoding(connection: ModelConnection) -> Any:
    """What undoes the compression of a body; None: nothing is to be undone.

    Raises:
        ProtocolError: it cannot be undone.
    """
    codings: list[str] = []
    for name, value in connection.headers:
        name = name.lower()
        if name == "transfer-encoding" and "," in value:
            raise ProtocolError(f"unsupported Transfer-Encoding stacking: {value!r}")
        if name == "content-encoding":
            codings.append(value)
    if not codings or (connection.complete and not connection.pieces):
        return None
    undone = _coding.content_codings(codings)
    return _coding.ContentDecoder(_Unframed(connection), undone) if undone else None
