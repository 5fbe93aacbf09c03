"""Which figures belong to which chart: for exports and the report; the page has the same ones."""

from __future__ import annotations

from typing import Final

CHARTS: Final[dict[str, tuple[str, ...]]] = {
    "utilization": ("utilization",),
    "throughput": ("throughput",),
    "latency": ("p50_s", "p95_s", "p99_s", "mean_s"),
    "errors": ("error_rate", "errors", "timeouts", "rejected", "retries"),
    "queue": ("queue_depth", "running"),
    "wait": ("wait_mean_s", "wait_p95_s", "wait_p99_s"),
    "size": ("desired", "size", "active", "idle", "spare", "overflow"),
    "tokens": ("input_tokens", "output_tokens"),
    "sessions": ("sessions",),
    "health": ("health",),
}
"""Chart -> columns of history."""

__all__ = ["CHARTS"]
