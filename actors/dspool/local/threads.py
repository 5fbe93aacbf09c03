"""Workers in threads of this process, each with an event loop of its own: `supervisor.Runtime` without processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from dspool.config import PoolConfig
from dspool.core.lifecycle.placement import ClusterNode
from dspool.errors import WorkerLost
from dspool.programs.sessions.host import SessionHost
from dspool.supervisor import WorkerHandle
from dspool.supervisor.ports import AskedWorker
from dspool.worker.session_store import Store
from dspool.worker.worker import Worker

T = TypeVar("T")

_END_S = 2.0
"""How long the end of a thread may take; one that a program blocks is left to itself."""


class OnLoop:
    """An object whose coroutines belong to one event loop, for callers on any other."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop = inner, loop

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._inner, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await run_on(self._loop, method(*args, **kwargs))

        return call


async def run_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to on another event loop, which must run."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


class LoopThread:
    """An event loop in a daemon thread, which outlives whatever programs let escape into it."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._over = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._over:
            try:
                self.loop.run_forever()
            except BaseException:
                continue
        self.loop.run_until_complete(self._leave())
        self.loop.close()

    async def _leave(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_END_S) if tasks else None
        # Not `shutdown_default_executor`: it waits for threads that a program may block for ever.

    def end(self) -> None:
        """Stop the loop after its present turn."""
        self._over = True
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)

    def join(self) -> None:
        self._thread.join(_END_S)


class ThreadWorker(AskedWorker):
    """A worker as the supervisor has it, in a thread of this process."""

    def __init__(self, worker: Worker, worker_id: str, ordinal: int, thread: LoopThread) -> None:
        super().__init__(worker_id, ordinal)
        self.worker = worker
        self._thread = thread
        self._dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        return not self._dead.done()

    async def _ask(self, method: str, *args: Any) -> Any:
        return await self.call(method, *args)

    async def call(self, method: str, *args: Any) -> Any:
        """What the worker answers. Raises: WorkerLost: it has ended."""
        if not self.alive:
            raise WorkerLost(f"worker {self.worker_id} has ended", worker=self.worker_id)
        return await run_on(self._thread.loop, getattr(self.worker, method)(*args))

    async def until_dead(self) -> str:
        return await asyncio.shield(self._dead)

    async def stop(self) -> None:
        try:
            await self.call("stop")
        finally:
            self.end("stopped")

    def end(self, cause: str) -> None:
        """End its thread, and wake everybody who waits for that."""
        if self.alive:
            self._dead.set_result(cause)
            self._thread.end()

    def kill(self) -> None:
        """What a SIGKILL does to a process: connections end, nothing is finished."""
        if self.alive:
            self._dead.set_result("killed")
            ended = asyncio.run_coroutine_threadsafe(self.worker.stop(), self._thread.loop)
            ended.add_done_callback(lambda _: self._thread.end())

    def join(self) -> None:
        self._thread.join()


class ThreadRuntime:
    """Starts workers in threads. `host` makes what runs the commands of each."""

    def __init__(
        self,
        config: PoolConfig,
        secret: bytes,
        store: Any,
        *,
        host: Callable[[], SessionHost],
        report: Callable[[Any], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """`store` and `report` belong to the event loop that runs now."""
        self._config, self._secret, self._host = config, secret, host
        self._home = asyncio.get_running_loop()
        self._store = cast(Store, OnLoop(store, self._home))
        self._report = report
        self._workers: list[ThreadWorker] = []

    async def nodes(self) -> list[ClusterNode]:
        return []

    async def start_worker(self, worker_id: str, ordinal: int, node: str | None = None) -> WorkerHandle:
        thread = LoopThread(f"dspool worker {ordinal}")
        try:
            worker = await run_on(thread.loop, self._build(worker_id, ordinal))
        except BaseException:
            thread.end()
            raise
        handle = ThreadWorker(worker, worker_id, ordinal, thread)
        self._workers = [one for one in self._workers if one.alive] + [handle]
        return handle

    async def _build(self, worker_id: str, ordinal: int) -> Worker:
        return Worker(
            worker_id,
            ordinal,
            self._config,
            self._secret,
            self._store,
            report=self._send if self._report is not None else None,
            start="thread",
            session_host=self._host(),
        )

    async def _send(self, message: Any) -> None:
        assert self._report is not None
        await run_on(self._home, self._report(message))

    async def running_workers(self) -> list[WorkerHandle]:
        return [worker for worker in self._workers if worker.alive]

    def worker(self, worker_id: str) -> ThreadWorker | None:
        """The living worker of this id."""
        return next((one for one in self._workers if one.alive and one.worker_id == worker_id), None)

    def kill(self, handle: WorkerHandle) -> None:
        assert isinstance(handle, ThreadWorker)
        handle.kill()

    def close(self) -> None:
        """End what is left."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()


__all__ = ["OnLoop", "ThreadRuntime", "ThreadWorker", "run_on"]
