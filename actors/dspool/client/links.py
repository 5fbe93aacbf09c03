"""A client's connections: one to each worker that takes traffic, opened again when lost, closed when not needed.

Callbacks get the worker's id; a replaced or dropped link delivers nothing any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

from dspool.core.liveness import LOOK_S, is_silent
from dspool.messages import Member
from dspool.wire.connection import ClientEnd
from dspool.wire.frames import Cancel, Chunk, Report
from dspool.wire.handshake import HandshakeFailed

_CONNECT_TIMEOUT_S = 2.0
_PAUSE_S = 0.05
_PAUSE_MAX_S = 1.0
_STEADY_S = 5.0
"""After a connection that lasted so long, the next attempt follows at once."""
_LINGER_S = 1.0

_SIGN_OF_LIFE = Cancel([])

_log = logging.getLogger(__name__)


class Links:
    """Calls `on_lost(worker_id, why)` after an open link is gone, and `on_change()` when one opens.

    `on_silent(worker_id, until)`: it was asked, and nothing is heard of it; by then it has been said again, or not.

    `is_busy(worker_id)`: something is wanted of it. A link at whose other end no machine is any more counts as gone.
    """

    def __init__(
        self,
        secret: bytes,
        client_id: str,
        *,
        on_report: Callable[[str, Report], None],
        on_chunk: Callable[[str, Chunk], None],
        on_lost: Callable[[str, str], None],
        on_change: Callable[[], None],
        on_silent: Callable[[str, float], None] = lambda _worker_id, _until: None,
        is_busy: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._secret, self._client_id = secret, client_id
        self._report, self._chunk, self._lost, self._change = on_report, on_chunk, on_lost, on_change
        self._silent = on_silent
        self._members: Mapping[str, Member] = {}
        self._open: dict[str, ClientEnd] = {}
        self._opened_at: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._refused: set[str] = set()
        """Workers whose handshake failed since they were last open: each is logged once."""
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._is_busy = is_busy
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._looks = self._loop.call_later(LOOK_S, self._look)

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._open

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._open))

    def get(self, worker_id: str) -> ClientEnd | None:
        return self._open.get(worker_id)

    def heard(self) -> set[str]:
        """The workers that answer."""
        return {worker_id for worker_id, link in self._open.items() if not is_silent(link.silent_looks)}

    def connect(self, members: Mapping[str, Member]) -> None:
        """Connect to these. Links to others stay until `drop`."""
        self._members = members
        for worker_id in members:
            if worker_id not in self._open:
                self._connect(worker_id)
        self._pauses = {worker_id: pause for worker_id, pause in self._pauses.items() if worker_id in members}
        self._refused &= members.keys()

    def drop(self, worker_id: str) -> None:
        """Close the link when all output has left, or soon if the worker does not read, without `on_lost`."""
        link = self._open.pop(worker_id, None)
        if link is not None:
            link.close()
            self._loop.call_later(_LINGER_S, link.abort)

    def cut(self, worker_id: str) -> None:
        """Close the link now, whatever is on its way in either direction, without `on_lost`."""
        link = self._open.pop(worker_id, None)
        if link is not None:
            link.abort()

    async def close(self) -> None:
        """Close all when their output has left, but do not wait long for workers that do not read."""
        self._closed = True
        self._looks.cancel()
        connecting, links = list(self._connecting.values()), list(self._open.values())
        for task in connecting:
            task.cancel()
        for worker_id in list(self._open):
            self.drop(worker_id)
        await asyncio.gather(*connecting, return_exceptions=True)
        if links:
            await asyncio.wait([link.closed for link in links], timeout=_LINGER_S)
            for link in links:
                link.abort()

    def _look(self) -> None:
        """All at once, twice a second: a link on which something arrived meanwhile costs a comparison."""
        self._looks = self._loop.call_later(LOOK_S, self._look)
        for worker_id, link in list(self._open.items()):
            if link.look(is_busy=self._is_busy(worker_id)) == "ask":
                link.send(_SIGN_OF_LIFE)
                if is_silent(link.silent_looks):
                    self._silent(worker_id, self._loop.time() + 2 * LOOK_S)

    def _connect(self, worker_id: str) -> None:
        if worker_id not in self._connecting and not self._closed:
            self._connecting[worker_id] = self._loop.create_task(self._keep_dialing(worker_id))

    async def _keep_dialing(self, worker_id: str) -> None:
        try:
            while worker_id in self._members and not self._closed:
                pause = self._pauses.get(worker_id, 0.0)
                if pause:
                    await asyncio.sleep(pause)
                # Even after a success: a worker may take each connection and drop it.
                self._pauses[worker_id] = min(_PAUSE_MAX_S, max(_PAUSE_S, 2 * pause))
                if worker_id not in self._members:
                    return
                try:
                    link = await self._dial(self._members[worker_id])
                except (OSError, TimeoutError, ValueError) as failed:
                    if isinstance(failed, HandshakeFailed) and worker_id not in self._refused:
                        self._refused.add(worker_id)
                        _log.warning("%s", failed)
                    continue
                if worker_id not in self._members or link.closing:
                    link.abort()
                    continue
                self._refused.discard(worker_id)
                self._open[worker_id] = link
                self._opened_at[worker_id] = self._loop.time()
                self._change()
                return
        finally:
            self._connecting.pop(worker_id, None)

    async def _dial(self, member: Member) -> ClientEnd:
        link = ClientEnd(
            self._secret,
            self._client_id,
            member.worker_id,
            on_report=self._on_report,
            on_chunk=self._on_chunk,
            on_lost=self._on_lost,
        )
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._loop.create_connection(lambda: link, member.host, member.port)
                await asyncio.shield(link.opened)
        except BaseException:
            link.abort()
            link.opened.cancel()
            raise
        return link

    def _on_report(self, link: ClientEnd, report: Report) -> None:
        if self._open.get(link.worker_id) is link:
            self._report(link.worker_id, report)

    def _on_chunk(self, link: ClientEnd, chunk: Chunk) -> None:
        if self._open.get(link.worker_id) is link:
            self._chunk(link.worker_id, chunk)

    def _on_lost(self, link: ClientEnd, why: str) -> None:
        worker_id = link.worker_id
        if self._open.get(worker_id) is not link:
            return
        del self._open[worker_id]
        if self._loop.time() - self._opened_at.pop(worker_id) > _STEADY_S:
            self._pauses.pop(worker_id, None)
        self._lost(worker_id, why)
        if worker_id in self._members:
            self._connect(worker_id)
