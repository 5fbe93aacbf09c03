"""Calls between this process and a child of it, both ways over one pipe. They are pickled: both ends are ours."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import threading
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection, wait
from typing import Any

from dspool.errors import InternalError, PoolError, WorkerLost

Answer = Callable[[str, str, tuple[Any, ...], dict[str, Any]], Coroutine[Any, Any, Any]]
"""Target, method, arguments: what the other end calls here."""


class Channel:
    """One end of the pipe. Belongs to the event loop that opened it; calls `on_end` once the other end is gone.

    What the process there has started may hold that open: who has the `sentinel` of the process gives it.
    """

    def __init__(
        self,
        connection: Connection,
        answer: Answer,
        on_end: Callable[[], None],
        *,
        sentinel: int | None = None,
    ) -> None:
        self._connection, self._answer, self._on_end = connection, answer, on_end
        self._ends: list[Connection | int] = [connection] if sentinel is None else [connection, sentinel]
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = threading.Lock()
        self._ended = False
        threading.Thread(target=self._read, name="dspool channel", daemon=True).start()

    async def call(self, target: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """What `target.method(...)` on the other end comes to. Raises: WorkerLost: the other end is gone."""
        number = next(self._numbers)
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._ended:
            raise WorkerLost(f"the process that was asked for {method} is gone")
        self._waiting[number] = future
        try:
            await asyncio.to_thread(self._send, ("call", number, target, method, args, kwargs))
            return await future
        except OSError as gone:
            raise WorkerLost(f"the process that was asked for {method} is gone") from gone
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        self._connection.close()

    def _send(self, message: tuple[Any, ...]) -> None:
        data = pickle.dumps(message)
        with self._sending:
            self._connection.send_bytes(data)

    def _read(self) -> None:
        try:
            # What it said before it ended is read first.
            while self._connection in wait(self._ends):
                message = pickle.loads(self._connection.recv_bytes())
                self._loop.call_soon_threadsafe(self._take, message)
        except (EOFError, OSError, RuntimeError):
            pass
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._end)

    def _take(self, message: tuple[Any, ...]) -> None:
        if message[0] == "call":
            task = self._loop.create_task(self._run(*message[1:]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        _, number, value, error = message
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(value) if error is None else future.set_exception(error)

    async def _run(self, number: int, target: str, method: str, args: Any, kwargs: Any) -> None:
        value, error = None, None
        try:
            value = await self._answer(target, method, args, kwargs)
        except PoolError as failed:
            error = failed
        except Exception as failed:
            error = InternalError(f"{method} failed: {type(failed).__name__}: {failed}")
        try:
            await asyncio.to_thread(self._send, ("reply", number, value, error))
        except OSError:
            return
        except Exception as unsendable:
            error = InternalError(f"{method} answered what cannot be sent: {type(unsendable).__name__}")
            await asyncio.to_thread(self._send, ("reply", number, None, error))

    def _end(self) -> None:
        self._ended = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerLost("the process at the other end is gone"))
        self._on_end()


__all__ = ["Channel"]
