"""Runs warm-up steps on workers: on each new one before it takes traffic, and on all of them on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from dspool.config import ConfigureLMStep, ImportModules, LoadPrograms, PoolConfig, WarmupStep
from dspool.core.lifecycle.warmup import StepRun, Strategy, WarmupReport, report, stages
from dspool.errors import Conflict, PoolError
from dspool.messages import Deployment
from dspool.supervisor.runtime import Sleep, WorkerHandle, within
from dspool.telemetry.events import emit

RUNS_KEPT = 1000
PROGRESS_KEPT = 4096


class WarmProgress(Struct, frozen=True):
    """One moment of a warm-up, for a progress bar. `sequence` only grows within one supervisor's life."""

    sequence: int
    kind: Literal["begin", "stage", "step", "end"]
    worker_id: str = ""
    step: str = ""
    index: int = 0
    """The step's place; for "stage", the stage's (0 is the canary)."""
    total: int = 0
    """Steps a worker runs; for "begin", workers; for "stage", workers of the stage."""
    error: str = ""


def steps_of(config: PoolConfig) -> tuple[WarmupStep, ...]:
    """The configured steps, and loading the pool programs if none of them does: no worker serves without.

    Loading comes before the first step that may need a program.
    """
    steps = config.warmup.steps
    if any(isinstance(step, LoadPrograms) for step in steps):
        return steps
    first = 0
    while first < len(steps) and isinstance(steps[first], ImportModules | ConfigureLMStep):
        first += 1
    return (*steps[:first], LoadPrograms(), *steps[first:])


