"""From which source each version of a pool program was first loaded, and whether the workers still have that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dspool.core.lifecycle.source import (
    ImportedSource,
    check_deployment,
    check_rollback,
    differing,
    import_paths,
)
from dspool.errors import PoolNotReady
from dspool.messages import JSON, Deployment
from dspool.supervisor.runtime import PoolStore, Sleep, WorkerHandle, within
from dspool.telemetry.events import emit

log = logging.getLogger("dspool.supervisor")

ANSWER_S = 5.0
"""How long a worker may take to say what it has imported."""


class VersionedSource:
    """Kept in the store: a pool that is started anew has other code under an old number when a file was edited."""

    def __init__(
        self, pool: str, store: PoolStore, workers: Callable[[], list[WorkerHandle]], sleep: Sleep
    ) -> None:
        """`workers()` are the warm ones."""
        self._pool = pool
        self._store = store
        self._workers = workers
        self._sleep = sleep
        self._recorded: dict[tuple[str, int], dict[str, str]] = {}

    async def allow_deployment(self, wanted: Deployment, current: Deployment | None) -> None:
        """Raises `Conflict` if deploying `wanted` would change nothing, or would not load what its source says now.

        Raises:
            PoolNotReady: no worker says what it has imported.
        """
        workers = await self._ask(wanted)
        if not workers and import_paths(wanted) and self._workers():
            raise PoolNotReady("no worker says which source it has imported", retry_after_s=ANSWER_S)
        recorded = None if current is None or not workers else await self._of(current)
        check_deployment(wanted, current, recorded, workers)

    async def allow_rollback(self, d: Deployment) -> None:
        """Raises `Conflict` if a worker would run `d` from other source than before. One that does not answer says
        nothing: the way back may be what it needs."""
        if workers := await self._ask(d):
            check_rollback(d, await self._of(d), workers)

    async def compare(self, handle: WorkerHandle, versions: list[Deployment]) -> None:
        """Note the source of each version when it is first loaded; from then on, tell when a worker has another."""
        for d in versions:
            if not import_paths(d):
                continue
            try:
                source = await self._imported(handle, d)
                recorded = await self._of(d)
                if recorded is None and source.modules:
                    await self._store.put_record(self._pool, _key(d), source.modules)
                    self._recorded[d.program, d.version] = source.modules
                elif other := differing(recorded or {}, source.modules):
                    self._tell(handle, d, other)
            except Exception as failed:
                log.warning("cannot tell which source worker %s runs: %s", handle.worker_id, failed)

    def _tell(self, handle: WorkerHandle, d: Deployment, other: list[str]) -> None:
        why = (
            f"{', '.join(other)} changed since it was first loaded; deploy it for a version number of its own"
        )
        log.warning(
            "worker %s runs other source as version %d of %s: %s", handle.worker_id, d.version, d.program, why
        )
        emit(
            "program.source_changed",
            {"modules": len(other)},
            {
                "pool": self._pool,
                "program": d.program,
                "version": d.version,
                "worker": handle.worker_id,
                "reason": why,
            },
        )

    async def _ask(self, d: Deployment) -> dict[str, ImportedSource]:
        """What the warm workers have imported of what `d` names, by worker; of those that answer."""
        if not import_paths(d):
            return {}
        handles = self._workers()
        answers = await asyncio.gather(
            *(self._imported(handle, d) for handle in handles), return_exceptions=True
        )
        found = {}
        for handle, answer in zip(handles, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("worker %s does not say what it has imported: %s", handle.worker_id, answer)
            else:
                found[handle.worker_id] = answer
        return found

    async def _imported(self, handle: WorkerHandle, d: Deployment) -> ImportedSource:
        return await within(ANSWER_S, handle.source(import_paths(d)), self._sleep)

    async def _of(self, d: Deployment) -> dict[str, str] | None:
        known = d.program, d.version
        if known not in self._recorded:
            found: JSON | None = await self._store.get_record(self._pool, _key(d))
            if found is None:
                return None
            self._recorded[known] = found
        return self._recorded[known]


def _key(d: Deployment) -> str:
    return f"source:{d.program}:{d.version}"
