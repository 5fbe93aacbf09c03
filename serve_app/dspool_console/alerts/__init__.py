"""Recording and alert rules for Prometheus: `python -m dspool_console.alerts` writes `dspool.yaml` beside this file.

Thresholds compare with the pool's own configuration where it has one, so that the rules fit every pool as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import yaml

from dspool.telemetry.exposition import REACHABLE
from dspool_console.queries import increase, level, quantile, rate

FILE: Final = Path(__file__).with_name("dspool.yaml")
EXAMPLE: Final = Path(__file__).with_name("prometheus.yaml")
"""A Prometheus configuration that scrapes a service or a Ray cluster and loads the rules."""
RUNBOOK: Final = "docs/reference/metrics.md#all-alerts"


class Recorded(NamedTuple):
    name: str
    expr: str


class Alert(NamedTuple):
    """Fires when `value` is `when` for `lasting`."""

    name: str
    value: str
    when: str
    lasting: str
    severity: Literal["info", "warning", "critical"]
    summary: str
    description: str

    @property
    def expr(self) -> str:
        return f"{self.value} {self.when}"


SERVED_RATE: Final = "pool:dspool_served_operations:rate5m"
ERROR_RATIO: Final = "pool:dspool_error_ratio:rate5m"
P99: Final = "pool:dspool_operation_duration_seconds:p99_5m"
WAIT_P95: Final = "pool:dspool_operation_wait_seconds:p95_5m"

_served = rate("dspool_operations_total", where='outcome=~"ok|error|timeout"', window="5m")
_failed = rate("dspool_operations_total", where='outcome=~"error|timeout"', window="5m")

RECORDED: Final = (
    Recorded(SERVED_RATE, _served),
    # Without operations there is no ratio, rather than 0 / 0.
    Recorded(ERROR_RATIO, f"{_failed} / ({_served} > 0)"),
    Recorded(P99, quantile(0.99, "dspool_operation_duration_seconds", window="5m")),
    Recorded(WAIT_P95, quantile(0.95, "dspool_operation_wait_seconds", window="5m")),
)

ALERTS: Final = (
    Alert(
        "DspoolErrorRate",
        ERROR_RATIO,
        "> 0.05",
        "5m",
        "warning",
        "{{ $value | humanizePercentage }} of the operations of pool {{ $labels.pool }} fail",
        "Errors and timeouts of served operations; mistakes of callers and refusals are not among them. "
        "dspool_operation_errors_total says which error.",
    ),
    Alert(
        "DspoolErrorRateCritical",
        ERROR_RATIO,
        "> 0.25",
        "2m",
        "critical",
        "{{ $value | humanizePercentage }} of the operations of pool {{ $labels.pool }} fail",
        "As DspoolErrorRate, and so many that users are hit now.",
    ),
    Alert(
        "DspoolLatencyP99",
        P99,
        f"> 0.5 * {level('dspool_operation_timeout_seconds')}",
        "10m",
        "warning",
        "p99 of pool {{ $labels.pool }} is {{ $value | humanizeDuration }}",
        "More than half of operation_timeout_s: the slowest operations are about to time out.",
    ),
    Alert(
        "DspoolQueueWait",
        WAIT_P95,
        f"> {level('dspool_queue_max_wait_seconds')}",
        "5m",
        "warning",
        "Operations of pool {{ $labels.pool }} wait {{ $value | humanizeDuration }} for a slot (p95)",
        "Longer than max_wait_s: there are too few workers, or the model is slow.",
    ),
    Alert(
        "DspoolQueueFull",
        rate("dspool_operations_total", where='outcome="rejected"', window="5m"),
        "> 0",
        "2m",
        "critical",
        "Pool {{ $labels.pool }} refuses {{ $value | humanize }} operations a second",
        "The queue is full, or the pool is paused or not ready.",
    ),
    Alert(
        "DspoolPoolNotReady",
        level("dspool_pool_ready"),
        "== 0",
        "1m",
        "critical",
        "Pool {{ $labels.pool }} has too few warm workers",
        "Fewer than min_ready. `dspool status` says why workers do not become warm.",
    ),
    Alert(
        "DspoolPoolUnhealthy",
        level("dspool_pool_health_score"),
        "< 50",
        "5m",
        "warning",
        "The health of pool {{ $labels.pool }} is {{ $value | humanize }} of 100",
        "`dspool status` names what takes points away.",
    ),
    Alert(
        "DspoolCrashLoop",
        increase("dspool_worker_failures_total", window="5m"),
        "> 5",
        "0m",
        "critical",
        "{{ $value | humanize }} workers of pool {{ $labels.pool }} died in 5 minutes",
        "They die or cannot be started again and again; `dspool status` has the last reason.",
    ),
    Alert(
        "DspoolSessionLost",
        increase("dspool_events_total", where='event="session.lost"', window="15m"),
        "> 0",
        "0m",
        "critical",
        "{{ $value | humanize }} sessions of pool {{ $labels.pool }} could not be rebuilt",
        "No worker can read their stored state; `dspool events` has their hashes and the error's code.",
    ),
    Alert(
        "DspoolWorkersNotForked",
        increase("dspool_events_total", where='event="worker.fallback"', window="15m"),
        "> 0",
        "0m",
        "info",
        "{{ $value | humanize }} workers of pool {{ $labels.pool }} were started by exec instead of fork",
        "They work as well, but start slower and take more memory; `dspool events` says why.",
    ),
    Alert(
        "DspoolPoolDegraded",
        level("dspool_pool_state", where='state="degraded"'),
        "== 1",
        "5m",
        "warning",
        "Pool {{ $labels.pool }} serves with what is left",
        "Workers fail faster than restart.intensity allows, so they are started one at a time.",
    ),
    Alert(
        "DspoolNoWarmSpare",
        level("dspool_pool_workers", where='state="spare"'),
        f"== 0 and {level('dspool_pool_desired_spares')} > 0",
        "2m",
        "warning",
        "Pool {{ $labels.pool }} has no warm spare",
        "The next worker that dies is missed until a new one is warm.",
    ),
    Alert(
        "DspoolAtMaximumSize",
        level("dspool_pool_desired_workers"),
        f">= {level('dspool_pool_max_workers')} and {level('dspool_pool_sizing_enabled')} == 1",
        "10m",
        "warning",
        "Sizing holds pool {{ $labels.pool }} at its maximum of {{ $value }} workers",
        "It would take more if it could: raise max_pool_size if the machine has room.",
    ),
    Alert(
        "DspoolTelemetryDropped",
        f"{increase('dspool_telemetry_dropped_samples_total', window='10m')} "
        f"+ {increase('dspool_telemetry_unattributed_operations_total', window='10m')}",
        "> 0",
        "0m",
        "info",
        "Telemetry of pool {{ $labels.pool }} is incomplete",
        "Samples were dropped or operations could not be attributed; operations themselves are not affected.",
    ),
    Alert(
        "DspoolMetricsMissing",
        f"max by (pool) ({REACHABLE})",
        "== 0",
        "1m",
        "warning",
        "The metrics actor of pool {{ $labels.pool }} does not answer",
        "Operations go on; what happened meanwhile is counted when it is back. Only GET /metrics can tell.",
    ),
)


def rules() -> str:
    """The rule file as YAML."""
    recording: list[dict[str, Any]] = [{"record": rule.name, "expr": rule.expr} for rule in RECORDED]
    alerting: list[dict[str, Any]] = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "description": alert.description,
                "runbook": RUNBOOK,
            },
        }
        for alert in ALERTS
    ]
    groups = [{"name": "dspool-recording", "rules": recording}, {"name": "dspool-alerts", "rules": alerting}]
    head = "# Made by `python -m dspool_console.alerts`; change the table there.\n"
    return head + yaml.safe_dump({"groups": groups}, sort_keys=False, width=110)
