"""Synthetic workloads. All reproducible: the seed is in the code. `dspool.cli.load_trace` reads traces from files."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from dspool.cli.load_trace import Workload


def steady(span_s: float = 3600.0, rate: float = 20.0, service_s: float = 0.5, seed: int = 1) -> Workload:
    return _varying("steady", span_s, lambda _: rate, rate, service_s, seed, f"Poisson, {rate:g}/s")


def step(span_s: float = 3600.0, service_s: float = 0.5, seed: int = 2) -> Workload:
    """Low, then four times as much, then low again, a third each."""
    return _varying(
        "step", span_s, lambda t: 40.0 if span_s / 3 <= t < 2 * span_s / 3 else 10.0, 40.0, service_s, seed,
        "Poisson, 10/s, 40/s, 10/s",
    )  # fmt: skip


def diurnal(span_s: float = 3600.0, service_s: float = 0.5, seed: int = 3) -> Workload:
    """A day in an hour: two periods of a sine from 4/s to 44/s."""
    return _varying(
        "diurnal", span_s, lambda t: 24 - 20 * math.cos(4 * math.pi * t / span_s), 44.0, service_s, seed,
        "Poisson, a sine of 4/s to 44/s, two periods",
    )  # fmt: skip


def on_off(span_s: float = 3600.0, service_s: float = 0.5, seed: int = 4) -> Workload:
    """60 s at 40/s, 60 s at 2/s, and so on."""
    return _varying(
        "on_off", span_s, lambda t: 40.0 if int(t / 60) % 2 == 0 else 2.0, 40.0, service_s, seed,
        "Poisson, 60 s at 40/s, 60 s at 2/s",
    )  # fmt: skip


def spike(span_s: float = 600.0, service_s: float = 0.05, seed: int = 5) -> Workload:
    """A quiet pool gets 50 short operations at once, once: two workers of 8 slots drain them within 0.2 s."""
    draw = random.Random(seed)
    quiet = _varying("spike", span_s, lambda _: 4.0, 4.0, service_s, seed, "")
    both = sorted(
        [*zip(quiet.arrivals, quiet.services, strict=True)]
        + [(span_s / 2, draw.expovariate(1 / service_s)) for _ in range(50)]
    )
    return Workload(
        "spike", [a for a, _ in both], [s for _, s in both], "Poisson 4/s, and 50 at once in the middle"
    )


def _varying(
    name: str,
    span_s: float,
    rate: Callable[[float], float],
    top: float,
    service_s: float,
    seed: int,
    note: str,
) -> Workload:
    """A Poisson process of varying rate (by thinning), exponential service times."""
    draw = random.Random(seed)
    arrivals, services, t = [], [], 0.0
    while (t := t + draw.expovariate(top)) < span_s:
        if draw.random() * top < rate(t):
            arrivals.append(t)
            services.append(draw.expovariate(1 / service_s))
    return Workload(name, arrivals, services, f"{note}, service times exponential, mean {service_s:g} s")


def mmpp(
    span_s: float = 3600.0, rates: tuple[float, ...] = (1.0, 15.0, 60.0), stay_s: tuple[float, ...] = (60.0,
    30.0, 10.0), service_s: float = 0.5, seed: int = 6,
) -> Workload:  # fmt: skip
    """Bursts without a pattern: a Markov-modulated Poisson process that jumps between `rates`, staying
    `stay_s` on average."""
    draw = random.Random(seed)
    arrivals, services, t, level, until = [], [], 0.0, 0, 0.0
    until = draw.expovariate(1 / stay_s[0])
    while t < span_s:
        gap = draw.expovariate(rates[level])
        if t + gap > until:
            t = until
            level = draw.choice([i for i in range(len(rates)) if i != level])
            until = t + draw.expovariate(1 / stay_s[level])
            continue
        t += gap
        if t < span_s:
            arrivals.append(t)
            services.append(draw.expovariate(1 / service_s))
    return Workload("mmpp", arrivals, services, f"Markov-modulated Poisson, rates {rates}/s")


def pareto_on_off(
    span_s: float = 3600.0,
    sources: int = 20,
    rate: float = 4.0,
    shape: float = 1.4,
    service_s: float = 0.5,
    seed: int = 7,
) -> Workload:
    """Self-similar traffic: `sources` that are on and off for Pareto times (Willinger et al., 1997)."""
    draw = random.Random(seed)
    both: list[tuple[float, float]] = []
    for _ in range(sources):
        t = -draw.random() * 60
        on = draw.random() < 0.3
        while t < span_s:
            length = (4.0 if on else 10.0) * (draw.paretovariate(shape))
            if on:
                at = t
                while (at := at + draw.expovariate(rate)) < min(t + length, span_s):
                    if at > 0:
                        both.append((at, draw.expovariate(1 / service_s)))
            t += length
            on = not on
    both.sort()
    return Workload(
        "pareto",
        [a for a, _ in both],
        [s for _, s in both],
        f"{sources} Pareto on/off sources, {rate:g}/s each",
    )
