"""A reverse proxy of one path, as people put before a service: it takes the path off, and has nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading

_NOTHING = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class StrippingProxy:
    """Offers what listens on `port` below `root`, at `url`. One request a connection: bytes go through as they come."""

    def __init__(self, port: int, root: str) -> None:
        self._port, self._root = port, root.encode()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        began = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20), self._loop
        )
        self._server = began.result(30)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{root}"
        self.strayed: list[str] = []
        """Request lines that were not below `root`."""

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            line, _, fields = head.partition(b"\r\n")
            method, path, version = line.split(b" ")
            if path.startswith(self._root + b"/"):
                kept = [one for one in fields.split(b"\r\n") if not one.lower().startswith(b"connection:")]
                new = b" ".join((method, path.removeprefix(self._root), version))
                await self._pass_on(b"\r\n".join((new, b"connection: close", *kept)), reader, writer)
            else:
                self.strayed.append(line.decode("latin-1"))
                writer.write(_NOTHING)
                await writer.drain()
        writer.close()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
        ours.write(head)
        sending = asyncio.ensure_future(_copy(reader, ours))
        answering = asyncio.ensure_future(_copy(theirs, writer))
        # Whoever leaves first ends both.
        await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
        for one in (sending, answering):
            one.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)
        ours.close()


async def _copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        to.write(data)
        await to.drain()
