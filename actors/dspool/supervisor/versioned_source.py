"""The source that each version of a pool program was first loaded from, and whether the workers still have it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from dspool.core.lifecycle.source import (
    ImportedSource,
    check_deployment,
    check_rollback,
    differing,
    import_paths,
)
from dspool.errors import PoolNotReady
from dspool.messages import JSON, Deployment
from dspool.supervisor.ports import PoolStore, Sleep, WorkerHandle, within
from dspool.telemetry.events import emit

log = logging.getLogger("dspool.supervisor")

ANSWER_S = 5.0
"""How long a worker may take to report what it has imported."""


class VersionedSource:
    """Kept in the store: a restarted pool would have other code under an old number once a file was edited."""

    def __init__(
        self, pool: str, store: PoolStore, workers: Callable[[], list[WorkerHandle]], sleep: Sleep
    ) -> None:
        """`workers()` are the warm workers."""
        self._pool = pool
        self._store = store
        self._workers = workers
        self._sleep = sleep
        self._originals: dict[tuple[str, int], dict[str, str]] = {}

    async def allow_deployment(self, deployment: Deployment, current: Deployment | None) -> None:
        """Raises `Conflict` if `deployment` would change nothing, or would not load what its source says now.

        Raises:
            PoolNotReady: no worker says what it has imported.
        """
        workers = await self._ask(deployment)
        if not workers and import_paths(deployment) and self._workers():
            raise PoolNotReady("no worker says which source it has imported", retry_after_s=ANSWER_S)
        original = None if current is None or not workers else await self._original(current)
        check_deployment(deployment, current, original, workers)

    async def allow_rollback(self, deployment: Deployment) -> None:
        """Raises `Conflict` if a worker would run `deployment` from other source than before. A worker that does not
        answer stops nothing: it may need just this way back."""
        if workers := await self._ask(deployment):
            check_rollback(deployment, await self._original(deployment), workers)

    async def compare(self, handle: WorkerHandle, versions: list[Deployment]) -> None:
        """Record the source of each version at its first load; from then on, report a worker that has another."""
        for deployment in versions:
            if not import_paths(deployment):
                continue
            try:
                source = await self._source_of(handle, deployment)
                original = await self._original(deployment)
                if original is None and source.modules:
                    await self._store.put_record(self._pool, _key(deployment), source.modules)
                    self._originals[deployment.program, deployment.version] = source.modules
                elif modules := differing(original or {}, source.modules):
                    self._report_change(handle, deployment, modules)
            except Exception as failed:
                log.warning("cannot tell which source worker %s runs: %s", handle.worker_id, failed)

    def _report_change(self, handle: WorkerHandle, deployment: Deployment, modules: list[str]) -> None:
        why = f"{', '.join(modules)} changed since it was first loaded; deploy it for a version number of its own"
        log.warning(
            "worker %s runs other source as version %d of %s: %s",
            handle.worker_id,
            deployment.version,
            deployment.program,
            why,
        )
        emit(
            "program.source_changed",
            {"modules": len(modules)},
            {
                "pool": self._pool,
                "program": deployment.program,
                "version": deployment.version,
                "worker": handle.worker_id,
                "reason": why,
            },
        )

    async def _ask(self, deployment: Deployment) -> dict[str, ImportedSource]:
        """By worker, what it has imported of what `deployment` names; only the warm workers that answer."""
        if not import_paths(deployment):
            return {}
        handles = self._workers()
        answers = await asyncio.gather(
            *(self._source_of(handle, deployment) for handle in handles), return_exceptions=True
        )
        sources = {}
        for handle, answer in zip(handles, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("worker %s does not say what it has imported: %s", handle.worker_id, answer)
            else:
                sources[handle.worker_id] = answer
        return sources

    async def _source_of(self, handle: WorkerHandle, deployment: Deployment) -> ImportedSource:
        return await within(ANSWER_S, handle.source(import_paths(deployment)), self._sleep)

    async def forget(self, deployments: Iterable[Deployment]) -> None:
        """Versions that nobody can roll back to any more. Of each the store keeps an empty record."""
        for deployment in deployments:
            if await self._original(deployment):
                await self._store.put_record(self._pool, _key(deployment), None)
            self._originals.pop((deployment.program, deployment.version), None)

    async def _original(self, deployment: Deployment) -> dict[str, str] | None:
        key = deployment.program, deployment.version
        if key not in self._originals:
            modules: JSON | None = await self._store.get_record(self._pool, _key(deployment))
            if modules is None:
                return None
            self._originals[key] = modules
        return self._originals[key]


def _key(deployment: Deployment) -> str:
    return f"source:{deployment.program}:{deployment.version}"
