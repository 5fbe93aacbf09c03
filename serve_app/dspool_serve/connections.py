"""How connections are served inside the ingress: answers leave in one piece, and hang-ups are noticed for nothing.

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
from collections.abc import Callable, MutableMapping
from typing import Any

log = logging.getLogger("dspool.http")

SCOPE_KEY = "dspool.connection"
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


def install() -> bool:
    """Let uvicorn servers that this process starts from now on use it; false where uvicorn is not as we know it."""
    try:
        from uvicorn.config import HTTP_PROTOCOLS
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        log.info("uvicorn has another HTTP protocol here; connections are served as Serve does it")
        return False
    base: Any = HttpToolsProtocol

    class Protocol(base):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            self._watch = Watch()
            super().connection_made(OneWrite(transport, asyncio.get_running_loop()))

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

    globals()["Protocol"] = Protocol
    HTTP_PROTOCOLS["auto"] = f"{__name__}:Protocol"
    return True


__all__ = ["OneWrite", "Watch", "install", "watched", "when_leaving"]
