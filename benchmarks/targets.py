"""The seed's eight target metrics, measured: met or missed, on which work, with the spread of the repetitions.

    python -m benchmarks.targets [--json] [--quick] [--only METRIC,...]

The last line is one JSON object. Its `targets` are the eight; `also` are figures beside them. Latency and
throughput are those of the pool on the engine in this process: a model's own time is not the pool's.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.common import arguments, finish, header, percentile, ray_cluster
from benchmarks.target_metrics import served, utilization

PARTS = ("served", "cpu", "memory", "recovery", "utilization")
RATE = 1000.0
"""Operations a second at which latency is taken: the seed's throughput target itself."""
MODEL_S = 0.2
SLOTS = 8


class Findings:
    def __init__(self) -> None:
        self.targets: list[dict[str, Any]] = []
        self.also: list[dict[str, Any]] = []
        self.ended: list[tuple[int, int]] = []
        """(failed, counted) operations of each part."""

    def target(
        self,
        name: str,
        target: str,
        values: list[float],
        unit: str,
        met: Callable[[float], bool],
        work: str,
        samples: int,
        *,
        value: float | None = None,
    ) -> None:
        """`values` are those of the repetitions; the value is their median unless another is given."""
        self._add(self.targets, name, target, values, unit, met, work, samples, value)

    def beside(
        self,
        name: str,
        target: str | None,
        values: list[float],
        unit: str,
        met: Callable[[float], bool] | None,
        work: str,
        samples: int,
    ) -> None:
        self._add(self.also, name, target, values, unit, met, work, samples, None)

    def _add(
        self,
        rows: list[dict[str, Any]],
        name: str,
        target: str | None,
        values: list[float],
        unit: str,
        met: Callable[[float], bool] | None,
        work: str,
        samples: int,
        value: float | None,
    ) -> None:
        value = statistics.median(values) if value is None else value
        rows.append(
            {
                "name": name,
                "target": target,
                "value": round(value, 3),
                "unit": unit,
                "met": None if met is None else met(value),
                "lowest": round(min(values), 3),
                "highest": round(max(values), 3),
                "repetitions": len(values),
                "samples": samples,
                "work": work,
            }
        )
        row = rows[-1]
        word = {True: "met", False: "MISSED", None: ""}[row["met"]]
        print(
            f"  {name:28s}{value:10.2f} {unit:6s} target {target or '-':9s} {word:7s}"
            f"({row['lowest']:g} to {row['highest']:g}, {len(values)} repetitions, {samples:,} samples)\n"
            f"      {work}",
            flush=True,
        )


async def served_part(found: Findings, directory: Path, quick: bool) -> None:
    rounds, seconds = (2, 1.0) if quick else (5, 5.0)
    async with served.pool_of(directory, "t-serve", pool_size=2, slots_per_worker=64) as pool:
        rates = await served.throughput(pool, rounds, seconds)
        taken = await served.latency(pool, rounds, seconds, RATE)
        failed, counted = served.errors(pool)
    found.ended.append((failed, counted))
    count = sum(len(one.latencies) for one in taken)
    work = (
        f"one client, 2 workers, question -> answer by Predict on the engine in the worker; Poisson arrivals at "
        f"{RATE:g}/s for {seconds:g} s; from when an operation was due to its result, retries included"
    )
    p50, p99 = ([served.in_ms(one, share) for one in taken] for share in (0.50, 0.99))
    found.target("operation_latency_p50", "< 50", p50, "ms", lambda value: value < 50, work, count)
    found.target("operation_latency_p99", "< 100", p99, "ms", lambda value: value < 100, work, count)
    work = f"the same pool; 128 callers that ask again at once, {seconds:g} s a repetition after a warm-up"
    samples = round(sum(rates) * seconds)
    found.target("throughput", "> 1000", rates, "ops/s", lambda value: value > 1000, work, samples)


async def cpu_part(found: Findings, directory: Path, quick: bool) -> None:
    rounds, seconds = (2, 2.0) if quick else (5, 10.0)
    rate = 0.7 * 2 * SLOTS / MODEL_S
    with served.model_server(MODEL_S) as port:
        settings = {"pool_size": 2, "slots_per_worker": SLOTS, "model_port": port}
        async with served.pool_of(directory, "t-cpu", **settings) as pool:
            percents = await served.cpu_percent(pool, rounds, seconds, rate)
            failed, counted = served.errors(pool)
    found.ended.append((failed, counted))
    work = (
        f"2 workers of {SLOTS} slots, each operation one call of {MODEL_S * 1e3:g} ms to a model behind HTTP; "
        f"{rate:g}/s, which keeps 70 % of the slots busy; processor time of a worker's process over {seconds:g} s"
    )
    samples = round(rate * seconds * rounds)
    found.target("cpu_per_worker", "< 10", percents, "%", lambda value: value < 10, work, samples)


