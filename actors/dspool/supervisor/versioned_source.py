"""Holds every worker to the source that the versions of pool programs are made of.

A process that would run a version from other source refuses to load it (`check_source`, on the worker itself). Here a
worker that just started is compared before it takes traffic: the first one says what a version is made of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from dspool.core.lifecycle.source import ImportedSource, check_source, differing, import_paths
from dspool.errors import Conflict, PoolNotReady
from dspool.messages import Deployment
from dspool.supervisor.ports import Sleep, WorkerHandle, within
from dspool.supervisor.version_history import VersionHistory
from dspool.telemetry.events import emit

log = logging.getLogger("dspool.supervisor")

ANSWER_S = 5.0
"""How long a worker may take to report what it has imported."""


class VersionedSource:
    def __init__(
        self, pool: str, history: VersionHistory, workers: Callable[[], list[WorkerHandle]], sleep: Sleep
    ) -> None:
        """`workers()` are the warm workers."""
        self._pool = pool
        self._history = history
        self._workers = workers
        self._sleep = sleep

    async def admit(self, handle: WorkerHandle) -> list[Deployment]:
        """The current versions that a new worker has loaded from other source than they are made of.

        Of those that no worker had loaded before, it says what they are made of.
        """
        wrong = []
        for d in self._history.current():
            if not import_paths(d):
                continue
            modules = (await self.of(handle, d)).modules
            await self._history.set_source(d, modules)
            current = self._history.current_of(d.program)
            if current is not None and differing(current.source or {}, modules):
                wrong.append(current)
        return wrong

    async def refuse(self, handle: WorkerHandle, wrong: Iterable[Deployment]) -> None:
        """Say that the worker stays out. Raises `Conflict`."""
        for d in wrong:
            modules = (await self.of(handle, d)).modules
            try:
                check_source(d, modules)
            except Conflict as why:
                self.report(handle, d, differing(d.source or {}, modules), why.message)
                raise

    def report(self, handle: WorkerHandle, d: Deployment, modules: list[str], why: str) -> None:
        log.warning(
            "worker %s has other source than version %d of %s: %s",
            handle.worker_id,
            d.version,
            d.program,
            why,
        )
        emit(
            "program.source_changed",
            {"modules": len(modules)},
            {
                "pool": self._pool,
                "program": d.program,
                "version": d.version,
                "worker": handle.worker_id,
                "reason": why,
            },
        )

    async def ask(self, d: Deployment) -> dict[str, ImportedSource]:
        """By worker, what it has imported of what `d` names; only the warm workers that answer."""
        if not import_paths(d):
            return {}
        handles = self._workers()
        answers = await asyncio.gather(*(self.of(handle, d) for handle in handles), return_exceptions=True)
        sources = {}
        for handle, answer in zip(handles, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("worker %s does not say what it has imported: %s", handle.worker_id, answer)
            else:
                sources[handle.worker_id] = answer
        return sources

    async def ask_for_deployment(self, d: Deployment) -> dict[str, ImportedSource]:
        """As `ask`. Raises `PoolNotReady` if no worker says what it has imported."""
        sources = await self.ask(d)
        if not sources and import_paths(d) and self._workers():
            raise PoolNotReady("no worker says which source it has imported", retry_after_s=ANSWER_S)
        return sources

    async def of(self, handle: WorkerHandle, d: Deployment) -> ImportedSource:
        """What the worker has imported of what `d` names."""
        return await within(ANSWER_S, handle.source(import_paths(d)), self._sleep)
