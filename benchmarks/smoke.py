"""Does every benchmark start, print its JSON with the keys that readers rely on, and end? What CI runs.

    python -m benchmarks.smoke [--jobs N] [NAME ...]

Each runs with --quick and, where it has parts, with the smallest of them; what it measures is not looked at. Those that
need a Ray cluster and nothing else share one.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from benchmarks.common import shared_cluster
from benchmarks.report import NAMES, run


class Check(NamedTuple):
    keys: str
    only: str | None = None
    """The part that is run, of a benchmark that has some."""


# The longest first, so that none is left running alone for long.
CHECKS = {
    "throughput": Check(
        "pool_ops_per_s limit_ops_per_s limit_same_adapter_ops_per_s actor_pool_ops_per_s serve_handle_ops_per_s "
        "vs_actor_pool vs_limit vs_limit_same_adapter p50_ms p99_ms overhead_p50_ms one_p50_ms bare_actor_p50_ms "
        "vs_bare_actor memory_growth_mb memory_operations rounds"
    ),
    "telemetry": Check(
        "record_us metrics_actor_records_per_s metrics_actor_busy_share",
        "record,actor",
    ),
    "dashboard": Check(
        "first_paint_s viewers_100_core_pct viewers_100_error_pct viewers_100_within_noise viewers_100_all_pct "
        "longest_frame_ms page_kb history_points history_days filter_ms filter_operations filter_each_ms",
        "viewers",
    ),
    "soak": Check(
        "minutes operations sessions_ended dashboards disturbed failed failed_repeatable error_budget_used "
        "judged_from_minute memory_mb_per_hour memory_interval_mb_per_hour growing growing_of_ray descriptors threads "
        "tasks disk_mb worker_mb_per_hour_median workers_seen memory_last_mb memory_series left processes_left"
    ),
    "chaos": Check(
        "faults by_kind operations lost_changes crossed ended_twice hanging undeclared_errors p99_recovery_ms",
        "fork-sqlite",
    ),
    "recovery": Check(
        "kills recovery_p50_ms recovery_p99_ms recovery_max_ms next_spare_warm_p50_s failed_idempotent "
        "failed_started_not_idempotent failed_by_kind lost_without_trace hanging answered_twice sessions_lost "
        "supervisor_kills supervisor_kill_failed no_spare_kills no_spare_p50_ms no_spare_p99_ms operations"
    ),
    "cluster": Check(
        "spread apply_failed_of_100k rolling_failed_of_100k upgrade_failed_of_100k", "apply_failed_of_100k"
    ),
    "startup": Check("soak", "soak"),
    "start": Check("pool_start_s pool_steps failed_parts", "pool"),
    "programs": Check(
        "reload_s typed_vs_plain shared_uss_mb own_vs_spec inprocess_start_s blocked_neighbour_p99_ms failed_parts",
        "own",
    ),
    "abuse": Check("idle_connections idle_same_address hostile_specs"),
    # The service itself is started for the dashboard.
    "http": Check("rows ratios verdicts behind_on slots_200 cpu_us load_us rounds", "fastapi"),
    "model_call": Check("ratios us to_reach slices", "call"),
    "peers": Check(
        "rows ratios verdicts behind_on fast_p99_beside_slow left_out failed_systems seconds_a_cell rounds",
        "process_pool,fastapi_acall",
    ),
    "targets": Check("targets also failed_parts quick", "served"),
    "scaling": Check("curves failed_parts quick", "queue"),
    "sizing": Check("rows settings notes bounds summary hindsight"),
    "structure": Check("lines files cycles layers longest_file double_class_names"),
}


def passed(name: str) -> bool:
    keys, only = CHECKS[name]
    entry = run(name, True, [] if only is None else ["--only", only], show=False)
    missing = set(keys.split()) - entry["figures"].keys()
    verdict = "FAILED" if not entry["ok"] else f"FAILED, without {sorted(missing)}" if missing else "ok"
    lines = [f"{name:12s}{entry['seconds']:6.1f} s  {verdict}"]
    if verdict != "ok":
        lines += entry["printed"][-50:]
    print("\n    ".join(lines), flush=True)
    return verdict == "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without any")
    parser.add_argument("--jobs", type=int, default=2, help="side by side (2)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    began = time.monotonic()
    with shared_cluster("dsp-q-"), ThreadPoolExecutor(options.jobs) as threads:
        names = [name for name in CHECKS if not options.names or name in options.names]
        results = list(threads.map(passed, names))
    print(f"{sum(results)} of {len(results)} ok, {time.monotonic() - began:.0f} s")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
