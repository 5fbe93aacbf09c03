"""`dspool warm`: the warm-up steps again on every warm worker, with a bar for each and a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dspool.cli.layout import table
from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import EXIT_FAILED, Output
from dspool.cli.service import as_json, serving
from dspool.core.lifecycle.warmup import WarmupReport
from dspool.core.wording import counted
from dspool.supervisor.warmup import WarmProgress


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(warm)


def warm(
    strategy: Annotated[
        Literal["parallel", "sequential", "staged"] | None,
        typer.Option(
            help="All workers at once, one after the other, or a canary alone and then three stages; "
            "by default what the configuration says."
        ),
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the warm-up steps again on every warm worker. They go on serving.

    A failed canary or stage stops the rest and says why; what was done is in the report. Exit code 1 if it stopped.
    """
    out = Output(json, debug)
    with serving(out, config, state_dir, pool) as served:
        for moment in _shown(served.stream_warm(strategy), out):
            if isinstance(moment, WarmupReport):
                report = moment
        facts = {"pool": served.name, "distinct_workers": _distinct(report), **as_json(report)}
        out.result(facts, report_text(report))
        if report.stopped:
            raise typer.Exit(EXIT_FAILED)


def _shown(
    events: Iterator[WarmProgress | WarmupReport], out: Output
) -> Iterator[WarmProgress | WarmupReport]:
    """The same events; each step is shown as it comes."""
    bars = Bars() if not out.as_json and Console().is_terminal else None
    try:
        for moment in events:
            if isinstance(moment, WarmProgress):
                if bars is not None:
                    bars.show(moment)
                elif not out.as_json and (line := line_of(moment)):
                    out.progress("warm", line)
            yield moment
    finally:
        if bars is not None:
            bars.close()


class Bars:
    """One bar a worker: how many of its steps are done, and which was the last."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[step]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._all: TaskID | None = None
        self._progress.start()

    def show(self, moment: WarmProgress) -> None:
        if moment.kind == "begin":
            self._all = self._progress.add_task("all workers", total=moment.total, step="")
        elif moment.kind == "stage" and self._all is not None:
            self._progress.update(self._all, step=f"stage {moment.index}, {counted(moment.total, 'worker')}")
        elif moment.kind == "step":
            task = self._tasks.get(moment.worker_id)
            if task is None:
                task = self._progress.add_task(moment.worker_id, total=moment.total, step="")
                self._tasks[moment.worker_id] = task
            said = f"[red]{moment.step}: failed[/]" if moment.error else moment.step
            self._progress.update(task, step=said, advance=0 if moment.error else 1)
            if moment.index + 1 == moment.total and not moment.error and self._all is not None:
                self._progress.advance(self._all)

    def close(self) -> None:
        self._progress.stop()


def line_of(moment: WarmProgress) -> str:
    """The same for a log; empty for what is not worth a line."""
    match moment.kind:
        case "begin":
            return counted(moment.total, "worker")
        case "stage":
            return f"stage {moment.index}: {counted(moment.total, 'worker')}"
        case "step":
            ended = f"failed: {moment.error}" if moment.error else "done"
            return f"{moment.worker_id}  {moment.step} ({moment.index + 1} of {moment.total}) {ended}"
    return ""


def report_text(report: WarmupReport) -> str:
    """The report for people."""
    steps = [
        (
            f"{step.index} {step.step}",
            str(step.count),
            str(step.failures),
            f"{step.success_rate:.0%}",
            *(_seconds(took) for took in (step.mean_s, step.p99_s, step.max_s)),
            step.last_error,
        )
        for step in report.steps
    ]
    workers = [
        (w.worker_id, "yes" if w.ok else "no", str(w.steps), _seconds(w.duration_s), w.error)
        for w in report.workers
    ]
    stages = ", ".join(map(str, report.stages)) or "none"
    lines = [
        f"{report.strategy}: {report.workers_warm} warm, {report.workers_failed} failed, "
        f"{_distinct(report)} distinct workers, {report.success_rate:.0%} of {report.runs} steps "
        f"in {report.duration_s:.2f} s; workers by stage: {stages}"
    ]
    if steps:
        lines.append(table(("step", "runs", "failed", "success", "mean", "p99", "max", "last error"), steps))
    if workers:
        lines.append(table(("worker", "warm", "steps", "took", "error"), workers))
    if report.stopped:
        lines.append(f"stopped: {report.stopped}")
    return "\n".join(lines)


def _distinct(report: WarmupReport) -> int:
    return len({worker.worker_id for worker in report.workers})


def _seconds(value: float) -> str:
    return f"{value:.3f} s"
