"""Runs warm-up steps on workers: on each new one before it takes traffic, and on all on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from dspool.config import ConfigureLMStep, ImportModules, LoadPrograms, PoolConfig, SetupStep, WorkerStep
from dspool.core.lifecycle.loading import lasts, text_of
from dspool.core.lifecycle.warmup import StepRun, Strategy, WarmupReport, report, stages
from dspool.errors import Conflict, PoolError
from dspool.messages import Deployment
from dspool.messages.versioned_pickle import Message
from dspool.supervisor.ports import Sleep, WorkerHandle, within
from dspool.telemetry.events import emit

MAX_RUNS = 1000
MAX_MOMENTS = 4096


class WarmProgress(Message, Struct, frozen=True):
    """One moment of a warm-up, for a progress bar. `sequence` only grows within one supervisor's life."""

    sequence: int
    kind: Literal["begin", "stage", "step", "end"]
    worker_id: str = ""
    step: str = ""
    index: int = 0
    """Position of the step; for "stage", of the stage (0 is the canary)."""
    total: int = 0
    """Number of steps of a worker; for "begin", of workers; for "stage", of the stage's workers."""
    error: str = ""


def steps_of(config: PoolConfig) -> tuple[WorkerStep, ...]:
    """The configured steps. If none loads the pool programs, one is added before the first that may need them.

    What is to be preloaded comes first: a forked worker has it already, and others need it as well. Then comes `setup`.
    """
    before: tuple[WorkerStep, ...] = ()
    if config.preload:
        before += (ImportModules(modules=config.preload),)
    if config.setup is not None:
        before += (SetupStep(import_path=config.setup),)
    steps = (*before, *config.warmup.steps)
    if any(isinstance(step, LoadPrograms) for step in steps):
        return steps
    first = 0
    while first < len(steps) and isinstance(steps[first], ImportModules | ConfigureLMStep | SetupStep):
        first += 1
    return (*steps[:first], LoadPrograms(), *steps[first:])


class WarmFailure(NamedTuple):
    why: str
    lasts: bool
    """Another worker would fail alike."""


