"""New versions for the workers that run: what a deployment needs no new process for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

from dspool.config import PoolConfig
from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.canary import ROLLED_BACK
from dspool.core.lifecycle.source import SOURCE_DIFFERS
from dspool.errors import Conflict, PoolError, PoolNotReady, ProgramError, UnknownProgram, WorkerLost
from dspool.messages import Deployment
from dspool.supervisor.canary import Rollout
from dspool.supervisor.ports import Sleep, WorkerHandle, within
from dspool.supervisor.version_history import VersionHistory
from dspool.supervisor.warmup import Warmer

log = logging.getLogger("dspool.supervisor")

TAKE_BACK_S = 5.0


class RunningWorkers:
    def __init__(
        self,
        config: PoolConfig,
        history: VersionHistory,
        warmer: Warmer,
        *,
        serving: Callable[[], list[WorkerHandle]],
        spares: Callable[[], list[WorkerHandle]],
        feed: Callable[[ev.Event], None],
        sleep: Sleep,
    ) -> None:
        self._config = config
        self._history = history
        self._warmer = warmer
        self._serving = serving
        self._spares = spares
        self._feed = feed
        self._sleep = sleep
        self._retired: set[tuple[str, int]] = set()
        """Old versions that no worker has any more: a new one gets the current ones."""

    def all(self) -> list[WorkerHandle]:
        return [*self._serving(), *self._spares()]

    async def load_canary(self, candidate: Deployment, rollout: Rollout) -> WorkerHandle:
        """Load it on one worker that takes traffic; first on a spare, if there is one, where it hurts no caller.

        Its number is above all others, so the worker answers with it at once.
        """
        serving = self._serving()
        if not serving:
            raise PoolNotReady("no warm worker to deploy to", retry_after_s=1.0)
        for handle in [*self._spares()[:1], serving[0]]:
            try:
                await within(self._config.warmup.worker_deadline_s, handle.deploy(candidate), self._sleep)
            except TimeoutError as late:
                await self.take_back(handle, candidate)
                raise ProgramError(
                    f"version {candidate.version} of {candidate.program} did not load: {late}",
                    program=candidate.program,
                ) from late
            except WorkerLost as lost:
                # The worker runs the new version before it answers: operations may have blocked or killed it.
                rollout.phase = "rolled back"
                reason = f"worker {handle.worker_id}, which took it, died or does not answer any more"
                raise ProgramError(
                    f"version {candidate.version} of {candidate.program} was rolled back: {reason}",
                    program=candidate.program,
                    version=candidate.version,
                    reason=reason,
                    **{ROLLED_BACK: True},
                ) from lost
            except BaseException:
                await self.take_back(handle, candidate)
                raise
            if handle is not serving[0]:
                await self.take_back(handle, candidate)
        return serving[0]

    async def take_back(self, handle: WorkerHandle, candidate: Deployment) -> None:
        """Restore the version before on the worker. If that fails the worker must go: it would serve the new one."""
        old = self._history.current_of(candidate.program)
        try:
            if old is not None:
                activate = handle.activate(candidate.program, old.version)
                await within(TAKE_BACK_S, activate, self._sleep)
            with contextlib.suppress(UnknownProgram):  # it may have failed before it was loaded
                await within(TAKE_BACK_S, handle.retire(candidate.program, candidate.version), self._sleep)
        except Exception as failed:
            log.warning(
                "could not take version %s back on %s: %s", candidate.version, handle.worker_id, failed
            )
            self._give_up(handle, f"could not go back to the program version before: {failed}")

    async def bring_all_up(self, rollout: Rollout | None = None, *, without: Collection[str] = ()) -> None:
        """Give every warm worker the current versions; one that joins meanwhile gets them before it takes traffic."""
        self._retired -= {(d.program, d.version) for d in self._history.current()}
        handles = [handle for handle in self.all() if handle.worker_id not in without]
        if rollout is not None:
            rollout.workers_total = len(handles)

        async def catch_up(handle: WorkerHandle) -> None:
            limit = self._config.warmup.worker_deadline_s
            await within(limit, self._warmer.catch_up(handle), self._sleep)
            if rollout is not None:
                rollout.workers_done += 1

        outcomes = await asyncio.gather(*(catch_up(handle) for handle in handles), return_exceptions=True)
        for handle, outcome in zip(handles, outcomes, strict=True):
            if isinstance(outcome, Conflict) and outcome.details.get("reason") == SOURCE_DIFFERS:
                # It serves the version that it has until its replacement is warm.
                self._feed(ev.RestartRequested(handle.worker_id, outcome.message))
            elif isinstance(outcome, Exception):
                log.warning("worker %s did not take the new version: %s", handle.worker_id, outcome)
                self._give_up(handle, f"could not load a new program version: {outcome}")

    def _give_up(self, handle: WorkerHandle, why: str) -> None:
        self._feed(ev.HealthMissed(handle.worker_id, why, certain=True))

    async def retire_old(self, deployment: Deployment) -> None:
        """Remove old versions from the workers, but keep the one before for a quick way back."""
        program = deployment.program
        recent = {deployment.version, self._history.number_before(program)}
        for version in set(self._history.numbers(program)) - recent:
            if (program, version) not in self._retired and await self._retire(program, version):
                self._retired.add((program, version))

    async def _retire(self, program: str, version: int) -> bool:
        """Whether no worker has this version any more."""
        is_gone = True
        for handle in self.all():
            try:
                await within(TAKE_BACK_S, handle.retire(program, version), self._sleep)
            except UnknownProgram:
                continue  # it never had it
            except (PoolError, TimeoutError) as failed:
                log.debug("version %s may still be on %s: %s", version, handle.worker_id, failed)
                is_gone = False
        return is_gone

    async def end_canaries(self, without: Collection[str] = ()) -> None:
        """Bring adopted workers to the current versions: the last supervisor may have died in a deployment."""
        await self.bring_all_up(without=without)
        for handle in [handle for handle in self.all() if handle.worker_id not in without]:
            for d in self._history.current():
                tried = self._history.last_number(d.program)
                if tried != d.version:
                    with contextlib.suppress(Exception):  # as a rule it is not there
                        await handle.retire(d.program, tried)
