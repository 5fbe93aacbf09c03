"""Loads that no constant of the policy was chosen on, and who is dominated on them.

Each shape draws its own scale from the seed, so that two seeds are two different loads and not one load twice.
`python -m benchmarks.sizing --held-out N` runs every shape with N seeds from `REPORT_SEED` on. Whoever changes
the policy looks at seeds from 1 on (`--first-seed 1`) and reports the others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Any

from dspool.cli.load_trace import Workload

REPORT_SEED = 1001
SPAN_S = 900.0

Draw = random.Random
Arrivals = Iterable[float]


def held_out(seeds: Iterable[int], *, span_s: float = SPAN_S, service_s: float = 0.5) -> Iterator[Workload]:
    """Every shape with every seed; mean service time about `service_s` but where the shape says otherwise."""
    for seed in seeds:
        for name, make in SHAPES.items():
            draw = random.Random(f"{name} {seed}")
            both = sorted(
                (at, service)
                for at, service in make(draw, span_s, service_s)
                if 0 <= at < span_s and service > 0
            )
            note = (make.__doc__ or "").strip().splitlines()[0]
            yield Workload(f"{name} {seed}", [a for a, _ in both], [s for _, s in both], note)


# --- the shapes ------------------------------------------------------------------------------------

Operations = Iterator[tuple[float, float]]


def bursts(draw: Draw, span_s: float, service_s: float) -> Operations:
    """Bursts out of silence at random times, of lognormal size, each over within some seconds."""
    every_s, size = draw.uniform(10, 60), draw.uniform(10, 50)
    for at in _poisson(draw, 1 / every_s, span_s):
        width = draw.uniform(0.2, 4.0)
        for _ in range(1 + int(size * draw.lognormvariate(0, 0.8))):
            yield at + draw.random() * width, _exponential(draw, service_s)


def trains(draw: Draw, span_s: float, service_s: float) -> Operations:
    """Trains of requests close together, of Pareto length, several at once; long gaps between (as tools of coders)."""
    rate, gap_s, shape = draw.uniform(0.02, 0.2), draw.uniform(0.03, 0.3), draw.uniform(1.2, 2.0)
    for at in _poisson(draw, rate, span_s):
        length, t = min(1000, int(5 * draw.paretovariate(shape))), at
        for _ in range(length):
            t += draw.expovariate(1 / gap_s)
            yield t, 0.2 * service_s + _exponential(draw, 0.8 * service_s)


def ramps(draw: Draw, span_s: float, service_s: float) -> Operations:
    """A saw: the rate climbs for some minutes and falls back at once."""
    low, high, period_s = draw.uniform(1, 8), draw.uniform(20, 60), draw.uniform(60, 400)

    def rates(t: float) -> float:
        return low + (high - low) * ((t / period_s) % 1.0)

    yield from _varying(draw, rates, high, span_s, service_s)


def week(draw: Draw, span_s: float, service_s: float) -> Operations:
    """Seven days with a quiet end, each with noise of its own that lasts."""
    day_s, top, noise, level = span_s / 7, draw.uniform(20, 60), draw.uniform(0.1, 0.5), 0.0
    levels = [level := 0.8 * level + noise * draw.gauss(0, 1) for _ in range(int(span_s / 5) + 1)]

    def rate(t: float) -> float:
        quiet = 0.35 if t / day_s >= 5 else 1.0
        return top * quiet * (0.55 - 0.45 * math.cos(2 * math.pi * t / day_s)) * math.exp(levels[int(t / 5)])

    yield from _varying(draw, rate, 3 * top, span_s, service_s)


def heavy_tailed(draw: Draw, span_s: float, service_s: float) -> Operations:
    """Poisson arrivals whose service times are lognormal: most are short, some take ten times as long."""
    rate, sigma = draw.uniform(5, 40), draw.uniform(1.2, 1.8)
    for at in _poisson(draw, rate, span_s):
        yield at, min(60.0, service_s * draw.lognormvariate(-sigma * sigma / 2, sigma))


def modulated(draw: Draw, span_s: float, service_s: float) -> Operations:
    """Poisson arrivals that jump between four random rates at random times."""
    rates = [draw.uniform(0.2, 2), draw.uniform(2, 10), draw.uniform(10, 30), draw.uniform(30, 80)]
    stay_s = [draw.uniform(5, 90) for _ in rates]
    t, level = 0.0, 0
    while t < span_s:
        end = t + draw.expovariate(1 / stay_s[level])
        for at in _poisson(draw, rates[level], end - t):
            yield t + at, _exponential(draw, service_s)
        t, level = end, draw.choice([i for i in range(len(rates)) if i != level])


def crowds(draw: Draw, span_s: float, service_s: float) -> Operations:
    """A quiet service that is suddenly known: ten times the load, and that fades over a minute or more."""
    quiet, height, fades_s = draw.uniform(1, 5), draw.uniform(20, 60), draw.uniform(15, 120)
    starts = list(_poisson(draw, 1 / 250, span_s)) or [span_s / 3]

    def rates(t: float) -> float:
        return quiet + sum(height * math.exp((s - t) / fades_s) for s in starts if s <= t)

    yield from _varying(draw, rates, quiet + height * len(starts), span_s, service_s)


def clockwork(draw: Draw, span_s: float, service_s: float) -> Operations:
    """Batches at fixed times, as from a timetable, above a steady load."""
    period_s, size, steady = draw.choice([15, 30, 60, 120]), draw.randint(15, 80), draw.uniform(1, 10)
    for number in range(int(span_s / period_s) + 1):
        for _ in range(size):
            yield number * period_s + abs(draw.gauss(0, 0.2)), _exponential(draw, service_s)
    for at in _poisson(draw, steady, span_s):
        yield at, _exponential(draw, service_s)


def mixture(draw: Draw, span_s: float, service_s: float) -> Operations:
    """A steady load, bursts and trains together."""
    for at in _poisson(draw, draw.uniform(3, 20), span_s):
        yield at, _exponential(draw, service_s)
    yield from bursts(draw, span_s, service_s)
    yield from trains(draw, span_s, service_s)


def visitors(draw: Draw, span_s: float, service_s: float) -> Operations:
    """People who come at random, ask some questions with time to think between, and go."""
    for at in _poisson(draw, draw.uniform(0.3, 2.0), span_s):
        t = at
        while t < span_s:
            yield t, 0.3 * service_s + _exponential(draw, 0.7 * service_s)
            t += draw.lognormvariate(1.2, 0.8)
            if draw.random() < 0.12:
                break


def drifting(draw: Draw, span_s: float, service_s: float) -> Operations:
    """A rate that wanders: its logarithm is a random walk that is drawn back to its middle."""
    middle, level, top = draw.uniform(5, 30), 0.0, 100.0
    spread = draw.uniform(0.1, 0.35)
    levels = [level := 0.97 * level + spread * draw.gauss(0, 1) for _ in range(int(span_s / 2) + 1)]

    def rates(t: float) -> float:
        return min(top, middle * math.exp(levels[int(t / 2)]))

    yield from _varying(draw, rates, top, span_s, service_s)


def short_ones(draw: Draw, span_s: float, service_s: float) -> Operations:
    """Many operations of a tenth of the service time, with bursts of a second."""
    rate = draw.uniform(30, 120)
    for at in _poisson(draw, rate, span_s):
        yield at, _exponential(draw, service_s / 10)
    for at in _poisson(draw, 1 / 40, span_s):
        for _ in range(int(draw.uniform(0.5, 3) * rate)):
            yield at + draw.random(), _exponential(draw, service_s / 10)


def long_ones(draw: Draw, span_s: float, service_s: float) -> Operations:
    """Few operations of six times the service time that come in groups."""
    for at in _poisson(draw, draw.uniform(0.3, 1.5), span_s):
        for _ in range(min(30, int(draw.paretovariate(1.5)))):
            yield at + draw.random() * 2, 6 * service_s * draw.lognormvariate(-0.32, 0.8)


def rare(draw: Draw, span_s: float, service_s: float) -> Operations:
    """One operation now and then, a handful at most."""
    for at in _poisson(draw, draw.uniform(0.02, 0.2), span_s):
        for _ in range(draw.choice([1, 1, 1, 2, 12])):
            yield at, _exponential(draw, service_s)


SHAPES: dict[str, Callable[[Draw, float, float], Operations]] = {
    make.__name__: make
    for make in (
        bursts, trains, ramps, week, heavy_tailed, modulated, crowds, clockwork, mixture, visitors, drifting,
        short_ones, long_ones, rare,
    )
}  # fmt: skip


def _exponential(draw: Draw, mean_s: float) -> float:
    return draw.expovariate(1 / mean_s)


def _poisson(draw: Draw, rate: float, span_s: float) -> Iterator[float]:
    t = draw.expovariate(rate)
    while t < span_s:
        yield t
        t += draw.expovariate(rate)


def _varying(
    draw: Draw, rate: Callable[[float], float], top: float, span_s: float, service_s: float
) -> Operations:
    for at in _poisson(draw, top, span_s):
        if draw.random() * top < rate(at):
            yield at, _exponential(draw, service_s)


# --- who is dominated ------------------------------------------------------------------------------

SCORES = ("waits_over_pct", "worker_seconds_vs_oracle")


def dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """`one` is in neither score worse than `other`, and better in one of them."""
    pairs = [(one[score], other[score]) for score in SCORES]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def dominators(rows: Sequence[dict[str, Any]], policy: str = "dspool") -> list[dict[str, Any]]:
    """The rows that dominate `policy` on the same workload. The oracle knows the future and does not count."""
    mine = {row["workload"]: row for row in rows if row["policy"] == policy}
    rivals = (row for row in rows if row["policy"] not in (policy, "oracle") and row["workload"] in mine)
    return [row for row in rivals if dominates(row, mine[row["workload"]])]


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each policy: on how many workloads another dominates it, how many keep 1 %, and median and worst scores."""
    found = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == policy]
        late, ratio = ([row[score] for row in mine] for score in SCORES)
        found.append(
            {
                "policy": policy,
                "workloads": len(mine),
                "dominated_on": len({row["workload"] for row in dominators(rows, policy)}),
                "under_1_pct_on": sum(share < 1.0 for share in late),
                "median_waits_over_pct": round(median(late), 3),
                "worst_waits_over_pct": max(late),
                "median_vs_oracle": round(median(ratio), 3),
                "worst_vs_oracle": max(ratio),
            }
        )
    return found
