"""What operators ask of a pool: its size, its workers, its programs' versions, its warm-up. The supervisor answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from ray.actor import ActorHandle

from dspool.client.client import Client
from dspool.core.lifecycle.warmup import StepRun, Strategy, WarmupReport
from dspool.errors import PoolError
from dspool.messages import Deployment, PoolStatus
from dspool.runtime.cluster import ask, ask_supervisor
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress

T = TypeVar("T")

_PROGRESS_S = 1.0
"""How long one question for the progress of a warm-up waits; its end is noticed at once all the same."""
_ROLLOUT_S = 0.25
"""How often a roll-out is looked at."""


class Administration:
    """The part of `Pool` that asks its supervisor."""

    client: Client
    supervisor: ActorHandle[Any]

    async def status(self) -> PoolStatus:
        """The pool and its workers, asked just now."""
        return await ask_supervisor(self.supervisor, "status")

    # --- size and workers ---

    async def resize(self, size: int) -> int:
        """Ask for `size` workers. Raises: InvalidRequest: outside `min_pool_size`..`max_pool_size`."""
        return await ask_supervisor(self.supervisor, "resize", size)

    async def decisions(self, limit: int = 50) -> list[DecisionRecord]:
        """The last decisions about the size with the numbers that led to them, newest first."""
        return await ask_supervisor(self.supervisor, "decisions", limit)

    async def pause(self) -> None:
        """Refuse new operations (`PoolPaused`); those that were accepted finish."""
        await ask_supervisor(self.supervisor, "pause")

    async def resume(self) -> None:
        """Take operations again."""
        await ask_supervisor(self.supervisor, "resume")

    async def drain(self, worker_id: str, *, wait_s: float | None = None) -> bool:
        """Let the worker finish what it runs, hand its sessions on, and go; a replacement starts at once.

        Returns whether it is gone, after at most `wait_s` seconds; None waits until it is.

        Raises:
            UnknownWorker: there is no such worker.
        """
        return await _within(wait_s, ask(self.supervisor, "drain", worker_id))

    async def restart(self, worker_id: str, *, wait_s: float | None = None) -> bool:
        """Replace the worker, its replacement warm first. Returns and raises as `drain` does."""
        return await _within(wait_s, ask(self.supervisor, "restart", worker_id))

    # --- versions of pool programs ---

    async def deploy(self, deployment: Deployment, *, canary_s: float | None = None) -> Deployment:
        """Put a new version of a pool program into service, a canary first; the deployment with its version.

        `canary_s` is the longest time that the canary is watched.

        Raises:
            ProgramError: it does not load, or its canary did worse; the version before runs on.
            Conflict: it is what runs already, or source that it names was edited since workers imported it.
        """
        options = {} if canary_s is None else {"canary_s": canary_s}
        done: Deployment = await ask(self.supervisor, "deploy", deployment, **options)
        self.client.add_program(done.program)
        return done

    async def stream_deploy(
        self, deployment: Deployment, *, canary_s: float | None = None
    ) -> AsyncGenerator[Rollout | Deployment]:
        """As `deploy`: the roll-out each time that it has changed, then the deployment. It goes on if nobody listens.

        Raises what `deploy` raises, after the roll-out as it ended.
        """
        before = {_key(rollout) for rollout in await self.rollouts()}
        deploying = asyncio.ensure_future(self.deploy(deployment, canary_s=canary_s))
        shown: Rollout | None = None
        try:
            over = False
            while not over:
                await asyncio.wait((deploying,), timeout=_ROLLOUT_S)
                # Looked at once more after the end: what it came to is in the roll-out.
                over = deploying.done()
                rollout = await self._rollout_since(before, deployment.program)
                if rollout is not None and rollout != shown:
                    shown = rollout
                    yield rollout
            yield await deploying
        finally:
            _leave(deploying)

    async def _rollout_since(self, before: set[tuple[str, float]], program: str) -> Rollout | None:
        try:
            rollouts = await self.rollouts()
        except PoolError:
            return None  # looked at again; the deployment itself says what is wrong
        return next((one for one in rollouts if one.program == program and _key(one) not in before), None)

    async def rollback(self, program: str, version: int | None = None) -> Deployment:
        """Make `version` (None: the one before) current again on every warm worker.

        Raises:
            UnknownProgram: there is no such program or version, or none before.
            Conflict: a deployment is running, or workers have other source now than that version was made from.
        """
        return await ask(self.supervisor, "rollback", program, version)

    async def rollouts(self) -> list[Rollout]:
        """The last deployments with what their canaries did, newest first; one that runs shows how far it is."""
        return await ask_supervisor(self.supervisor, "recent_rollouts")

    # --- warm-up ---

    async def warm(self, strategy: Strategy | None = None) -> WarmupReport:
        """Run the warm-up steps again on every warm worker, which go on serving. None is the configured strategy.

        Raises:
            Conflict: another warm-up on demand is running.
        """
        return await ask(self.supervisor, "warm", strategy)

    async def stream_warm(
        self, strategy: Strategy | None = None
    ) -> AsyncGenerator[WarmProgress | WarmupReport]:
        """As `warm`: each step as it ends, then the report. It goes on if nobody listens."""
        progress = await self.warm_progress()
        last = progress[-1].sequence if progress else 0
        warming = asyncio.ensure_future(self.warm(strategy))
        asking: asyncio.Future[list[WarmProgress]] | None = None
        try:
            while not warming.done():
                asking = asyncio.ensure_future(ask(self.supervisor, "warm_progress", last, _PROGRESS_S))
                await asyncio.wait((warming, asking), return_when=asyncio.FIRST_COMPLETED)
                if warming.done() and warming.exception() is not None:
                    break
                for moment in await asking:
                    last = moment.sequence
                    yield moment
            yield await warming
        finally:
            _leave(warming)
            if asking is not None:
                _leave(asking)

    async def warm_progress(self, since: int = 0) -> list[WarmProgress]:
        """What happened in warm-ups on demand and of new workers after sequence number `since`."""
        return await ask_supervisor(self.supervisor, "warm_progress", since, 0.0)

    async def warmup_report(self) -> WarmupReport:
        """The warm-ups of the workers that were started: at boot, in growth, as replacements."""
        return await ask_supervisor(self.supervisor, "warmup_report")

    async def worker_warm_runs(self, worker_id: str) -> list[StepRun]:
        """The warm-up steps that ran on one worker, as far as they are remembered."""
        return await ask_supervisor(self.supervisor, "warm_runs", worker_id)


async def _within(wait_s: float | None, asked: Awaitable[None]) -> bool:
    """Whether `asked` came to its end in time. The supervisor goes on in any case."""
    try:
        async with asyncio.timeout(wait_s):
            await asked
    except TimeoutError:
        return False
    return True


def _key(rollout: Rollout) -> tuple[str, float]:
    return rollout.program, rollout.began_at


def _leave(asked: asyncio.Future[Any]) -> None:
    """Wait for it no longer; the supervisor goes on with it."""
    if not asked.cancel() and not asked.cancelled():
        asked.exception()  # looked at, or asyncio complains that nobody did


__all__ = ["Administration"]
