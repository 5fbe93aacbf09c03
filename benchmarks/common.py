"""What every benchmark says about itself, and how figures are taken: ratios within one run, order interleaved."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def arguments(what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON, and nothing after it")
    parser.add_argument(
        "--quick", action="store_true", help="a short run that proves it works; figures are rough"
    )
    return parser


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
def ray_cluster(prefix: str) -> Iterator[Path]:
    """A Ray cluster of our own, with a directory for what belongs to the run; its workers can import benchmarks."""
    from dspool.runtime.cluster import own_cluster

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A busy machine: what starts late must not fail what is measured afterwards.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    with own_cluster(prefix) as directory:
        yield directory


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
