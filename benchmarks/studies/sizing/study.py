"""How well does the pool follow its load, and at what cost?

    python -m benchmarks.sizing --json [--quick] [--trace FILE] [--compress N] [--picture FILE]
    python -m benchmarks.sizing --json --held-out SEEDS      # other loads, and who is dominated on them

Each workload runs through the same simulated pool (`dspool.core.autoscale.simulation`) under dspool's own policy
(`dspool.core.autoscale.sizing.decide` itself), under other autoscalers, and under a clairvoyant oracle. The last line
printed is one JSON object:
`rows: [{workload, policy, waits_over_pct, worker_seconds_vs_oracle, resizes, oscillation}]`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, about, arguments, header
from benchmarks.studies.sizing import workloads
from benchmarks.studies.sizing.held_out import REPORT_SEED, dominates, held_out, summary
from benchmarks.studies.sizing.hindsight import best_plan
from benchmarks.studies.sizing.oracle import Scheduled, needed, oracle
from benchmarks.studies.sizing.picture import write_picture
from benchmarks.studies.sizing.policies import HPA, KPA, Reactive, Seed, Serve, erlang_static
from dspool.cli.load_trace import Workload, read_trace
from dspool.core.autoscale.inputs import SizingConfig
from dspool.core.autoscale.simulation import PoolModel, SimulatedRun, Sizer, simulate
from dspool.core.autoscale.sizers import AutomaticSizer, ConstantSizer, smallest_constant
from dspool.errors import InvalidRequest

DEFAULT_TRACE = ROOT.parent / "shared" / "traces" / "azure_llm_2023_code.csv"
DEFAULT_COMPRESSIONS = (1.0, 5.0, 20.0)


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    pool = PoolModel(
        slots=args.slots, max_size=args.max_size, start_delay_s=args.start_delay, max_wait_s=args.max_wait
    )
    settings = {
        "slots_per_worker": pool.slots,
        "min_size": pool.min_size,
        "max_size": pool.max_size,
        "start_delay_s": pool.start_delay_s,
        "max_wait_s": pool.max_wait_s,
        "service_mean_s": args.service,
        "initial_size": "as erlang_static",
    }
    header("Pool sizing: dspool's policy beside other autoscalers and a clairvoyant oracle")
    print("  " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    try:
        works = _workloads(args)
    except InvalidRequest as refused:
        print(f"cannot read the trace: {refused}", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    bounds: list[dict[str, Any]] = []
    hindsight: list[dict[str, Any]] = []
    shown = []
    for work in works:
        began = time.process_time()
        runs = _compare(work, pool)
        took_s = time.process_time() - began
        base = next(run for run in runs if run.policy == "oracle").worker_seconds
        new = [_row(work, run, base) for run in runs]
        rows += new
        shown.append((work.name, work.note, [(run, run.worker_seconds / base) for run in runs]))
        _print_table(work, new, took_s)
        if args.bounds:
            bounds.append(_bounds(work, pool, base))
            _print_bounds(bounds[-1])
        if args.hindsight:
            hindsight.append(_hindsight(work, pool, base, args.hindsight))
    summed = summary(rows) if args.held_out else []
    _print_summary(summed)
    if args.picture:
        write_picture(args.picture, shown, pool, "; ".join(f"{k} {v}" for k, v in settings.items()))
        print(f"\npicture: {args.picture}")
    if args.json:
        notes = {work.name: work.note for work in works}
        said = {"rows": rows, "settings": settings, "notes": notes, "bounds": bounds, "summary": summed}
        print(json.dumps({**said, "hindsight": hindsight, **about()}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments("How well does the pool follow its load, and at what cost?")
    add = parser.add_argument
    add(
        "--trace",
        type=Path,
        action="append",
        metavar="FILE",
        help="CSV or JSONL with a timestamp column; repeatable",
    )
    add(
        "--compress",
        type=float,
        metavar="N",
        help="divide the times of the trace by N (1; without --trace 1, 5, 20)",
    )
    add("--only-traces", action="store_true", help="leave out the synthetic workloads")
    add("--held-out", type=int, metavar="SEEDS", help="instead: loads nothing was chosen on, so many seeds")
    add("--first-seed", type=int, default=REPORT_SEED, metavar="N", help=f"of --held-out ({REPORT_SEED})")
    add("--bounds", action="store_true", help="also show what bounds any policy on each workload")
    add("--hindsight", type=int, metavar="N", help="also the best of N plans, knowing each workload (slow)")
    add("--picture", type=Path, metavar="FILE", help="write load, size and wait as one HTML page")
    add("--service", type=float, default=0.5, metavar="S", help="mean service time, seconds (0.5)")
    add("--slots", type=int, default=8, help="slots a worker (8)")
    add("--max-size", type=int, default=64, help="most workers (64)")
    add("--start-delay", type=float, default=1.0, metavar="S", help="from asking to traffic, seconds (1)")
    add("--max-wait", type=float, default=0.1, metavar="S", help="the wait objective, seconds (0.1)")
    return parser


def _workloads(args: argparse.Namespace) -> list[Workload]:
    if args.held_out:
        seeds = range(args.first_seed, args.first_seed + args.held_out)
        return list(held_out(seeds, service_s=args.service))
    traces: list[Path] = args.trace or ([DEFAULT_TRACE] if DEFAULT_TRACE.exists() else [])
    compressions: tuple[float, ...] = (1.0,)
    if args.compress is not None:
        compressions = (args.compress,)
    elif not args.trace:
        compressions = DEFAULT_COMPRESSIONS[-1:] if args.quick else DEFAULT_COMPRESSIONS
    found = []
    for path in traces:
        for compress in compressions:
            name = f"{path.stem} x{compress:g}"
            work = read_trace(path, compress=compress, service_mean_s=args.service, name=name)
            print(f"  {name}: {len(work.arrivals)} operations, {work.note}")
            found.append(work)
    if args.only_traces:
        return found
    span = 600.0 if args.quick else 3600.0
    makers: list[Callable[..., Workload]] = [
        workloads.steady, workloads.step, workloads.diurnal, workloads.on_off,
    ]  # fmt: skip
    if not args.quick:
        makers += [workloads.mmpp, workloads.pareto_on_off]
    return [*found, *(make(span, service_s=args.service) for make in makers), workloads.spike()]


def _compare(work: Workload, pool: PoolModel) -> list[SimulatedRun]:
    """One run of each policy. All but the oracle start with the size that the mean rate asks for."""
    pool, static = _start(work, pool)
    config = _config(pool)
    policies: list[Sizer] = [
        AutomaticSizer(pool, config),
        Seed(pool),
        HPA(pool),
        KPA(pool),
        Serve(pool),
        static,
    ]
    runs = [simulate(work.arrivals, work.services, policy, pool) for policy in policies]
    return [*runs, oracle(work, pool)]


def _config(pool: PoolModel) -> SizingConfig:
    return SizingConfig(min_size=pool.min_size, max_size=pool.max_size, max_wait_s=pool.max_wait_s)


def _start(work: Workload, pool: PoolModel) -> tuple[PoolModel, ConstantSizer]:
    static = erlang_static(len(work.arrivals) / work.span_s, sum(work.services) / len(work.services), pool)
    return replace(pool, initial_size=static.size), static


def _bounds(work: Workload, pool: PoolModel, oracle_s: float) -> dict[str, Any]:
    """What no reaction can avoid, and what a size that never changes would cost."""
    pool, _ = _start(work, pool)
    fastest = simulate(work.arrivals, work.services, Reactive(pool), pool)
    # Knows at each moment what is needed, but not before; never lets a worker go.
    largest = list(itertools.accumulate(needed(work, pool), max))
    no_foresight = simulate(work.arrivals, work.services, Scheduled(largest, pool.initial_size), pool)
    constant = smallest_constant(work.arrivals, work.services, pool)
    return {
        "workload": work.name,
        "fastest_reaction_waits_over_pct": round(fastest.over_pct, 3),
        "no_foresight_waits_over_pct": round(no_foresight.over_pct, 3),
        "no_foresight_vs_oracle": round(no_foresight.worker_seconds / oracle_s, 3),
        "constant_size_for_1_pct": constant.largest if constant else None,
        "constant_size_vs_oracle": round(constant.worker_seconds / oracle_s, 3) if constant else None,
        "mean_busy_workers": round(sum(work.services) / work.span_s / pool.slots, 3),
        "mean_oracle_workers": round(oracle_s / work.span_s, 3),
    }


def _hindsight(work: Workload, pool: PoolModel, oracle_s: float, tries: int) -> dict[str, Any]:
    pool, _ = _start(work, pool)
    found = best_plan(work, pool, _config(pool), oracle_s, tries=tries)
    cost = f"{found['worker_seconds_vs_oracle']} times the oracle: {found['plan']}"
    print(f"  in hindsight, the best of {tries} plans under 1 % costs {cost}", flush=True)
    return found


def _row(work: Workload, run: SimulatedRun, oracle_s: float) -> dict[str, Any]:
    return {
        "workload": work.name,
        "policy": run.policy,
        "waits_over_pct": round(run.over_pct, 3),
        "worker_seconds_vs_oracle": round(run.worker_seconds / oracle_s, 3),
        "resizes": run.resizes,
        "oscillation": run.oscillation,
    }


def _print_table(work: Workload, rows: list[dict[str, Any]], took_s: float) -> None:
    print(f"\n{work.name}: {len(work.arrivals)} operations in {work.span_s:.0f} s, {work.note}")
    print(f"  {'policy':14}{'waits over %':>13}{'cost / oracle':>15}{'resizes':>9}{'oscillation':>13}")
    for row in rows:
        print(
            f"  {row['policy']:14}{row['waits_over_pct']:13.2f}{row['worker_seconds_vs_oracle']:15.2f}"
            f"{row['resizes']:9}{row['oscillation']:13}{_mark(row, rows[0])}"
        )
    print(f"  all policies simulated in {took_s:.1f} s of processor time", flush=True)


def _mark(row: dict[str, Any], ours: dict[str, Any]) -> str:
    """A word where a baseline is better."""
    return "   dominates dspool" if row["policy"] != "oracle" and dominates(row, ours) else ""


def _print_summary(summed: list[dict[str, Any]]) -> None:
    for line in summed:
        print(
            f"  {line['policy']:14} dominated on {line['dominated_on']} of {line['workloads']} workloads, under 1 % "
            f"on {line['under_1_pct_on']}; waits over: median {line['median_waits_over_pct']:.2f} %, worst "
            f"{line['worst_waits_over_pct']:.2f} %; cost / oracle: median {line['median_vs_oracle']:.2f}, worst "
            f"{line['worst_vs_oracle']:.2f}"
        )


def _print_bounds(bound: dict[str, Any]) -> None:
    print(
        f"  bounds: growing to the maximum at the first queue leaves "
        f"{bound['fastest_reaction_waits_over_pct']:.2f} % over; knowing what is needed, but not before, and never "
        f"letting a worker go {bound['no_foresight_waits_over_pct']:.2f} % at {bound['no_foresight_vs_oracle']} times "
        f"the oracle; the best constant size "
        f"({bound['constant_size_for_1_pct']}) costs {bound['constant_size_vs_oracle']} times the oracle; "
        f"busy {bound['mean_busy_workers']} workers, oracle {bound['mean_oracle_workers']}"
    )
