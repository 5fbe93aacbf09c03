"""What the supervisor needs of the world: processes that run workers, and a store for its records."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from dspool.config import WorkerStep
from dspool.core.lifecycle.placement import ClusterNode
from dspool.core.lifecycle.source import ImportedSource
from dspool.messages import JSON, Deployment, Member, VersionNumbers, WorkerStatus

T = TypeVar("T")

Sleep = Callable[[float], Awaitable[None]]

__all__ = ["AskedWorker", "PoolStore", "Runtime", "Sleep", "WorkerHandle", "within"]


class WorkerHandle(Protocol):
    """One worker process. Every call may raise a `PoolError`, or anything else when the process is gone."""

    @property
    def worker_id(self) -> str: ...

    @property
    def ordinal(self) -> int: ...

    async def describe(self) -> Member:
        """Where it listens. Starts its listener at the first call; later calls answer the same."""

    async def warm(self, step: WorkerStep, deployments: list[Deployment]) -> None:
        """Run one warm-up step; `deployments` are the current versions of the pool programs."""

    async def health(self) -> WorkerStatus: ...

    async def drain(self, timeout_s: float) -> None:
        """Finish what runs, refuse what comes, give the sessions back."""

    async def deploy(self, deployment: Deployment) -> None: ...

    async def retire(self, program: str, version: int) -> None: ...

    async def activate(self, program: str, version: int) -> None: ...

    async def versions(self, program: str) -> dict[int, VersionNumbers]:
        """What each version of a pool program did on this worker since the worker began."""

    async def source(self, paths: tuple[str, ...]) -> ImportedSource:
        """What it has imported of the modules around these import paths, and what was edited since."""

    async def forget(self, sessions: list[str]) -> None:
        """Drop these sessions from memory: they expired, the store has removed them."""

    async def until_dead(self) -> str:
        """Returns the cause once the process is certainly gone."""

    async def stop(self) -> None:
        """Ask it to exit."""


class AskedWorker:
    """A `WorkerHandle` whose calls all go the same way, which is `_ask`."""

    def __init__(self, worker_id: str, ordinal: int) -> None:
        self.worker_id = worker_id
        self.ordinal = ordinal

    async def _ask(self, method: str, *args: Any) -> Any:
        """What the method of this name of the worker answers."""
        raise NotImplementedError

    async def describe(self) -> Member:
        return await self._ask("describe")

    async def warm(self, step: WorkerStep, deployments: list[Deployment]) -> None:
        await self._ask("warm", step, deployments)

    async def health(self) -> WorkerStatus:
        return await self._ask("health")

    async def drain(self, timeout_s: float) -> None:
        await self._ask("drain", timeout_s)

    async def deploy(self, deployment: Deployment) -> None:
        await self._ask("deploy", deployment)

    async def retire(self, program: str, version: int) -> None:
        await self._ask("retire", program, version)

    async def activate(self, program: str, version: int) -> None:
        await self._ask("activate", program, version)

    async def versions(self, program: str) -> dict[int, VersionNumbers]:
        return await self._ask("versions", program)

    async def source(self, paths: tuple[str, ...]) -> ImportedSource:
        return await self._ask("source", paths)

    async def forget(self, sessions: list[str]) -> None:
        await self._ask("forget", sessions)


class Runtime(Protocol):
    async def start_worker(self, worker_id: str, ordinal: int, node: str | None = None) -> WorkerHandle:
        """On this `node` if it has room; None: wherever there is some."""

    async def nodes(self) -> list[ClusterNode]:
        """The living nodes of the cluster; none where there is no cluster."""

    async def running_workers(self) -> list[WorkerHandle]:
        """The pool's running workers, whoever started them."""

    def kill(self, handle: WorkerHandle) -> None:
        """End the process at once, whatever it does."""


class PoolStore(Protocol):
    """The part of the session store that the supervisor uses."""

    async def worker_dead(self, pool: str, worker: str) -> int: ...

    async def declared_dead(self, pool: str) -> list[str]: ...

    async def workers_alive(self, pool: str, workers: Sequence[str]) -> int: ...

    async def expire(self, pool: str, idle_s: float) -> list[tuple[str, str | None]]: ...

    async def put_record(self, pool: str, key: str, value: JSON) -> None: ...

    async def get_record(self, pool: str, key: str) -> JSON | None: ...

    async def add_deployment(self, pool: str, deployment: Deployment, at_least: int = 0) -> Deployment: ...

    async def deployments(self, pool: str) -> list[Deployment]: ...

    async def set_current(self, pool: str, program: str, version: int | None) -> None: ...

    async def current_versions(self, pool: str) -> dict[str, int]: ...


async def within(seconds: float, awaitable: Awaitable[T], sleep: Sleep) -> T:
    """The result of `awaitable`; cancels it and raises `TimeoutError` after `seconds` as `sleep` counts them."""
    task = asyncio.ensure_future(awaitable)
    timer = asyncio.ensure_future(sleep(seconds))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise TimeoutError(f"no answer within {seconds:g} s")
    finally:
        timer.cancel()
        task.cancel()
