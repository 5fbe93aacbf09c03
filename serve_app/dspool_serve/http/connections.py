"""How connections are served inside the ingress: all that wait are let in, answers leave in one piece, and hang-ups are
noticed for nothing.

The loop takes one connection in a turn (libuv does, from 1.45 on). When each turn serves a hundred requests, the last
of a hundred new connections would wait for a hundred turns: a second, under load. Here the first lets in all others.

Uvicorn hands head and body of an answer to the socket one after the other: two system calls, and HAProxy is woken
twice. Here what one turn of the event loop writes to a connection leaves together.

Serve runs each request in a task of its own with a second one beside it that waits for the client to hang up. It leaves
both out when a header of the request says so; ours says so, and the connection itself cancels the request when it ends.
(The header cannot be used by clients to keep a slot for nobody: whatever they send, the connection is watched.)

A server that is told to stop lets what runs on its connections finish. What has no end of its own is told here to stop.

Serve gives no say in the HTTP protocol class that it starts uvicorn with, so ours takes the place of the one that
uvicorn finds under the name `auto`. Where uvicorn is not as we know it, Serve does as it always did.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from ssl import SSLContext

log = logging.getLogger("dspool.http")

SCOPE_KEY = "dspool.connection"
_AT_ONCE = 256
"""Connections let in before others get their turn."""
NOT_WATCHED_BY_SERVE = (b"x-request-disconnect-disabled", b"?1")


class OneWrite:
    """A transport that writes at the end of the loop's turn. The rest of it is the transport itself.

    What waits is at most one turn's writes: a server that is told to pause stops before its next.
    """

    __slots__ = ("_loop", "_transport", "_waiting")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting and not self._transport.is_closing():
            self._transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Watch:
    """The requests under way on one connection; they are cancelled when it ends."""

    __slots__ = ("_gone", "_tasks", "on_leaving")

    def __init__(self) -> None:
        self._gone = False
        self._tasks: list[asyncio.Task[Any]] = []
        self.on_leaving: set[Callable[[], None]] = set()
        """Are told when the server wants to stop. A set: one connection carries many requests for the same."""

    def join(self) -> None:
        """The current task runs a request of this connection."""
        task = asyncio.current_task()
        assert task is not None
        if self._gone:
            task.cancel()
        # There is more than one only while a client sends requests without waiting for answers.
        self._tasks = [task, *(one for one in self._tasks if not one.done())]

    def leaving(self) -> None:
        for hear in self.on_leaving:
            hear()

    def lost(self) -> None:
        self._gone = True
        for task in self._tasks:
            task.cancel()


def watched(scope: MutableMapping[str, Any]) -> None:
    """From now on the current task ends with the connection of `scope`, if that is one of ours."""
    watch: Watch | None = scope.get(SCOPE_KEY)
    if watch is not None:
        watch.join()


def when_leaving(scope: MutableMapping[str, Any], hear: Callable[[], None]) -> None:
    """Call `hear` when the server of `scope` is told to stop: for answers that have no end of their own."""
    watch: Watch | None = scope.get(SCOPE_KEY)
    if watch is not None:
        watch.on_leaving.add(hear)


class Listener:
    """Takes in what waits at the listening sockets of `servers`, for protocols that `factory` makes."""

    def __init__(
        self,
        servers: Iterable[asyncio.Server],
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        ssl: SSLContext | None = None,
    ) -> None:
        self._servers = list(servers)
        self._factory = factory
        self._ssl = ssl
        self._entering: set[asyncio.Task[None]] = set()

    def let_in(self) -> None:
        """All that wait now, at most `_AT_ONCE`. Nothing waits at a server that was closed."""
        for server in self._servers:
            for listening in server.sockets:
                self._let_in_from(listening.fileno())

    def _let_in_from(self, descriptor: int) -> None:
        # The server's own descriptor, lent: a copy would keep the port open after the server has closed.
        lent = socket.socket(fileno=descriptor)
        try:
            for _ in range(_AT_ONCE):
                accepted, _ = lent.accept()
                task = asyncio.get_running_loop().create_task(self._enter(accepted))
                self._entering.add(task)
                task.add_done_callback(self._entering.discard)
        except OSError:
            # Nobody waits any more, or no descriptor is free: the loop goes on as if this were not there.
            pass
        finally:
            lent.detach()

    async def _enter(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._factory, accepted, ssl=self._ssl)
        except OSError:
            accepted.close()


def install() -> bool:
    """Let uvicorn servers that this process starts from now on use it; false where uvicorn is not as we know it."""
    try:
        from uvicorn.config import HTTP_PROTOCOLS
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.server import Server
    except ImportError:
        log.info("uvicorn has another HTTP protocol here; connections are served as Serve does it")
        return False
    base: Any = HttpToolsProtocol

    class Protocol(base):  # type: ignore[misc]
        _let_in = False
        """By another connection, which has looked for more already."""

        def connection_made(self, transport: Any) -> None:
            self._watch = Watch()
            super().connection_made(OneWrite(transport, asyncio.get_running_loop()))
            door: Listener | None = getattr(self.server_state, "door", None)
            if door is not None and not self._let_in:
                door.let_in()

        def on_headers_complete(self) -> None:
            self.scope[SCOPE_KEY] = self._watch
            # Last, so that it wins over one that the client sent.
            self.headers.append(NOT_WATCHED_BY_SERVE)
            super().on_headers_complete()

        def shutdown(self) -> None:
            super().shutdown()
            self._watch.leaving()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._watch.lost()

    open_up = Server.startup

    async def startup(server: Any, sockets: list[socket.socket] | None = None) -> None:
        await open_up(server, sockets=sockets)

        def protocol() -> asyncio.BaseProtocol:
            made: Any = server.config.http_protocol_class(
                config=server.config, server_state=server.server_state, app_state=server.lifespan.state
            )
            made._let_in = True
            return cast("asyncio.BaseProtocol", made)

        if server.config.http_protocol_class is Protocol:
            server.server_state.door = Listener(server.servers, protocol, ssl=server.config.ssl)

    globals()["Protocol"] = Protocol
    HTTP_PROTOCOLS["auto"] = f"{__name__}:Protocol"
    Server.startup = startup  # type: ignore[method-assign, assignment]
    return True


__all__ = ["OneWrite", "Watch", "install", "watched", "when_leaving"]