class Warmer:
    def __init__(
        self,
        config: PoolConfig,
        *,
        current: Callable[[], list[Deployment]],
        admit: Callable[[WorkerHandle], Awaitable[None]],
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        """`current()` gives the current version of each pool program; `admit(worker)` raises why a worker that has
        loaded them must not take traffic."""
        self.steps = steps_of(config)
        self._config = config
        self._current = current
        self._admit = admit
        self.candidates: dict[str, list[Deployment]] = {}
        """By worker, the versions that it loads in place of the current ones, to try them."""
        self._unchecked: dict[str, list[Deployment]] = {}
        self.errors: dict[str, Exception] = {}
        """Why such a worker could not load them."""
        self._clock = clock
        self._sleep = sleep
        self._versions: dict[str, dict[str, int]] = {}
        self._runs: deque[StepRun] = deque(maxlen=MAX_RUNS)
        self._progress: deque[WarmProgress] = deque(maxlen=MAX_MOMENTS)
        self._sequence = 0
        self._change = asyncio.Event()
        self._on_demand = asyncio.Lock()

    # --- what each worker has loaded -------------------------------------------------------------------

    def versions_on(self, worker_id: str) -> dict[str, int]:
        """The active version of each pool program on the worker, as far as this supervisor set it."""
        return self._versions.setdefault(worker_id, {})

    def forget(self, worker_id: str) -> None:
        self._versions.pop(worker_id, None)
        self.candidates.pop(worker_id, None)
        self._unchecked.pop(worker_id, None)

    async def catch_up(self, handle: WorkerHandle) -> None:
        """Bring a worker to the current versions, even if they change meanwhile. Raises what loading raises."""
        while missing := self._missing(handle.worker_id):
            for deployment in missing:
                try:
                    # It may be loaded: by a canary's trial, for a roll-back, or under an earlier supervisor.
                    await handle.activate(deployment.program, deployment.version)
                except PoolError:
                    await handle.deploy(deployment)
                    await handle.activate(deployment.program, deployment.version)
                self.versions_on(handle.worker_id)[deployment.program] = deployment.version

    def _missing(self, worker_id: str) -> list[Deployment]:
        versions = self.versions_on(worker_id)
        return [d for d in self._wanted(worker_id) if versions.get(d.program) != d.version]

    def _wanted(self, worker_id: str) -> list[Deployment]:
        candidates = {d.program: d for d in self.candidates.get(worker_id, ())}
        return list(({d.program: d for d in self._current()} | candidates).values())

    # --- warming ---------------------------------------------------------------------------------------

    async def warm_new(self, handle: WorkerHandle, on_step: Callable[[str], None]) -> WarmFailure | None:
        """Run all steps on a worker that takes no traffic yet, `on_step(step)` after each. Returns what failed."""
        deadline = self._clock() + self._config.warmup.worker_deadline_s
        failure = await self._run_steps(handle, deadline, self._runs.append, on_step, new=True)
        if failure is not None:
            return failure
        try:
            # A version deployed after the programs were loaded is missing on this worker.
            await within(max(0.0, deadline - self._clock()), self.catch_up(handle), self._sleep)
            if handle.worker_id not in self.candidates:
                await within(max(0.0, deadline - self._clock()), self._admit(handle), self._sleep)
                await self._retire_unchecked(handle)
        except Exception as failed:
            return WarmFailure(f"loading the current pool programs failed: {text_of(failed)}", lasts(failed))
        return None

    async def _retire_unchecked(self, handle: WorkerHandle) -> None:
        """Versions that it loaded, and that are not current any more: nobody has compared its source with theirs."""
        versions = self.versions_on(handle.worker_id)
        for d in self._unchecked.pop(handle.worker_id, ()):
            if versions.get(d.program) != d.version:
                await handle.retire(d.program, d.version)

    async def _run_steps(
        self,
        handle: WorkerHandle,
        deadline: float,
        record: Callable[[StepRun], None],
        on_step: Callable[[str], None] = lambda step: None,
        *,
        new: bool = False,
    ) -> WarmFailure | None:
        for index, step in enumerate(self.steps):
            run, lasting = await self._run_step(handle, index, step, deadline, new=new)
            record(run)
            self._publish("step", handle.worker_id, run.step, index, len(self.steps), run.error)
            if run.error:
                why = f"warm-up step {run.index} ({run.step}) failed: {run.error}"
                return WarmFailure(why, lasting)
            on_step(run.step)
        return None

    async def _run_step(
        self, handle: WorkerHandle, index: int, step: WorkerStep, deadline: float, *, new: bool
    ) -> tuple[StepRun, bool]:
        """The step as it ran, and whether its error lasts."""
        began = self._clock()
        limit = max(0.0, deadline - began)
        if step.timeout_s is not None:
            limit = min(limit, step.timeout_s)
        deployments = self._wanted(handle.worker_id)
        error, lasting = "", False
        try:
            loads = deployments
            if handle.worker_id in self.candidates and isinstance(step, LoadPrograms):
                await within(limit, self._load_candidates(handle, deployments), self._sleep)
                loads = []
            elif new:
                # Without their source: whether the worker has it decides `admit`, which knows what to do if not.
                loads = [msgspec.structs.replace(d, source=None) for d in deployments]
                if isinstance(step, LoadPrograms):
                    self._unchecked[handle.worker_id] = deployments
            await within(limit, handle.warm(step, loads), self._sleep)
            if isinstance(step, LoadPrograms):
                self.versions_on(handle.worker_id).update({d.program: d.version for d in deployments})
        except TimeoutError:
            error = f"not done within {limit:.3g} s"
        except Exception as failed:
            error, lasting = text_of(failed), lasts(failed)
        return StepRun(handle.worker_id, index, step.step, self._clock() - began, error), lasting

    async def _load_candidates(self, handle: WorkerHandle, deployments: list[Deployment]) -> None:
        try:
            for deployment in deployments:
                await handle.deploy(deployment)
        except Exception as failed:
            self.errors[handle.worker_id] = failed
            raise

    async def warm(self, strategy: Strategy, workers: Callable[[], list[WorkerHandle]]) -> WarmupReport:
        """Run all steps on all `workers()`, in stages; they go on serving.

        A stage that fails ends the warm-up; the report says why, and what ran until then.

        Raises:
            Conflict: another warm-up on demand is running.
        """
        if self._on_demand.locked():
            raise Conflict("a warm-up is running; wait for its end")
        async with self._on_demand:
            began = self._clock()
            handles = workers()
            sizes = stages(strategy, len(handles))
            runs: list[StepRun] = []
            reason = ""
            self._publish("begin", total=len(handles))
            for index, size in enumerate(sizes):
                stage, handles = handles[:size], handles[size:]
                self._publish("stage", index=index, total=size)
                deadline = self._clock() + self._config.warmup.worker_deadline_s
                ends = await asyncio.gather(
                    *(self._run_steps(handle, deadline, runs.append) for handle in stage)
                )
                failures = [
                    f"{handle.worker_id}: {failure.why}"
                    for handle, failure in zip(stage, ends, strict=True)
                    if failure is not None
                ]
                if failures:
                    who = "the canary" if strategy == "staged" and index == 0 else f"stage {index}"
                    reason = f"{who} failed: {'; '.join(failures)}"
                    break
            self._publish("end", error=reason)
            result = report(
                strategy,
                runs,
                expected_steps=len(self.steps),
                planned=sizes,
                duration_s=self._clock() - began,
                stopped=reason,
            )
        emit(
            "pool.warmup",
            {
                "duration_s": result.duration_s,
                "workers": result.workers_warm,
                "failed": result.workers_failed,
            },
            {"pool": self._config.name, "strategy": strategy, "outcome": "error" if reason else "ok"},
        )
        return result

    def since_start(self) -> WarmupReport:
        """The warm-ups of new workers: their last thousand steps."""
        return report(self._config.warmup.strategy, self._runs, expected_steps=len(self.steps))

    def runs_of(self, worker_id: str) -> list[StepRun]:
        return [run for run in self._runs if run.worker_id == worker_id]

    # --- progress --------------------------------------------------------------------------------------

    def _publish(
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
        change, self._change = self._change, asyncio.Event()
        change.set()

    async def progress(self, since: int, timeout_s: float) -> list[WarmProgress]:
        """The moments after `since`; waits up to `timeout_s` for one. May be empty."""
        if self._sequence <= since:
            with contextlib.suppress(TimeoutError):
                await within(timeout_s, self._change.wait(), self._sleep)
        return [moment for moment in self._progress if moment.sequence > since]
