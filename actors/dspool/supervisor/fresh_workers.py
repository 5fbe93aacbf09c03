"""Workers in fresh processes for edited source: one tries it beside the others, then all others are replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence

from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.roster import PENDING
from dspool.core.lifecycle.state import PoolState
from dspool.errors import ProgramError
from dspool.messages import Deployment, WorkerState
from dspool.supervisor.canary import Rollout
from dspool.supervisor.ports import Sleep, WorkerHandle, within
from dspool.supervisor.warmup import Warmer


class FreshWorkers:
    def __init__(
        self,
        state: PoolState,
        warmer: Warmer,
        feed: Callable[[ev.Event], None],
        handle: Callable[[str], WorkerHandle | None],
        until: Callable[[Callable[[], object]], Awaitable[None]],
        sleep: Sleep,
    ) -> None:
        """`handle(worker_id)` is a worker that runs; `until(reached)` returns once `reached()` is true."""
        self._state = state
        self._warmer = warmer
        self._feed = feed
        self._handle = handle
        self._until = until
        self._sleep = sleep

    async def start(self, candidates: Sequence[Deployment]) -> WorkerHandle:
        """A worker in a new process that has loaded these versions, and takes no traffic yet.

        Raises:
            PoolError: what loading raised, or why the worker did not start.
        """
        self._feed(ev.CanaryRequested())
        worker_id = next(w.id for w in self._state.roster if w.canary and w.phase in PENDING)
        self._warmer.candidates[worker_id] = list(candidates)
        try:
            await self._until(lambda: self._phase(worker_id) not in PENDING)
            handle = self._handle(worker_id)
            if self._phase(worker_id) != "spare" or handle is None:
                if (error := self._warmer.errors.pop(worker_id, None)) is not None:
                    raise error
                raise ProgramError(
                    f"version {candidates[0].version} of {candidates[0].program} did not load in a new process: "
                    f"{self._state.canary_failure}",
                    program=candidates[0].program,
                )
        except BaseException:
            self.refuse(worker_id, "its program did not load")
            raise
        return handle

    def promote(self, worker_id: str) -> None:
        """It takes traffic beside the others."""
        self._feed(ev.CanaryPromoted(worker_id))

    def refuse(self, worker_id: str, why: str) -> None:
        """It finishes what it runs and goes."""
        self._warmer.candidates.pop(worker_id, None)
        self._warmer.errors.pop(worker_id, None)
        self._feed(ev.CanaryRefused(worker_id, why))

    async def replace_others(self, worker_id: str, why: str, rollout: Rollout, limit_s: float) -> None:
        """It is a worker like others now; those older than it are replaced one at a time, warm before they go.

        Returns when none of them takes traffic any more. If that takes longer than `limit_s`, the rest goes on in the
        background, and `rollout` says why.
        """
        self._warmer.candidates.pop(worker_id, None)
        older = {w.id for w in self._state.roster.in_phase("ready", "spare")} - {worker_id}
        rollout.workers_total = len(older) + 1
        self._feed(ev.CanaryAccepted(worker_id, why))
        with contextlib.suppress(TimeoutError):
            await within(limit_s, self._replaced(older, rollout), self._sleep)
        if left := rollout.workers_total - rollout.workers_done:
            rollout.reason = f"{left} of {rollout.workers_total} workers still run the version before" + (
                f": {self._state.condition.last_failure}" if self._state.condition.last_failure else ""
            )

    async def _replaced(self, older: set[str], rollout: Rollout) -> None:
        def done() -> bool:
            left = older & {w.id for w in self._state.roster.in_phase("ready", "spare")}
            rollout.workers_done = rollout.workers_total - len(left)
            return not left

        await self._until(done)

    def _phase(self, worker_id: str) -> WorkerState | None:
        w = self._state.roster.get(worker_id)
        return None if w is None else w.phase
