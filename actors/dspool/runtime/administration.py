"""Administration of a pool: its size, workers, versions of programs, warm-up. The supervisor answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from dspool.client.client import Client
from dspool.core.lifecycle.warmup import StepRun, Strategy, WarmupReport
from dspool.errors import PoolError, WorkerStartFailed
from dspool.messages import Deployment, PoolStatus, is_ordinal
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress

T = TypeVar("T")

_PROGRESS_S = 1.0
"""How long one query for the progress of a warm-up waits; it does not delay the warm-up's end."""
_LOOK_S = 1.0
"""How often a start that takes long is looked at."""
_ROLLOUT_S = 0.25
"""How often to query a roll-out."""


class Administration:
    """The part of `Pool` that asks its supervisor."""

    name: str
    client: Client

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The supervisor's answer. Raises: WorkerLost: it is gone; the call may have begun."""
        raise NotImplementedError

    async def _query(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `_ask`, for a method that may run twice: waits for a supervisor that is being restarted."""
        raise NotImplementedError

    async def wait_ready(
        self, timeout_s: float | None = None, *, on_delay: Callable[[str], None] | None = None
    ) -> None:
        """Wait until `min_ready` workers are warm and connected, at most `init_timeout_s`.

        `on_delay` is told what a worker failed of that another one tries again.

        Raises:
            WorkerStartFailed: they are not; says what the supervisor knows. At once if the programs cannot be loaded.
        """
        config = self.client.config
        if config.lazy:
            return
        limit = config.init_timeout_s if timeout_s is None else timeout_s
        connected = asyncio.ensure_future(self.client.wait_ready(max(1, config.min_ready), limit))
        warm = asyncio.ensure_future(self._ask("wait_ready", limit))
        try:
            await self._until_done(connected, warm, on_delay)
            if warm.done() and isinstance(broken := warm.exception(), WorkerStartFailed):
                raise broken
            is_ready = await connected
        finally:
            connected.cancel()
            warm.cancel()
            # Whatever else the supervisor says then, nobody waits for it any more.
            await asyncio.gather(connected, warm, return_exceptions=True)
        if not is_ready:
            status = await self.status()
            raise WorkerStartFailed(
                f"pool {self.name!r} had {status.actual} of {config.min_ready} warm workers after {limit:g} s"
                + (f": {status.reason}" if status.reason else ""),
                pool=self.name,
            )

    async def _until_done(
        self,
        connected: asyncio.Future[bool],
        warm: asyncio.Future[Any],
        on_delay: Callable[[str], None] | None,
    ) -> None:
        """Until one of the two is done; meanwhile `on_delay` hears each new reason."""
        told = ""
        while not connected.done() and not warm.done():
            await asyncio.wait(
                {connected, warm},
                timeout=None if on_delay is None else _LOOK_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if on_delay is not None and not connected.done():
                with suppress(PoolError):
                    status = await self._ask("status", fresh=False)
                    if status.reason and status.reason != told:
                        told = status.reason
                        on_delay(told)

    async def status(self) -> PoolStatus:
        """The pool and its workers now."""
        return await self._query("status")

    # --- size and workers ---

    async def resize(self, size: int) -> int:
        """Ask for `size` workers. Raises: InvalidRequest: outside `min_pool_size`..`max_pool_size`."""
        return await self._query("resize", size)

    async def decisions(self, limit: int = 50) -> list[DecisionRecord]:
        """The last decisions about the size with their numbers, newest first."""
        return await self._query("decisions", limit)

    async def pause(self) -> None:
        """Refuse new operations (`PoolPaused`), those of this client at once; accepted ones finish."""
        await self._query("pause")
        await self.client.catch_up()

    async def resume(self) -> None:
        """Take operations again."""
        await self._query("resume")
        await self.client.catch_up()

    async def _worker_id(self, named: str | int) -> str:
        """The id of the worker that has this ordinal now; an id is one already. Raises: UnknownWorker."""
        return (await self.status()).worker_id(named) if is_ordinal(named) else str(named)

    async def drain(self, worker_id: str | int, *, wait_s: float | None = None) -> bool:
        """Let the worker, named by id or ordinal, finish its operations, give up its sessions, and go.

        A replacement starts at once.

        Returns whether it is gone, after at most `wait_s` seconds; None waits until it is.

        Raises:
            UnknownWorker: there is no such worker.
        """
        return await _within(wait_s, self._ask("drain", await self._worker_id(worker_id)))

    async def restart(self, worker_id: str | int, *, wait_s: float | None = None) -> bool:
        """Replace the worker, its replacement warm first. Returns and raises as `drain` does."""
        return await _within(wait_s, self._ask("restart", await self._worker_id(worker_id)))

    # --- versions of pool programs ---

    async def deploy(
        self, deployment: Deployment, *, canary_s: float | None = None, new: bool | None = None
    ) -> Deployment:
        """Put a new version of a pool program into service, a canary first; returns the deployment with its version.

        `canary_s` is the longest time of the canary's trial. A deployment that names no program is about
        the current version: `Deployment("answers", 0)` brings its source as it is on disk now, with `state=` also that.
        `new=False` refuses a name that the pool does not have, so that a mistyped one makes no program; True and None
        take it as a new program.

        Raises:
            ProgramError: it does not load, or its canary did worse; the version before runs on.
            Conflict: exactly this runs already, or nodes have different source.
            UnknownProgram: with `new=False`, there is no such program; says which name may be meant.
        """
        given = {"canary_s": canary_s, "new": new}
        options = {name: value for name, value in given.items() if value is not None}
        current: Deployment = await self._ask("deploy", deployment, **options)
        await self.client.catch_up()
        return current

    async def stream_deploy(
        self, deployment: Deployment, *, canary_s: float | None = None, new: bool | None = None
    ) -> AsyncGenerator[Rollout | Deployment]:
        """As `deploy`: yields the roll-out after each change, then the deployment. It goes on if nobody listens.

        Raises what `deploy` raises, after the roll-out's last state.
        """
        earlier = {_key(rollout) for rollout in await self.rollouts()}
        task = asyncio.ensure_future(self.deploy(deployment, canary_s=canary_s, new=new))
        last: Rollout | None = None
        try:
            done = False
            while not done:
                await asyncio.wait((task,), timeout=_ROLLOUT_S)
                # Queried once more after the end: the roll-out has the outcome.
                done = task.done()
                rollout = await self._rollout_since(earlier, deployment.program)
                if rollout is not None and rollout != last:
                    last = rollout
                    yield rollout
            yield await task
        finally:
            _leave(task)

    async def _rollout_since(self, earlier: set[tuple[str, float]], program: str) -> Rollout | None:
        try:
            rollouts = await self.rollouts()
        except PoolError:
            return None  # the next query tries again; the deployment itself says what is wrong
        return next(
            (rollout for rollout in rollouts if rollout.program == program and _key(rollout) not in earlier),
            None,
        )

    async def rollback(self, program: str, version: int | None = None, *, by: str = "") -> Deployment:
        """Make `version` (None: the one before) current again on every warm worker. `by` is who asked, for the history.

        Raises:
            UnknownProgram: there is no such program or version, or none before.
            Conflict: a deployment is running, or there is other source now than that version was made from.
        """
        current: Deployment = await self._ask("rollback", program, version, **({"by": by} if by else {}))
        await self.client.catch_up()
        return current

    async def rollouts(self) -> list[Rollout]:
        """The last deployments with what their canaries did, newest first; a running one shows its progress."""
        return await self._query("recent_rollouts")

    # --- warm-up ---

    async def warm(self, strategy: Strategy | None = None) -> WarmupReport:
        """Run the warm-up steps again on every warm worker; they go on serving. None: the configured strategy.

        Raises:
            Conflict: another warm-up on demand is running.
        """
        return await self._ask("warm", strategy)

    async def stream_warm(
        self, strategy: Strategy | None = None
    ) -> AsyncGenerator[WarmProgress | WarmupReport]:
        """As `warm`: yields each step at its end, then the report. It goes on if nobody listens."""
        progress = await self.warm_progress()
        last = progress[-1].sequence if progress else 0
        task = asyncio.ensure_future(self.warm(strategy))
        query: asyncio.Future[list[WarmProgress]] | None = None
        try:
            while not task.done():
                query = asyncio.ensure_future(self._ask("warm_progress", last, _PROGRESS_S))
                await asyncio.wait((task, query), return_when=asyncio.FIRST_COMPLETED)
                if task.done() and task.exception() is not None:
                    break
                for moment in await query:
                    last = moment.sequence
                    yield moment
            report = await task
            # Queried once more after the end: the last steps may have come with it.
            for moment in await self.warm_progress(last):
                yield moment
            yield report
        finally:
            _leave(task)
            if query is not None:
                _leave(query)

    async def warm_progress(self, since: int = 0) -> list[WarmProgress]:
        """The moments of warm-ups, on demand and of new workers, after sequence number `since`."""
        return await self._query("warm_progress", since, 0.0)

    async def warmup_report(self) -> WarmupReport:
        """The warm-ups of new workers: at boot, in growth, as replacements."""
        return await self._query("warmup_report")

    async def worker_warm_runs(self, worker_id: str | int) -> list[StepRun]:
        """The warm-up steps that ran on one worker, of the last thousand in the pool."""
        return await self._query("warm_runs", await self._worker_id(worker_id))


async def _within(wait_s: float | None, call: Awaitable[None]) -> bool:
    """Whether `call` ended in time. The supervisor goes on in any case."""
    try:
        async with asyncio.timeout(wait_s):
            await call
    except TimeoutError:
        return False
    return True


def _key(rollout: Rollout) -> tuple[str, float]:
    return rollout.program, rollout.began_at


def _leave(future: asyncio.Future[Any]) -> None:
    """Stop waiting for it; the supervisor goes on with it."""
    if not future.cancel() and not future.cancelled():
        future.exception()  # asyncio complains of an exception that nobody retrieves
