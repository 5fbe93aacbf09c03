"""The stages of a warm-up, and the report of what happened.

Pure: the supervisor runs the steps and times them; this gives the order and adds up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from dspool.messages.versioned_pickle import Message

Strategy = Literal["parallel", "sequential", "staged"]

STAGES_AFTER_CANARY = 3


def stages(strategy: Strategy, workers: int) -> tuple[int, ...]:
    """How many workers each stage warms, first stage first; they add up to `workers`.

    `parallel` is one stage, `sequential` one worker a stage, `staged` a single canary and then at most three
    stages of growing size, so that a fault which the canary missed still hits few workers first.
    """
    if workers <= 0:
        return ()
    if strategy == "parallel":
        return (workers,)
    if strategy == "sequential":
        return (1,) * workers
    remaining = workers - 1
    sizes = [1]
    for weight in range(1, STAGES_AFTER_CANARY + 1):
        # The stages share the workers as 1 to 2 to 3; the last one takes all that remain.
        share = round(remaining * weight / sum(range(weight, STAGES_AFTER_CANARY + 1)))
        size = min(remaining, max(1, share))
        if size:
            sizes.append(size)
            remaining -= size
    return tuple(sizes)


class StepRun(Message, Struct, frozen=True):
    """One step on one worker. `error` is empty when it succeeded."""

    worker_id: str
    index: int
    """The step's place in the configuration: distinguishes two steps of one name."""
    step: str
    duration_s: float
    error: str = ""


class StepReport(Message, Struct, frozen=True):
    """One step over all workers. Durations are of the runs that succeeded; 0 when there were none."""

    index: int
    step: str
    count: int
    failures: int
    success_rate: float
    """Between 0 and 1; 1 when it never ran."""
    mean_s: float
    p99_s: float
    max_s: float
    last_error: str = ""


class WorkerReport(Message, Struct, frozen=True):
    worker_id: str
    ok: bool
    steps: int
    """Steps that succeeded."""
    duration_s: float
    """All its steps together."""
    error: str = ""
    failures: int = 0
    success_rate: float = 1.0
    mean_s: float = 0.0
    """Of the steps that succeeded, as the next two."""
    p99_s: float = 0.0
    max_s: float = 0.0


class WarmupReport(Message, Struct, frozen=True):
    """What a warm-up did. A failed worker's finished steps count, too."""

    strategy: str
    steps: tuple[StepReport, ...] = ()
    workers: tuple[WorkerReport, ...] = ()
    stages: tuple[int, ...] = ()
    """Workers per stage, as planned."""
    workers_warm: int = 0
    workers_failed: int = 0
    runs: int = 0
    failures: int = 0
    success_rate: float = 1.0
    mean_s: float = 0.0
    """Of the runs that succeeded, as the next two."""
    p99_s: float = 0.0
    max_s: float = 0.0
    duration_s: float = 0.0
    stopped: str = ""
    """Why the roll-out stopped before its end; empty when it did not."""


def report(
    strategy: str,
    runs: Iterable[StepRun],
    *,
    expected_steps: int,
    planned: Sequence[int] = (),
    duration_s: float = 0.0,
    stopped: str = "",
) -> WarmupReport:
    """Adds up `runs`, perhaps none. A worker is warm when each of `expected_steps` steps succeeded on it."""
    runs = list(runs)
    by_step: dict[tuple[int, str], list[StepRun]] = {}
    by_worker: dict[str, list[StepRun]] = {}
    for run in runs:
        by_step.setdefault((run.index, run.step), []).append(run)
        by_worker.setdefault(run.worker_id, []).append(run)
    workers = tuple(_worker_report(name, group, expected_steps) for name, group in by_worker.items())
    failures = sum(1 for run in runs if run.error)
    return WarmupReport(
        strategy=strategy,
        steps=tuple(_step_report(*key, group) for key, group in sorted(by_step.items())),
        workers=workers,
        stages=tuple(planned),
        workers_warm=sum(1 for worker in workers if worker.ok),
        workers_failed=sum(1 for worker in workers if not worker.ok),
        runs=len(runs),
        failures=failures,
        success_rate=_rate(len(runs) - failures, len(runs)),
        **_times(runs),
        duration_s=duration_s,
        stopped=stopped,
    )


def _step_report(index: int, step: str, runs: list[StepRun]) -> StepReport:
    errors = [run.error for run in runs if run.error]
    return StepReport(
        index=index,
        step=step,
        count=len(runs),
        failures=len(errors),
        success_rate=_rate(len(runs) - len(errors), len(runs)),
        **_times(runs),
        last_error=errors[-1] if errors else "",
    )


def _worker_report(worker_id: str, runs: list[StepRun], expected_steps: int) -> WorkerReport:
    errors = [run.error for run in runs if run.error]
    successes = sum(1 for run in runs if not run.error)
    return WorkerReport(
        worker_id=worker_id,
        ok=not errors and successes >= expected_steps,
        steps=successes,
        duration_s=sum(run.duration_s for run in runs),
        error=errors[-1] if errors else "",
        failures=len(errors),
        success_rate=_rate(successes, len(runs)),
        **_times(runs),
    )


def _times(runs: list[StepRun]) -> dict[str, float]:
    durations = sorted(run.duration_s for run in runs if not run.error)
    return {
        "mean_s": sum(durations) / len(durations) if durations else 0.0,
        "p99_s": _p99(durations),
        "max_s": durations[-1] if durations else 0.0,
    }


def _p99(ordered: list[float]) -> float:
    # The nearest rank from above: of ten values it is the largest, never the one below.
    return ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else 0.0


def _rate(good: int, all_: int) -> float:
    return good / all_ if all_ else 1.0
