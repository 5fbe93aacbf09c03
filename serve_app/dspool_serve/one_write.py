"""Answers that leave the ingress in one piece.

Uvicorn hands head and body of an answer to the socket one after the other: two system calls, and HAProxy is woken twice.
Here what one turn of the event loop writes to a connection leaves together. Serve gives no say in the HTTP protocol class
that it starts uvicorn with, so ours takes the place of the one that uvicorn finds under the name `auto`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

log = logging.getLogger("dspool.http")


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


def install() -> bool:
    """Let uvicorn servers that this process starts from now on use it; false where uvicorn is not as we know it."""
    try:
        from uvicorn.config import HTTP_PROTOCOLS
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        log.info("uvicorn has another HTTP protocol here; answers leave in two pieces")
        return False
    if HTTP_PROTOCOLS.get("auto") is None:
        return False
    base: Any = HttpToolsProtocol

    class Protocol(base):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(OneWrite(transport, asyncio.get_running_loop()))

    globals()["Protocol"] = Protocol
    HTTP_PROTOCOLS["auto"] = f"{__name__}:Protocol"
    return True


__all__ = ["OneWrite", "install"]
