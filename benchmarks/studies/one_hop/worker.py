"""A prototype: a worker whose process has the whole HTTP layer, on the event loop that runs its operations.

    python -m benchmarks.studies.one_hop.worker PORT DIRECTORY CONFIG

All that a worker does for an operation stays: a slot, a deadline, cancellation, its figures. What goes is the client
with its queue, and the connection between the two. Operations of sessions go the old way.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import uvloop
from msgspec import Raw, msgpack

from dspool.config import PoolConfig
from dspool.core.lifecycle.placement import ClusterNode
from dspool.errors import QueueFull, from_wire
from dspool.local.pool import LocalPool
from dspool.messages import AnyCommand, Failure, Operation, Result
from dspool.store.store import SessionStore
from dspool.supervisor import WorkerHandle
from dspool.supervisor.ports import AskedWorker
from dspool.wire.frames import Report
from dspool.worker.worker import Worker
from dspool_serve.ingress.development import OnePool, serving

_decode_end = msgpack.Decoder(Result | Failure).decode


class LoopWorker(AskedWorker):
    """A worker on the event loop of its supervisor."""

    def __init__(self, worker: Worker, worker_id: str) -> None:
        super().__init__(worker_id, 0)
        self.worker = worker
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def _ask(self, method: str, *args: Any) -> Any:
        return await getattr(self.worker, method)(*args)

    async def call(self, method: str, *args: Any) -> Any:
        return await self._ask(method, *args)

    async def until_dead(self) -> str:
        return await asyncio.shield(self.over)

    async def stop(self) -> None:
        await self._ask("stop")
        self.over.set_result("stopped")


class LoopRuntime:
    """Starts the one worker."""

    def __init__(
        self,
        config: PoolConfig,
        secret: bytes,
        store: SessionStore,
        report: Callable[[Any], Coroutine[Any, Any, None]] | None,
    ) -> None:
        self._config, self._secret, self._store, self._report = config, secret, store, report
        self.handle: LoopWorker | None = None

    async def nodes(self) -> list[ClusterNode]:
        return []

    async def start_worker(self, worker_id: str, ordinal: int, node: str | None = None) -> WorkerHandle:
        worker = Worker(worker_id, ordinal, self._config, self._secret, self._store, report=self._report)
        self.handle = LoopWorker(worker, worker_id)
        return self.handle

    async def running_workers(self) -> list[WorkerHandle]:
        return []

    def worker(self, worker_id: str) -> LoopWorker | None:
        return self.handle

    def kill(self, handle: WorkerHandle) -> None:
        """It ends with its process."""

    def close(self) -> None:
        """There is nothing left of it."""


class Near:
    """The end of a connection that leads into the same process."""

    full = False

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[Result]] = {}

    def send(self, report: Report) -> None:
        for operation_id in report.busy:
            self._end(operation_id, QueueFull("all slots are filled", retry_after_s=0.1))
        for encoded in cast(list[Raw], report.finished):
            end = _decode_end(encoded)
            self._end(end.operation_id, end if isinstance(end, Result) else from_wire(end.error))

    def _end(self, operation_id: str, end: Any) -> None:
        future = self.waiting.pop(operation_id, None)
        if future is None or future.done():
            return
        if isinstance(end, Exception):
            future.set_exception(end)
        else:
            future.set_result(end)


class OneHopPool(LocalPool):
    """A pool of one worker that is asked without a connection."""

    async def run(self, command: AnyCommand, **options: Any) -> Result:
        if options.get("session") is not None:
            return await super().run(command, **options)
        operations, near = self._near()
        operation_id = f"near-{next(self._numbers)}"
        timeout_s = options.get("timeout_s") or self.client.config.operation_timeout_s
        future = near.waiting[operation_id] = asyncio.get_running_loop().create_future()
        operations._admit(Operation(operation_id, command, timeout_s), self._peer)
        operations.on_batch()
        try:
            return await future
        except asyncio.CancelledError:
            operations.cancel(operation_id)
            raise

    def _near(self) -> tuple[Any, Near]:
        found = getattr(self, "_kept", None)
        if found is None:
            from dspool.worker.execution import ClientPeer

            assert isinstance(self._runtime, LoopRuntime)
            assert self._runtime.handle is not None
            near: Any = Near()
            self._numbers = itertools.count()
            self._peer = ClientPeer(near)
            found = self._kept = self._runtime.handle.worker._operations, near
        return found


async def serve(port: int, config: PoolConfig) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    pools = OnePool(config.name)
    async with OneHopPool.start(config, LoopRuntime, own_store=True) as pool:
        pools.pool = pool
        async with serving(pools, config, listener):
            print("ready", flush=True)
            await asyncio.Event().wait()


def main() -> None:
    port, directory, config = sys.argv[1:]
    made = PoolConfig(
        **{
            **json.loads(config),
            "pool_size": 1,
            "max_pool_size": 1,
            "spares": 0,
            "state_dir": Path(directory),
        }
    )
    uvloop.run(serve(int(port), made))


if __name__ == "__main__":
    main()
