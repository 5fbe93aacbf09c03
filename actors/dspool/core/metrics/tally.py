"""Operations added up: how many ended how, how long they ran and waited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct, field

from dspool.core.metrics.histogram import Histogram
from dspool.messages import VersionNumbers
from dspool.messages.versioned_pickle import Message

OUTCOMES: Final = ("ok", "error", "timeout", "client_error", "rejected", "cancelled")
"""How an operation can end, in the order of all outcome lists here. The first three are *served*: the pool accepted
the operation and answers for it. Latency, wait and error rate are about served ones."""
SERVED: Final = 3
OK, ERROR, TIMEOUT, CLIENT_ERROR, REJECTED, CANCELLED = range(6)
INDEX_OF: Final = {name: index for index, name in enumerate(OUTCOMES)}

OTHER: Final = "(other)"
"""The key that counts everything beyond the bound on keys."""
UNKNOWN: Final = "(unknown)"
"""The key that counts operations of pool programs which do not exist: names that callers make up become no figures,
events or spans."""
MAX_PROGRAMS: Final = 64
MAX_MODELS: Final = 32
"""Models with a cost of their own, by program."""
MAX_CODES: Final = 40
"""Error codes by program: more than `dspool.errors` has."""


def no_outcomes() -> list[int]:
    return [0] * len(OUTCOMES)


class Tally(Message, Struct, array_like=True):
    """Operations added up. Each ended operation is in `outcomes` exactly once."""

    arrivals: int = 0
    outcomes: list[int] = field(default_factory=no_outcomes)
    latency: Histogram = field(default_factory=Histogram)
    """Seconds from submit to end of served operations (in a worker's tally: from start to end)."""
    wait: Histogram = field(default_factory=Histogram)
    """Seconds from submit to start of served operations."""
    run_s: float = 0.0
    """Sum of the run times of ended operations."""
    input_tokens: int = 0
    output_tokens: int = 0
    retries: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Operations that did not end ok, by error code."""
    cached_tokens: int = 0
    """Of the input: what the model's provider had in its prompt cache."""
    reasoning_tokens: int = 0
    """Of the output: what the model thought."""
    costs_usd: dict[str, float] = field(default_factory=dict)
    """What the tokens cost, by model; empty without `prices`."""

    def add(self, other: Tally) -> None:
        """Add all of `other`, as if its operations had been counted here."""
        self.arrivals += other.arrivals
        outcomes = self.outcomes
        for index, number in enumerate(other.outcomes):
            if number:
                outcomes[index] += number
        self.latency.merge(other.latency)
        self.wait.merge(other.wait)
        self.run_s += other.run_s
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.retries += other.retries
        for code, number in other.errors.items():
            count_code(self.errors, code, number)
        self.cached_tokens += other.cached_tokens
        self.reasoning_tokens += other.reasoning_tokens
        for model, cost in other.costs_usd.items():
            _add_cost(self.costs_usd, model, cost)

    @property
    def cost_usd(self) -> float:
        return sum(self.costs_usd.values())

    @property
    def ended(self) -> int:
        return sum(self.outcomes)

    @property
    def served(self) -> int:
        return sum(self.outcomes[:SERVED])

    @property
    def failed(self) -> int:
        """Served, but with an error or a timeout."""
        return self.outcomes[ERROR] + self.outcomes[TIMEOUT]

    @property
    def error_rate(self) -> float:
        """Failed / served; client errors, refusals and cancellations are in neither. 0.0 when nothing was served."""
        served = self.served
        return self.failed / served if served else 0.0


def count_code(errors: dict[str, int], code: str, number: int = 1) -> None:
    """Count an error code, under `OTHER` when there are too many different ones."""
    if code not in errors and len(errors) >= MAX_CODES:
        code = OTHER
    errors[code] = errors.get(code, 0) + number


def add_usage(tally: Tally, usage: Mapping[str, Mapping[str, int | float]]) -> None:
    """Add the tokens and costs of one operation: `Finished.usage`, by model."""
    for model, tokens in usage.items():
        tally.input_tokens += int(tokens.get("prompt_tokens") or tokens.get("input_tokens") or 0)
        tally.output_tokens += int(tokens.get("completion_tokens") or tokens.get("output_tokens") or 0)
        tally.cached_tokens += int(tokens.get("cached_tokens") or 0)
        tally.reasoning_tokens += int(tokens.get("reasoning_tokens") or 0)
        if cost := tokens.get("cost_usd"):
            _add_cost(tally.costs_usd, model, cost)


def _add_cost(costs: dict[str, float], model: str, cost: float) -> None:
    if model not in costs and len(costs) >= MAX_MODELS:
        model = OTHER
    costs[model] = costs.get(model, 0.0) + cost


VERSIONS_KEPT: Final = 4
"""The newest of each program: more than a roll-out compares."""
_COUNTED: Final = frozenset({"ok", "error", "timeout", "client_error"})
_LATE: Final = 0.9
"""A caller that left after this share of its deadline left because no answer came."""


class VersionBook:
    """Adds up by program and version. Costs under a microsecond an operation; bounded by the programs deployed."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, list[float]]] = {}

    def ended(self, program: str, version: int, outcome: str, run_s: float, timeout_s: float) -> None:
        """An operation of this version ended."""
        if outcome not in _COUNTED:
            # Refused before it ran, or cancelled: says nothing, unless it had run out of time.
            if outcome != "cancelled" or run_s < _LATE * timeout_s:
                return
            outcome = "timeout"
        row = self._row(program, version)
        row[0] += 1
        row[1] += outcome != "ok"
        row[2] += run_s

    def numbers(self, program: str, running: Iterable[tuple[int, float]]) -> dict[int, VersionNumbers]:
        """By version; `running` has the version of each operation that runs now, and its run time so far."""
        running_sums: dict[int, list[float]] = {}
        for version, ran_s in running:
            sums = running_sums.setdefault(version, [0, 0.0])
            sums[0] += 1
            sums[1] += ran_s
        rows = self._rows.get(program, {})
        numbers = {}
        for version in rows.keys() | running_sums.keys():
            operations, errors, run_s = rows.get(version, (0, 0, 0.0))
            count, ran_s = running_sums.get(version, (0, 0.0))
            numbers[version] = VersionNumbers(
                int(operations),
                int(errors),
                run_s / operations if operations else 0.0,
                int(count),
                ran_s / count if count else 0.0,
            )
        return numbers

    def _row(self, program: str, version: int) -> list[float]:
        rows = self._rows.setdefault(program, {})
        row = rows.get(version)
        if row is None:
            row = rows[version] = [0, 0, 0.0]
            if len(rows) > VERSIONS_KEPT:
                del rows[next(iter(rows))]
        return row
