"""Workloads: traces read from files, and synthetic ones. All reproducible: the seed is in the code."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Workload:
    """Operations: when they come (seconds from 0, ascending) and how long each holds a slot (seconds)."""

    name: str
    arrivals: list[float]
    services: list[float]
    note: str = ""

    @property
    def span_s(self) -> float:
        return self.arrivals[-1] if self.arrivals else 0.0


class TraceError(ValueError):
    """The file is not a trace that can be read; says where and why."""


# --- traces ----------------------------------------------------------------------------------------

_TIME = "timestamp"
_TOKENS = (
    "generatedtokens",
    "generated_tokens",
    "outputtokens",
    "output_tokens",
    "responsetokens",
    "completiontokens",
)


def read_trace(
    path: Path, *, compress: float = 1.0, service_mean_s: float = 0.5, seed: int = 1, name: str | None = None
) -> Workload:
    """The operations of a CSV or JSONL file, with time divided by `compress`.

    The column `timestamp` (any case) may hold ISO times (any number of fraction digits), seconds or
    milliseconds; `note` says which was taken. Where there is a column of generated tokens, service times
    are proportional to a constant share (time to first token: a fifth of the mean) plus the tokens, with
    mean `service_mean_s`; otherwise they are drawn from an exponential distribution of that mean.

    Raises:
        TraceError: no rows, no timestamp column, a value that is no time; with file, line and value.
    """
    if not compress > 0:
        raise TraceError(f"compress must be more than 0, got {compress}")
    rows = list(_rows(path))
    if len(rows) < 2:
        raise TraceError(f"{path}: need at least 2 rows, found {len(rows)}")
    times, unit = _times(path, [row[1] for row in rows], [row[0] for row in rows])
    order = sorted(range(len(times)), key=times.__getitem__)
    first = times[order[0]]
    arrivals = [(times[i] - first) / compress for i in order]
    if arrivals[-1] <= 0:
        raise TraceError(f"{path}: all timestamps are equal")
    tokens = [row[2] for row in rows]
    if all(t is not None for t in tokens):
        mean = sum(t for t in tokens if t is not None) / len(tokens)
        services = [
            service_mean_s * (0.2 + 0.8 * (tokens[i] or 0.0) / mean) if mean else service_mean_s
            for i in order
        ]
        scaled = "service times scaled by generated tokens"
    else:
        draw = random.Random(seed)
        services = [draw.expovariate(1 / service_mean_s) for _ in order]
        scaled = "service times exponential"
    note = f"timestamps read as {unit}, compressed x{compress:g}, {scaled}, mean {service_mean_s:g} s"
    return Workload(name or path.stem, arrivals, services, note)


def _rows(path: Path) -> Iterator[tuple[int, Any, float | None]]:
    """(line, timestamp, tokens or None) of each record."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.read(1)
        while head and head.isspace():
            head = file.read(1)
        file.seek(0)
        records: Iterable[tuple[int, dict[str, Any]]]
        if head in ("{", "["):
            records = _json_records(path, file)
        else:
            reader = csv.DictReader(file)
            records = ((reader.line_num, row) for row in reader)
        for line, record in records:
            low = {str(k).strip().lower(): v for k, v in record.items() if k is not None}
            if _TIME not in low:
                raise TraceError(f"{path}: line {line} has no column 'timestamp', only {sorted(low)[:8]}")
            tokens = next((low[k] for k in _TOKENS if low.get(k) not in (None, "")), None)
            try:
                count = None if tokens is None else float(tokens)
            except (TypeError, ValueError):
                raise TraceError(f"{path}: line {line}: {tokens!r} is not a number of tokens") from None
            if count is not None and not (math.isfinite(count) and count >= 0):
                raise TraceError(f"{path}: line {line}: {tokens!r} is not a number of tokens")
            yield line, low[_TIME], count


def _json_records(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            raise TraceError(f"{path}: line {number} is not JSON") from None
        if not isinstance(record, dict):
            raise TraceError(f"{path}: line {number} is not a JSON object")
        yield number, record


def _times(path: Path, values: list[Any], lines: list[int]) -> tuple[list[float], str]:
    """All timestamps in seconds, and what they were read as: "ISO time", "seconds" or "milliseconds"."""
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError):
        return [_iso(path, line, v) for v, line in zip(values, lines, strict=True)], "ISO time"
    for number, line in zip(numbers, lines, strict=True):
        if not math.isfinite(number):
            raise TraceError(f"{path}: line {line}: {number!r} is not a time")
    # Since the epoch, seconds have 10 digits and milliseconds 13. Relative times: whole numbers whose
    # span would be more than 30 days as seconds can only be milliseconds.
    span = max(numbers) - min(numbers)
    if max(numbers) > 1e11 or (all(n == int(n) for n in numbers) and span > 30 * 86400):
        return [n / 1000.0 for n in numbers], "milliseconds"
    return numbers, "seconds"


def _iso(path: Path, line: int, value: Any) -> float:
    """ISO time with any number of fraction digits (Python 3.11 takes 7 digits by cutting them; here none is
    lost)."""
    text = str(value).strip()
    whole, dot, rest = text.partition(".")
    digits = "".join(itertools.takewhile(str.isdigit, rest))
    zone = rest[len(digits) :]
    try:
        moment = datetime.fromisoformat((whole + zone).strip())
    except ValueError:
        raise TraceError(
            f"{path}: line {line}: {value!r} is neither ISO time, seconds nor milliseconds"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() + (float(f"0.{digits}") if dot and digits else 0.0)


# --- synthetic -------------------------------------------------------------------------------------


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
