"""What every benchmark says about itself, and how figures are taken: ratios within one run, order interleaved."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")
SHARED = "BENCH_CLUSTER"
"""Holds the address of a cluster that several benchmarks run on."""


def arguments(what: str, parts: Sequence[str] = ()) -> argparse.ArgumentParser:
    """What every benchmark takes; one with `parts` has in `only` those that are to run, in their order."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON, and nothing after it")
    parser.add_argument(
        "--quick", action="store_true", help="a short run that proves it works; figures are rough"
    )
    if parts:
        parser.add_argument(
            "--only",
            type=lambda given: _some_of(parts, given.split(",")),
            default=list(parts),
            metavar="PART,...",
            help=f"of {', '.join(parts)}",
        )
    return parser


def _some_of(parts: Sequence[str], names: list[str]) -> list[str]:
    if unknown := set(names) - set(parts):
        raise argparse.ArgumentTypeError(
            f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}"
        )
    return [part for part in parts if part in names]


async def attempt(part: str, work: Awaitable[T], limit_s: float, broken: dict[str, str]) -> T | None:
    """What a part of a benchmark gives. Why it failed is in `broken` then: the others are worth having all the same."""
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except Exception as failed:
        broken[part] = f"{type(failed).__name__}: {failed}"
        print(f"  {part} FAILED: {broken[part]}", flush=True)
        return None


def about() -> dict[str, Any]:
    """Commit, machine and versions: what a figure is worth nothing without."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit or "unknown",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "ray": version("ray"),
        "dspy": version("dspy"),
        "date": time.strftime("%Y-%m-%d"),
    }


@contextlib.contextmanager
def ray_cluster(prefix: str, *, alone: bool = False) -> Iterator[Path]:
    """A Ray cluster whose workers can import benchmarks, with a directory for what belongs to the run.

    It is our own, or the one that `SHARED` names, unless the benchmark has to be `alone` on its cluster.
    """
    import ray

    from dspool.runtime.cluster import join_cluster, own_cluster

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A busy machine: what starts late must not fail what is measured afterwards.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    if SHARED not in os.environ or alone:
        with own_cluster(prefix) as directory:
            yield directory
        return
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp", ignore_cleanup_errors=True) as directory:
        # The token's path is in the environment, as that of whoever started it.
        join_cluster(os.environ[SHARED])
        try:
            yield Path(directory)
        finally:
            ray.shutdown()


@contextlib.contextmanager
def shared_cluster(prefix: str) -> Iterator[None]:
    """A cluster for all benchmarks that are started meanwhile: the start of each one's own is most of a short run."""
    import ray

    with ray_cluster(prefix, alone=True):
        os.environ[SHARED] = ray.get_runtime_context().gcs_address
        try:
            yield
        finally:
            del os.environ[SHARED]


def load_processor() -> int:
    """The processor that load generators are pinned to: on the others nothing but the system and its system calls."""
    return max(os.sched_getaffinity(0))


def pin_threads(processor: int) -> None:
    """Keep all threads of this process, and those that they start, on one processor."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it ended
            os.sched_setaffinity(int(thread), {processor})


def header(what: str) -> None:
    facts = about()
    print(what)
    print("  " + ", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value with at least `share` of all values at or below it."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * share // 1))
    return ordered[min(len(ordered), int(rank)) - 1]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})"


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def finish(figures: dict[str, Any], *, as_json: bool) -> None:
    sys.stdout.flush()
    if as_json:
        print(json.dumps(figures), flush=True)
