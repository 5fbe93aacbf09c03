"""An evaluation under way: every example on the pool, once for each candidate, many at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from dspool.cli.evaluation.examples import Example, Metric
from dspool.cli.evaluation.statistics import MeanInterval, mean_interval, quantile
from dspool.errors import PoolError
from dspool.messages import JSON, Result
from dspool.remote import RemotePool

COPY = "candidate"
_REASONS = 3
"""What a session calls the copy that it runs."""


class Candidate(NamedTuple):
    """What is evaluated: a pool program as it is served now, an earlier version of it, or another state."""

    name: str
    version: int = 0
    state: dict[str, JSON] | None = None

    @property
    def is_served(self) -> bool:
        return not self.version and self.state is None


class ScoredRow(NamedTuple):
    """One example with one candidate. `score` is None if there is none; `error` says why."""

    candidate: str
    line: int
    input: dict[str, JSON]
    output: dict[str, JSON] | None
    score: float | None
    tokens: int
    cost_usd: float | None
    run_s: float | None
    operation_id: str | None
    error: str | None


class Summary(NamedTuple):
    """What the rows of one candidate come to."""

    candidate: str
    examples: int
    mean: float
    """Of the scores; what failed counts as 0, as in `dspy.Evaluate`."""
    interval: MeanInterval
    errors: int
    reasons: dict[str, int]
    """How many examples failed for this reason, the commonest first; only the first few."""
    tokens: int
    cost_usd: float | None
    p50_s: float | None
    p95_s: float | None


Ask = Callable[[dict[str, JSON]], Awaitable[Result]]


async def evaluate(
    pool: RemotePool,
    program: str,
    candidates: Sequence[Candidate],
    examples: Sequence[Example],
    metric: Metric,
    *,
    concurrency: int,
    timeout_s: float | None,
    done: Callable[[ScoredRow], None],
) -> None:
    """Ask each candidate for each example, `done(row)` after each. Two candidates get an example one after the other.

    Raises:
        PoolError: a candidate cannot be had; what happens to single examples is in their rows.
    """
    async with AsyncExitStack() as stack:
        callers = min(concurrency, len(examples))
        lines = [
            await stack.enter_async_context(_askers(pool, program, candidate, callers, timeout_s))
            for candidate in candidates
        ]
        left = iter(examples)

        async def caller(number: int) -> None:
            for example in left:
                for candidate, askers in zip(candidates, lines, strict=True):
                    done(await _row(candidate.name, example, askers[number], metric))

        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(caller(number))


def summary(candidate: str, rows: Sequence[ScoredRow]) -> Summary:
    """Needs at least one row."""
    times = [row.run_s for row in rows if row.run_s is not None]
    costs = [row.cost_usd for row in rows if row.cost_usd is not None]
    scores = [row.score or 0.0 for row in rows]
    failures = Counter(row.error for row in rows if row.error is not None)
    return Summary(
        candidate,
        len(rows),
        math.fsum(scores) / len(rows),
        mean_interval(scores),
        failures.total(),
        dict(failures.most_common(_REASONS)),
        sum(row.tokens for row in rows),
        math.fsum(costs) if costs else None,
        quantile(times, 0.5) if times else None,
        quantile(times, 0.95) if times else None,
    )


@asynccontextmanager
async def _askers(
    pool: RemotePool, program: str, candidate: Candidate, callers: int, timeout_s: float | None
) -> AsyncIterator[list[Ask]]:
    """Something to ask for each caller. What is not served is a program of sessions made for this, which end with it:
    a session runs one operation at a time, and several are on several workers."""
    if candidate.is_served:

        async def ask(inputs: dict[str, JSON]) -> Result:
            return await pool.execute(program, timeout_s=timeout_s, **inputs)

        yield [ask] * callers
        return
    run = uuid.uuid4().hex[:12]
    sessions = [pool.session(f"eval-{run}-{number}") for number in range(callers)]

    def asking(number: int) -> Ask:
        async def ask(inputs: dict[str, JSON]) -> Result:
            return await sessions[number].execute(COPY, timeout_s=timeout_s, **inputs)

        return ask

    try:
        for session in sessions:
            await session.create_program(
                COPY, copy_of=program, version=candidate.version, state=candidate.state
            )
        yield [asking(number) for number in range(callers)]
    finally:
        # Shielded: Ctrl-C must not leave them to expire.
        await asyncio.shield(asyncio.gather(*(_end(session) for session in sessions)))


async def _end(session: Any) -> None:
    with contextlib.suppress(PoolError):
        await session.end()


async def _row(candidate: str, example: Example, ask: Ask, metric: Metric) -> ScoredRow:
    try:
        result = await ask(example.inputs)
    except PoolError as failed:
        operation = failed.details.get("operation_id")
        return ScoredRow(
            candidate,
            example.line,
            example.inputs,
            None,
            None,
            0,
            None,
            None,
            None if operation is None else str(operation),
            f"{failed.code}: {failed.message}",
        )
    # Here, as it imports DSPy: the other commands start without.
    from dspool.programs.metrics import score_of

    score, error = None, None
    try:
        # In a thread: it may ask a model itself.
        score = await asyncio.to_thread(score_of, metric, example.fields, example.inputs, result.outputs)
        if not math.isfinite(score):
            score, error = None, f"the metric gave {score}"
    except Exception as raised:
        error = f"the metric raised {type(raised).__name__}: {raised}"
    return ScoredRow(
        candidate,
        example.line,
        example.inputs,
        result.outputs,
        score,
        sum(int(counts.get("total_tokens", 0)) for counts in result.usage.values()),
        _cost(result.usage),
        result.run_s,
        result.operation_id,
        error,
    )


def _cost(usage: dict[str, dict[str, Any]]) -> float | None:
    known = [float(counts["cost_usd"]) for counts in usage.values() if counts.get("cost_usd") is not None]
    return math.fsum(known) if known else None
