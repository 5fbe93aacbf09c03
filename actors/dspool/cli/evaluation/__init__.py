"""`dspool eval`: how good a pool program is on examples, and whether another version or state of it is better."""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from dspool.cli.deploy import program_of
from dspool.cli.evaluation.examples import Example, Metric, input_names, metric_of, read_examples
from dspool.cli.evaluation.running import Candidate, ScoredRow, Summary, evaluate, summary
from dspool.cli.evaluation.statistics import Difference, difference
from dspool.cli.layout import table
from dspool.cli.options import ConfigFile, Debug, Json, PoolName, ProgramName, StateDir
from dspool.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, Output, guarded
from dspool.cli.programs import find_here
from dspool.cli.service import remote_pool, run_file, running
from dspool.errors import InvalidRequest
from dspool.messages import JSON, GetProgramInfo
from dspool.private_files import open_descriptor
from dspool.remote import RemotePool

SERVED = "current"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("eval")(evaluate_program)


def evaluate_program(
    program: ProgramName,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl",
            help="Examples: one JSON object a line, with the inputs and what the metric needs.",
        ),
    ],
    metric: Annotated[
        str,
        typer.Option(
            help="package.module:function, found from the current directory: (example, prediction, trace=None) to a "
            "number or a bool, as in DSPy. It runs here."
        ),
    ],
    version: Annotated[
        int | None, typer.Option(min=1, help="Evaluate this version instead of the current one.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Evaluate the current version with this state, which DSPy's save() wrote; deploys nothing."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="current|N",
            help="Compare with this version on the same examples, and test the difference.",
        ),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Which fields of an example are inputs; by default those of the program."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first N examples.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="ROWS.jsonl", help="Write a line for each example and version here."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Operations under way at once.")] = 16,
    timeout: Annotated[
        float,
        typer.Option(min=0, help="Deadline of each operation, in seconds; the pool's own is the longest."),
    ] = 600.0,
    min_score: Annotated[
        float | None, typer.Option(help="Exit with 1 if the mean score is below this.")
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a pool program on examples. They run on the pool after all interactive work.

    An example that fails counts as 0 and is shown apart. Ctrl-C ends it and shows the results so far (exit code 130).
    """
    output = Output(json, debug)
    with guarded(output):
        served = running(run_file(config, state_dir))
        find_here()
        candidates = candidates_of(version, state, against)
        judge = metric_of(metric)
        wanted = _Wanted(program, data, inputs, limit, candidates, judge, concurrency, timeout)
        rows, finished = _run(lambda: remote_pool(served, pool, priority="batch"), wanted, out, output)
        if not rows:
            raise typer.Exit(EXIT_INTERRUPTED)
        found = report(program, candidates, rows)
        output.result(found, report_text(found))
        scored = [one for one in found["results"] if one["errors"] < one["examples"]]
        if not finished:
            raise typer.Exit(EXIT_INTERRUPTED)
        if not scored or (min_score is not None and found["results"][-1]["mean"] < min_score):
            raise typer.Exit(EXIT_FAILED)


def candidates_of(version: int | None, state: Path | None, against: str | None) -> list[Candidate]:
    """What is to be evaluated, what it is compared with first.

    Raises:
        InvalidRequest: they contradict one another, or the state cannot be read.
    """
    if version is not None and state is not None:
        raise InvalidRequest("a state goes with the current version: give --version or --state, not both")
    new = Candidate(SERVED if version is None else f"v{version}", version or 0)
    if state is not None:
        new = Candidate(state.name, 0, _state_of(state))
    if against is None:
        return [new]
    if against == SERVED:
        old = Candidate(SERVED)
    elif against.isascii() and against.isdigit() and int(against) > 0:
        old = Candidate(f"v{against}", int(against))
    else:
        raise InvalidRequest(f"--against takes the number of a version, or {SERVED}; got {against[:40]!r}")
    if old == new:
        raise InvalidRequest("both are the same: name another version with --version, or a --state")
    return [old, new]


def report(program: str, candidates: Sequence[Candidate], rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """The result as `--json` prints it."""
    by_name = {one.name: [row for row in rows if row.candidate == one.name] for one in candidates}
    found: dict[str, Any] = {
        "program": program,
        "results": [_shown(summary(name, its)) for name, its in by_name.items() if its],
    }
    if len(candidates) == 2:
        first, second = ({row.line: row.score or 0.0 for row in its} for its in by_name.values())
        if pairs := sorted(first.keys() & second.keys()):
            compared = difference([first[line] for line in pairs], [second[line] for line in pairs])
            names = [one.name for one in candidates]
            found["comparison"] = {"of": names[1], "to": names[0], "pairs": len(pairs), **_compared(compared)}
    return found


def report_text(found: dict[str, Any]) -> str:
    titles = ("version", "examples", "mean", "95 %", "errors", "tokens", "cost", "p50", "p95")
    rows = [
        (
            str(one["candidate"]),
            f"{one['examples']:,}",
            f"{one['mean']:.3f}",
            f"{one['interval'][0]:.3f} to {one['interval'][1]:.3f}",
            str(one["errors"]),
            f"{one['tokens']:,}",
            "-" if one["cost_usd"] is None else f"${one['cost_usd']:.4f}",
            "-" if one["p50_s"] is None else f"{one['p50_s']:.2f} s",
            "-" if one["p95_s"] is None else f"{one['p95_s']:.2f} s",
        )
        for one in found["results"]
    ]
    text = "\n".join([table(titles, rows), *_failures(found)])
    if (compared := found.get("comparison")) is None:
        return text
    low, high = compared["interval"]
    verdict = "better" if compared["mean"] > 0 else "worse"
    said = verdict if compared["shown"] else "not shown to differ"
    return (
        f"{text}\n{compared['of']} against {compared['to']}: {compared['mean']:+.3f} ({low:+.3f} to {high:+.3f}), "
        f"better on {compared['better']}, worse on {compared['worse']}, equal on {compared['equal']} of "
        f"{compared['pairs']} examples; p = {compared['p']:.3f}: {said}"
    )


def _failures(found: dict[str, Any]) -> Iterator[str]:
    for one in found["results"]:
        for reason, examples in one["reasons"].items():
            yield f"{one['candidate']}: {examples:,} failed: {reason}"
        if more := one["errors"] - sum(one["reasons"].values()):
            yield f"{one['candidate']}: {more:,} failed otherwise: --out writes why for each"


class _Wanted:
    """What one run of the command is about."""

    def __init__(
        self,
        program: str,
        data: Path,
        inputs: str | None,
        limit: int | None,
        candidates: Sequence[Candidate],
        metric: Metric,
        concurrency: int,
        timeout_s: float,
    ) -> None:
        self.program, self.data, self.limit = program, data, limit
        self.inputs = [name.strip() for name in inputs.split(",")] if inputs is not None else None
        self.candidates, self.metric = candidates, metric
        self.concurrency, self.timeout_s = concurrency, timeout_s

    async def examples(self, pool: RemotePool) -> list[Example]:
        names = self.inputs
        if names is None:
            names = input_names((await pool.run(GetProgramInfo(self.program))).value)
            if not names:
                raise InvalidRequest(
                    f"{self.program} does not say what its inputs are: name them with --inputs"
                )
        return read_examples(self.data, names, self.limit)


def _run(
    connect: Callable[[], RemotePool], wanted: _Wanted, out: Path | None, output: Output
) -> tuple[list[ScoredRow], bool]:
    """All rows, and whether that is all of them: Ctrl-C ends it early."""
    rows: list[ScoredRow] = []

    async def run() -> bool:
        async with connect() as pool:
            examples = await wanted.examples(pool)
            total = len(examples) * len(wanted.candidates)
            with _rows_to(out) as write, _progress(output, wanted.program, total) as advance:

                def done(row: ScoredRow) -> None:
                    rows.append(row)
                    write(row)
                    advance()

                try:
                    await evaluate(
                        pool,
                        wanted.program,
                        wanted.candidates,
                        examples,
                        wanted.metric,
                        concurrency=wanted.concurrency,
                        timeout_s=wanted.timeout_s,
                        done=done,
                    )
                except asyncio.CancelledError:
                    return False
        return True

    return rows, asyncio.run(run())


@contextmanager
def _rows_to(file: Path | None) -> Iterator[Callable[[ScoredRow], None]]:
    if file is None:
        yield lambda row: None
        return
    try:
        # Inputs and answers: for nobody else on this machine.
        lines = open(file, "w", encoding="utf-8", opener=open_descriptor)  # noqa: SIM115
    except OSError as failed:
        raise InvalidRequest(f"cannot write {file}: {failed.strerror}") from None
    with lines:

        def write(row: ScoredRow) -> None:
            lines.write(jsonlib.dumps(row._asdict(), ensure_ascii=False) + "\n")
            lines.flush()

        yield write


@contextmanager
def _progress(output: Output, title: str, total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    if output.as_json or not console.is_terminal:
        yield lambda: None
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda: bars.advance(task)


def _state_of(file: Path) -> dict[str, JSON]:
    body = program_of(file)
    state = body.get("state")
    if not isinstance(state, dict):
        raise InvalidRequest(f"{file} holds no state that DSPy's save() wrote")
    return state


def _shown(one: Summary) -> dict[str, Any]:
    return {**one._asdict(), "interval": list(one.interval)}


def _compared(found: Difference) -> dict[str, Any]:
    return {**found._asdict(), "interval": list(found.interval), "shown": found.shown}
