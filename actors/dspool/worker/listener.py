"""A worker's port: who has connected to it, and how much those may take who have not proven who they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import Any

from dspool.core.liveness import LOOK_S
from dspool.wire.connection import WorkerEnd
from dspool.wire.frames import Chunk
from dspool.worker.operations import Operations

MAX_STRANGERS = 64
"""Connections at once that have not said a valid hello. An honest client needs a millisecond for it."""
_REFUSALS_LOGGED_EVERY_S = 60.0

_SIGN_OF_LIFE = Chunk("", [])
"""Of a stream that nobody reads: clients of all versions answer with credit for it."""

_log = logging.getLogger(__name__)


class Listener:
    def __init__(self, secret: bytes, worker_id: str, operations: Operations) -> None:
        self._secret, self._worker_id, self._operations = secret, worker_id, operations
        self._server: asyncio.Server | None = None
        self._ends: dict[WorkerEnd, None] = {}
        self._change = asyncio.Event()
        self._looks: asyncio.TimerHandle | None = None
        self._refusals = 0
        self._logged_at = -_REFUSALS_LOGGED_EVERY_S

    @property
    def ends(self) -> list[WorkerEnd]:
        """All connections, oldest first."""
        return list(self._ends)

    @property
    def clients(self) -> list[WorkerEnd]:
        """Those that have proven who they are."""
        return [end for end in self._ends if end.client is not None]

    async def open(self, address: str) -> int:
        """Returns the port."""
        self._server = await asyncio.get_running_loop().create_server(self._accept, address, 0)
        self._look()
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._looks is not None:
            self._looks.cancel()
        for end in self.ends:
            end.abort()

    async def wait_clients_gone(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.clients:
                    self._change.clear()
                    await self._change.wait()

    def _look(self) -> None:
        self._looks = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        for end in self.clients:
            # A client that cannot be reached any more keeps no slot.
            if self._operations.runs_for(end) and end.look(is_busy=False) == "ask":
                end.send(_SIGN_OF_LIFE)

    def _accept(self) -> WorkerEnd:
        strangers = [end for end in self._ends if end.client is None]
        if len(strangers) >= MAX_STRANGERS:
            # Whoever holds most of them loses its oldest: others get their turn.
            places = {end: _address(end) for end in strangers}
            busiest, _ = Counter(places.values()).most_common(1)[0]
            oldest = next(end for end in strangers if places[end] == busiest)
            oldest.fail("too many connections without a hello")
            self._on_lost(oldest)
        end = WorkerEnd(
            self._secret,
            self._worker_id,
            on_message=self._operations.on_message,
            on_batch=self._operations.on_batch,
            on_lost=self._on_lost,
            on_room=self._operations.on_room,
        )
        self._ends[end] = None
        return end

    def _on_lost(self, end: WorkerEnd) -> None:
        if end not in self._ends:
            return
        del self._ends[end]
        self._change.set()
        self._operations.on_lost(end)
        if end.client is None and end.failure:
            self._refused(end.failure)

    def _refused(self, why: str) -> None:
        """Once a minute at most, whoever knocks how often."""
        self._refusals += 1
        now = time.monotonic()
        if now - self._logged_at >= _REFUSALS_LOGGED_EVERY_S:
            _log.warning(
                "worker %s refused %d connections since it last said so, the latest: %s",
                self._worker_id,
                self._refusals,
                why,
            )
            self._logged_at, self._refusals = now, 0


def _address(end: WorkerEnd) -> Any:
    peer = end.transport.get_extra_info("peername") if end.transport is not None else None
    return peer[0] if peer else None
