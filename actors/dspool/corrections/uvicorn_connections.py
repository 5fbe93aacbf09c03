"""How uvicorn serves the connections of an ingress process inside Ray Serve.

Serve gives no say in the protocol class that it starts uvicorn with. So ours, which makes the corrections that are on,
takes the place of the one that uvicorn finds under the name `auto`.

- `uvicorn-accept`: the event loop (libuv, from 1.45 on) accepts one connection a turn. When each turn serves a
  hundred requests, the last of a hundred new connections would wait for a hundred turns. The first lets in all others.
- `uvicorn-one-write`: head and body of an answer are two system calls, and wake HAProxy twice. What one turn of the
  loop writes to a connection leaves together.
- `serve-disconnect`: Serve runs each request in a task, beside a second one that waits for the client to hang up. A
  header of the request leaves both out. Ours sets it, and the connection cancels its requests when it ends. (A client
  that sends the header gains nothing: the connection is watched all the same.)
- `uvicorn-silence`: uvicorn waits for a request's head for ever, and takes connections until no file can be opened. Who
  reaches a replica's port past HAProxy must not hold it up: what is silent ends, and some files are kept.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from dspool.corrections import active

if TYPE_CHECKING:
    from ssl import SSLContext

log = logging.getLogger("dspool.http")

SCOPE_KEY = "dspool.connection"
_BURST = 256
"""Connections let in before others get their turn."""
FILES_KEPT = 200
"""Of those that a process may open, for everything but connections: workers, logs, databases."""
SILENCE_S = 10.0
"""A connection without a whole head ends after one to two of these."""
NOT_WATCHED_BY_SERVE = (b"x-request-disconnect-disabled", b"?1")


def end_with_connection(scope: MutableMapping[str, Any]) -> None:
    """From now on the current task ends with the connection of `scope`, if that is one of ours; else Serve ends it."""
    requests: ConnectionRequests | None = scope.get(SCOPE_KEY)
    if requests is not None:
        requests.add_current()


@contextmanager
def on_server_stop(scope: MutableMapping[str, Any], callback: Callable[[], None]) -> Iterator[None]:
    """Within this block, call `callback` when the server of `scope` is told to stop: for answers that may last."""
    requests: ConnectionRequests | None = scope.get(SCOPE_KEY)
    if requests is None:
        yield
        return
    requests.on_stop.append(callback)
    try:
        yield
    finally:
        requests.on_stop.remove(callback)


class ConnectionRequests:
    """The requests under way on one connection; they are cancelled when it ends."""

    __slots__ = ("_lost", "_tasks", "on_stop")

    def __init__(self) -> None:
        self._lost = False
        self._tasks: list[asyncio.Task[Any]] = []
        self.on_stop: list[Callable[[], None]] = []
        """Called when the server wants to stop."""

    def add_current(self) -> None:
        """The current task runs a request of this connection."""
        task = asyncio.current_task()
        assert task is not None
        if self._lost:
            task.cancel()
        # There is more than one only while a client sends requests without waiting for answers.
        self._tasks = [task, *(one for one in self._tasks if not one.done())]

    def server_stops(self) -> None:
        for callback in tuple(self.on_stop):
            callback()

    def connection_lost(self) -> None:
        self._lost = True
        for task in self._tasks:
            task.cancel()


class JoinedWrites:
    """A transport that writes at the end of the loop's turn. The rest of it is the transport itself.

    What waits is at most one turn's writes: a server that is told to pause stops before its next.
    """

    __slots__ = ("_loop", "_pieces", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Acceptor:
    """Accepts what waits at the listening sockets of `servers`, for protocols that `factory` makes."""

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
        self._connecting: set[asyncio.Task[None]] = set()

    def accept_all(self) -> None:
        """All that wait now, at most `_BURST`. Nothing waits at a server that was closed."""
        for server in self._servers:
            for listener in server.sockets:
                self._accept_from(listener.fileno())

    def _accept_from(self, descriptor: int) -> None:
        # The server's own descriptor, lent: a copy would keep the port open after the server has closed.
        listener = socket.socket(fileno=descriptor)
        try:
            for _ in range(_BURST):
                connection, _ = listener.accept()
                task = asyncio.get_running_loop().create_task(self._connect(connection))
                self._connecting.add(task)
                task.add_done_callback(self._connecting.discard)
        except OSError:
            # Nobody waits any more, or no descriptor is free: the loop goes on as if this were not there.
            pass
        finally:
            listener.detach()

    async def _connect(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._factory, connection, ssl=self._ssl)
        except OSError:
            connection.close()


class Silence:
    """Ends connections that have sent no whole head since they were opened, or since their last answer.

    `sweep` is called once a period and knows those of the last time: so an honest one has one to two periods. What
    waits between two requests is uvicorn's business (`timeout_keep_alive`). A request pays for nothing of this.
    """

    def __init__(self, connections: Iterable[Any]) -> None:
        self._connections = connections
        self._suspects: dict[Any, Any] = {}

    def sweep(self) -> None:
        suspects = {
            one: one.cycle
            for one in self._connections
            if one.timeout_keep_alive_task is None and (one.cycle is None or one.cycle.response_complete)
        }
        for one, cycle in suspects.items():
            if one in self._suspects and self._suspects[one] is cycle:
                one.transport.close()
        self._suspects = suspects

    def go_on(self, server: Any, period_s: float) -> None:
        """Sweep each `period_s` until `server` stops."""
        if not server.should_exit:
            self.sweep()
            asyncio.get_running_loop().call_later(period_s, self.go_on, server, period_s)


def _most_connections() -> int:
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        sys.maxsize if open_files == resource.RLIM_INFINITY else max(open_files // 2, open_files - FILES_KEPT)
    )


_REPLICA = ("uvicorn-accept", "uvicorn-silence", "uvicorn-one-write", "serve-disconnect")


def install(corrections: Iterable[str] = _REPLICA) -> bool:
    """Correct the uvicorn servers that this process starts from now on; false where nothing is to be corrected."""
    on = {name for name in corrections if active(name)}
    accept, silence, one_write, disconnect = (name in on for name in _REPLICA)
    if not on:
        return False
    try:
        from uvicorn.config import HTTP_PROTOCOLS
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.server import Server
    except ImportError:
        log.warning("uvicorn runs without httptools here; connections are served as Serve does it")
        return False
    base: Any = HttpToolsProtocol
    most = _most_connections() if silence else sys.maxsize

    class Protocol(base):  # type: ignore[misc]
        _accepted_by_us = False
        """By the first of a burst, which has looked for more already."""

        def connection_made(self, transport: Any) -> None:
            self._requests = ConnectionRequests()
            if one_write:
                transport = JoinedWrites(transport, asyncio.get_running_loop())
            super().connection_made(transport)
            if len(self.connections) > most:
                self.transport.abort()
            acceptor: Acceptor | None = getattr(self.server_state, "acceptor", None)
            if acceptor is not None and not self._accepted_by_us:
                acceptor.accept_all()

        def on_headers_complete(self) -> None:
            if disconnect:
                self.scope[SCOPE_KEY] = self._requests
                # Last, so that it wins over one that the client sent.
                self.headers.append(NOT_WATCHED_BY_SERVE)
            super().on_headers_complete()

        def shutdown(self) -> None:
            super().shutdown()
            self._requests.server_stops()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._requests.connection_lost()

    start = Server.startup

    async def startup(server: Any, sockets: list[socket.socket] | None = None) -> None:
        await start(server, sockets=sockets)

        def protocol() -> asyncio.BaseProtocol:
            made: Any = server.config.http_protocol_class(
                config=server.config, server_state=server.server_state, app_state=server.lifespan.state
            )
            made._accepted_by_us = True
            return cast("asyncio.BaseProtocol", made)

        if server.config.http_protocol_class is not Protocol:
            return
        if silence:
            Silence(server.server_state.connections).go_on(server, SILENCE_S)
        if accept:
            server.server_state.acceptor = Acceptor(server.servers, protocol, ssl=server.config.ssl)

    globals()["Protocol"] = Protocol
    HTTP_PROTOCOLS["auto"] = f"{__name__}:Protocol"
    if accept or silence:
        Server.startup = startup  # type: ignore[method-assign, assignment]
    return True


__all__ = ["end_with_connection", "install", "on_server_stop"]