class Warmer:
    def __init__(
        self,
        config: PoolConfig,
        *,
        current: Callable[[], list[Deployment]],
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        """`current()` gives the current version of each pool program."""
        self.steps = steps_of(config)
        self._config = config
        self._current = current
        self._clock = clock
        self._sleep = sleep
        self._loaded: dict[str, dict[str, int]] = {}
        self._runs: deque[StepRun] = deque(maxlen=RUNS_KEPT)
        self._progress: deque[WarmProgress] = deque(maxlen=PROGRESS_KEPT)
        self._sequence = 0
        self._news = asyncio.Event()
        self._on_demand = asyncio.Lock()

    # --- what each worker has loaded -------------------------------------------------------------------

    def loaded(self, worker_id: str) -> dict[str, int]:
        """The active version of each pool program on the worker, as far as it was told."""
        return self._loaded.setdefault(worker_id, {})

    def gone(self, worker_id: str) -> None:
        self._loaded.pop(worker_id, None)

    async def catch_up(self, handle: WorkerHandle) -> None:
        """Bring a worker to the current versions, however often they change meanwhile. Raises what loading raises."""
        while behind := self._behind(handle.worker_id):
            for deployment in behind:
                try:
                    # It may have it: loaded as a canary, kept for a roll-back, or under an earlier supervisor.
                    await handle.activate(deployment.program, deployment.version)
                except PoolError:
                    await handle.deploy(deployment)
                    await handle.activate(deployment.program, deployment.version)
                self.loaded(handle.worker_id)[deployment.program] = deployment.version

    def _behind(self, worker_id: str) -> list[Deployment]:
        loaded = self.loaded(worker_id)
        return [d for d in self._current() if loaded.get(d.program) != d.version]

    # --- warming ---------------------------------------------------------------------------------------

    async def warm_new(self, handle: WorkerHandle, done: Callable[[str], None]) -> str:
        """All steps on a worker that takes no traffic yet; `done(step)` after each. Returns the error, or ""."""
        deadline = self._clock() + self._config.warmup.worker_deadline_s
        error = await self._run_steps(handle, deadline, self._runs.append, done)
        if error:
            return error
        try:
            # A version deployed after the programs were loaded would be missing on this worker.
            await within(max(0.0, deadline - self._clock()), self.catch_up(handle), self._sleep)
        except Exception as failed:
            return f"loading the current pool programs failed: {_words(failed)}"
        return ""

    async def _run_steps(
        self,
        handle: WorkerHandle,
        deadline: float,
        keep: Callable[[StepRun], None],
        done: Callable[[str], None] = lambda step: None,
    ) -> str:
        for index, step in enumerate(self.steps):
            run = await self._run_step(handle, index, step, deadline)
            keep(run)
            self._tell("step", handle.worker_id, run.step, index, len(self.steps), run.error)
            if run.error:
                return f"warm-up step {run.index} ({run.step}) failed: {run.error}"
            done(run.step)
        return ""

    async def _run_step(self, handle: WorkerHandle, index: int, step: WarmupStep, deadline: float) -> StepRun:
        began = self._clock()
        limit = max(0.0, deadline - began)
        if step.timeout_s is not None:
            limit = min(limit, step.timeout_s)
        deployments = self._current()
        error = ""
        try:
            await within(limit, handle.warm(step, deployments), self._sleep)
            if isinstance(step, LoadPrograms):
                self.loaded(handle.worker_id).update({d.program: d.version for d in deployments})
        except TimeoutError:
            error = f"not done within {limit:.3g} s"
        except Exception as failed:
            error = _words(failed)
        return StepRun(handle.worker_id, index, step.step, self._clock() - began, error)

    async def warm(self, strategy: Strategy, workers: Callable[[], list[WorkerHandle]]) -> WarmupReport:
        """All steps on all `workers()` that take traffic or wait as spares, in stages. They go on serving.

        A failing stage stops the roll-out; the report says why and keeps what was done.

        Raises:
            Conflict: another warm-up on demand is running.
        """
        if self._on_demand.locked():
            raise Conflict("a warm-up is running; wait for its end")
        async with self._on_demand:
            began = self._clock()
            left = workers()
            planned = stages(strategy, len(left))
            runs: list[StepRun] = []
            stopped = ""
            self._tell("begin", total=len(left))
            for number, size in enumerate(planned):
                stage, left = left[:size], left[size:]
                self._tell("stage", index=number, total=size)
                deadline = self._clock() + self._config.warmup.worker_deadline_s
                errors = await asyncio.gather(
                    *(self._run_steps(handle, deadline, runs.append) for handle in stage)
                )
                failed = [
                    f"{handle.worker_id}: {error}"
                    for handle, error in zip(stage, errors, strict=True)
                    if error
                ]
                if failed:
                    who = "the canary" if strategy == "staged" and number == 0 else f"stage {number}"
                    stopped = f"{who} failed: {'; '.join(failed)}"
                    break
            self._tell("end", error=stopped)
            done = report(
                strategy,
                runs,
                expected_steps=len(self.steps),
                planned=planned,
                duration_s=self._clock() - began,
                stopped=stopped,
            )
        emit(
            "pool.warmup",
            {"duration_s": done.duration_s, "workers": done.workers_warm, "failed": done.workers_failed},
            {"pool": self._config.name, "strategy": strategy, "outcome": "error" if stopped else "ok"},
        )
        return done

    def since_start(self) -> WarmupReport:
        """The warm-ups of new workers, the last thousand steps of them."""
        return report(self._config.warmup.strategy, self._runs, expected_steps=len(self.steps))

    def runs_of(self, worker_id: str) -> list[StepRun]:
        return [run for run in self._runs if run.worker_id == worker_id]

    # --- progress --------------------------------------------------------------------------------------

    def _tell(
        self,
        kind: Literal["begin", "stage", "step", "end"],
        worker_id: str = "",
        step: str = "",
        index: int = 0,
        total: int = 0,
        error: str = "",
    ) -> None:
        self._sequence += 1
        self._progress.append(WarmProgress(self._sequence, kind, worker_id, step, index, total, error))
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def progress(self, since: int, timeout_s: float) -> list[WarmProgress]:
        """What happened after `since`; waits up to `timeout_s` for something to happen. May be empty."""
        if self._sequence <= since:
            with contextlib.suppress(TimeoutError):
                await within(timeout_s, self._news.wait(), self._sleep)
        return [moment for moment in self._progress if moment.sequence > since]


def _words(failed: Exception) -> str:
    return failed.message if isinstance(failed, PoolError) else (str(failed) or repr(failed))
