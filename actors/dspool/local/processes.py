"""Workers in processes of their own, forked from a parent that has loaded all but the user's modules.

So each new worker imports the user's code as it is now, within the time that this code itself takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from dspool.config import PoolConfig
from dspool.core.lifecycle.placement import ClusterNode
from dspool.errors import WorkerLost
from dspool.local.channel import Channel
from dspool.local.pool import Report
from dspool.store.store import SessionStore
from dspool.supervisor import WorkerHandle
from dspool.supervisor.ports import AskedWorker

_PRELOADED = ["dspool.local.processes", "dspool.programs.sessions.host", "dspool.worker.worker", "dspool.cli"]
"""What the parent of all workers imports. The last is what `__main__` is made of, which children import again."""
_END_S = 3.0


class _CalledStore:
    """The session store in the process of the pool, for a worker."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._channel.call("store", method, *args, **kwargs)

        return call


def run_worker(
    connection: Connection,
    worker_id: str,
    ordinal: int,
    config: PoolConfig,
    secret: bytes,
    environ: Mapping[str, str],
    path: list[str],
) -> None:
    """The life of a worker process."""
    # Ctrl-C goes to the whole group; the pool tells its workers when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Its parent ends it as a daemon, but a program in it may start processes, as on Ray.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(environ)
    sys.path[:] = path
    asyncio.run(_work(connection, worker_id, ordinal, config, secret))


async def _work(
    connection: Connection, worker_id: str, ordinal: int, config: PoolConfig, secret: bytes
) -> None:
    from dspool.telemetry import logs
    from dspool.worker.worker import Worker

    logs.configure(config, worker=worker_id)

    async def answer(target: str, method: str, args: Any, kwargs: Any) -> Any:
        return await getattr(worker, method)(*args, **kwargs)

    async def report(message: Any) -> None:
        await channel.call("metrics", "report", message)

    channel = Channel(connection, answer, on_end=lambda: os._exit(0))
    worker = Worker(
        worker_id,
        ordinal,
        config,
        secret,
        _CalledStore(channel),
        report=report if config.enable_metrics else None,
        start="fork",
    )
    await asyncio.Event().wait()


class ProcessWorker(AskedWorker):
    """A worker as the supervisor has it, in a child of this process."""

    def __init__(self, worker_id: str, ordinal: int, process: BaseProcess) -> None:
        super().__init__(worker_id, ordinal)
        self.process = process
        self.channel: Channel | None = None
        self._dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        return not self._dead.done()

    async def call(self, method: str, *args: Any) -> Any:
        """What the worker answers. Raises: WorkerLost: it has ended."""
        if self.channel is None or not self.alive:
            raise WorkerLost(f"worker {self.worker_id} has ended", worker=self.worker_id)
        return await self.channel.call("worker", method, *args)

    async def _ask(self, method: str, *args: Any) -> Any:
        return await self.call(method, *args)

    async def until_dead(self) -> str:
        return await asyncio.shield(self._dead)

    async def stop(self) -> None:
        try:
            await self.call("stop")
        finally:
            self.kill()

    def ended(self) -> None:
        if self.alive:
            self._dead.set_result("its process ended")

    def kill(self) -> None:
        with contextlib.suppress(ValueError, ProcessLookupError):
            self.process.kill()


class ProcessRuntime:
    """Starts workers as children of a parent that is forked from nothing: `supervisor.Runtime` without Ray."""

    def __init__(self, config: PoolConfig, secret: bytes, store: SessionStore, report: Report | None) -> None:
        self._config, self._secret = config, secret
        self._targets = {"store": store, "metrics": _Reported(report)}
        self._workers: list[ProcessWorker] = []

    async def nodes(self) -> list[ClusterNode]:
        return []

    async def start_worker(self, worker_id: str, ordinal: int, node: str | None = None) -> WorkerHandle:
        context = _context()
        ours, theirs = context.Pipe()
        process = context.Process(
            target=run_worker,
            args=(theirs, worker_id, ordinal, self._config, self._secret, dict(os.environ), list(sys.path)),
            name=f"dspool worker {ordinal}",
            daemon=True,
        )
        await asyncio.to_thread(process.start)
        theirs.close()
        worker = ProcessWorker(worker_id, ordinal, process)
        worker.channel = Channel(ours, self._answer, worker.ended, sentinel=process.sentinel)
        self._workers = [one for one in self._workers if one.alive] + [worker]
        return worker

    async def _answer(self, target: str, method: str, args: Any, kwargs: Any) -> Any:
        return await getattr(self._targets[target], method)(*args, **kwargs)

    async def running_workers(self) -> list[WorkerHandle]:
        return [worker for worker in self._workers if worker.alive]

    def worker(self, worker_id: str) -> ProcessWorker | None:
        """The living worker of this id."""
        return next((one for one in self._workers if one.alive and one.worker_id == worker_id), None)

    def kill(self, handle: WorkerHandle) -> None:
        assert isinstance(handle, ProcessWorker)
        handle.kill()

    def close(self) -> None:
        """End what is left."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.process.join(_END_S)
            if worker.channel is not None:
                worker.channel.close()


class _Reported:
    def __init__(self, report: Report | None) -> None:
        self._report = report

    async def report(self, message: Any) -> None:
        if self._report is not None:
            await self._report(message)


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def prepare() -> None:
    """Begin to load what workers are forked from; returns at once."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        _context()
        forkserver.ensure_running()


def end_parent() -> None:
    """End the parent of the workers: it would go on until this process ends."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        forkserver._forkserver._stop()  # type: ignore[attr-defined]


__all__ = ["ProcessRuntime", "ProcessWorker", "end_parent", "prepare", "run_worker"]