async def memory_part(found: Findings, directory: Path, quick: bool) -> None:
    rounds, operations, size = (2, 100, 2) if quick else (5, 1000, 8)
    settings = {"pool_size": size, "max_pool_size": size, "worker_start": "fork"}
    async with served.pool_of(directory, "t-memory", **settings) as pool:
        states = {worker.start for worker in (await pool.status()).workers}
        used = await served.memory_mb(pool, rounds, operations)
    work = (
        f"{size} workers started by {', '.join(sorted(states))} (worker_start: fork), the mean of all after "
        f"{operations} operations of each, and again after as many more"
    )
    samples = rounds * size
    found.target("memory_per_worker", "< 50", used["pss"], "MB PSS", lambda value: value < 50, work, samples)
    for kind in ("rss", "uss"):
        found.beside(f"memory_per_worker_{kind}", None, used[kind], "MB", None, work, samples)


async def recovery_part(found: Findings, directory: Path, quick: bool) -> None:
    from benchmarks.recovery import CALLERS, phase

    groups, kills = (1, 3) if quick else (5, 8)
    seen = await phase("t-kill", 1, groups * kills, 0, directory)
    times = [1e3 * one for one in seen["recovery"]]
    medians = [statistics.median(times[turn::groups]) for turn in range(groups)]
    work = (
        f"SIGKILL of a random one of 2 workers under load from {CALLERS} callers, one warm spare; until 2 warm workers "
        f"take traffic and the client is connected to both. The value is the p99 of all kills, the spread that of "
        f"medians of {kills}"
    )
    found.target(
        "recovery_time",
        "< 500",
        medians,
        "ms",
        lambda value: value < 500,
        work,
        len(times),
        value=percentile(times, 0.99),
    )
    again = Counter(seen["failed"])
    lost = sum(count for kind, count in again.items() if kind.startswith("again"))
    work = f"operations that may be repeated, while {len(times)} workers were killed under them"
    of_all = 100 * lost / max(1, seen["done"])
    found.beside(
        "error_rate_while_killed", "< 0.1", [of_all], "%", lambda value: value < 0.1, work, seen["done"]
    )


async def utilization_part(found: Findings, directory: Path, quick: bool) -> None:
    seconds, rate = (20.0, 40.0) if quick else (180.0, 40.0)
    with served.model_server(MODEL_S) as port:
        settings = {
            "pool_size": 2,
            "min_pool_size": 1,
            "max_pool_size": 6,
            "slots_per_worker": 4,
            "enable_optimizer": True,
            "model_port": port,
        }
        async with served.pool_of(directory, "t-size", **settings) as pool:
            windows = await utilization.real(pool, served.PROGRAM, served.INPUTS, rate, seconds)
            failed, counted = served.errors(pool)
    found.ended.append((failed, counted))
    work = (
        f"a real pool that chooses its size (1 to 6 workers of 4 slots), {rate:g}/s Poisson, each one call of "
        f"{MODEL_S * 1e3:g} ms to a model behind HTTP, {seconds:g} s; mean utilization of windows of 10 s, first "
        "workers settled"
    )
    if windows:
        percents = [100 * one for one in windows]
        found.target(
            "pool_utilization", "60-80", percents, "%", lambda value: 60 <= value <= 80, work, len(windows)
        )
        share = [utilization.within(windows)]
        found.beside(
            "time_within_60_80_real", ">= 90", share, "%", lambda value: value >= 90, work, len(windows)
        )
    hours, seeds = (0.25, 1) if quick else (1.0, 5)
    for times in (1, 8):
        for name, shares in (await asyncio.to_thread(utilization.simulated, hours, seeds, times)).items():
            for which, values in shares.items():
                _simulated(found, name, which, values, times, hours)


def _simulated(found: Findings, name: str, which: str, values: list[float], times: int, hours: float) -> None:
    of = (
        "all minutes" if which == "all" else "the minutes in which a whole number of workers can be within it"
    )
    work = (
        f"the simulator of benchmarks.sizing with the pool's own policy, workload {name} at {times} times its rate, "
        f"{hours:g} h, one repetition a seed; of {of}"
    )
    suffix = "" if which == "all" else "_where_possible"
    found.beside(
        f"time_within_60_80_{name}_x{times}{suffix}",
        ">= 90",
        values,
        "%",
        lambda value: value >= 90,
        work,
        round(len(values) * (60 * hours - 6)),
    )


def error_rate(found: Findings) -> None:
    work = (
        "all operations of this run but those under kills; the spread is that of its parts. Client errors are in "
        "neither number, refusals and time-outs are failures"
    )
    failed, counted = (sum(column) for column in zip(*found.ended, strict=True))
    parts = [100 * bad / max(1, of) for bad, of in found.ended]
    rate = 100 * failed / counted
    found.target("error_rate", "< 0.1", parts, "%", lambda value: value < 0.1, work, counted, value=rate)


async def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", help=f"parts of it, separated by commas: {', '.join(PARTS)}")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(PARTS)
    header("targets: the seed's eight metrics")

    found = Findings()
    with ray_cluster("dsp-t-") as directory:
        for part in (one for one in PARTS if one in chosen):
            await globals()[f"{part}_part"](found, directory / part, options.quick)
    if found.ended:
        error_rate(found)
    missed = [row["name"] for row in found.targets if not row["met"]]
    print(
        f"  {len(found.targets) - len(missed)} of {len(found.targets)} met; missed: {', '.join(missed) or 'none'}"
    )
    finish({"targets": found.targets, "also": found.also, "quick": options.quick}, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
