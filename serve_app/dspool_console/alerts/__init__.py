"""The alerts: one table for Prometheus' rules and for a service that has no Prometheus.

`python -m dspool_console.alerts` writes the rules to `dspool.yaml` beside this file. Thresholds compare with the pool's
own configuration where it has one, so that the alerts fit every pool as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import yaml

from dspool.telemetry.exposition import REACHABLE
from dspool_console.alerts.window import ABSENT, Window
from dspool_console.promql import increase, level, quantile, rate

FILE: Final = Path(__file__).with_name("dspool.yaml")
EXAMPLE: Final = Path(__file__).with_name("prometheus.yaml")
"""A Prometheus configuration that scrapes a service or a Ray cluster and loads the rules."""
RUNBOOK: Final = "docs/reference/metrics.md#all-alerts"
MINUTE: Final = 60.0


class Recorded(NamedTuple):
    name: str
    expr: str


class Finding(NamedTuple):
    value: float
    """Not a number: nothing was measured."""
    holds: bool


class Alert(NamedTuple):
    """Fires when `value` is `when` for `lasting_min` minutes. Both are said twice, as PromQL and in Python; tests hold
    them equal."""

    name: str
    value: str
    measure: Callable[[Window], float]
    """`value` in Python."""
    when: str
    holds: Callable[[float, Window], bool]
    """`when` in Python: whether it is so of what `measure` gave."""
    lasting_min: int
    severity: Literal["info", "warning", "critical"]
    summary: str
    description: str

    @property
    def expr(self) -> str:
        return f"{self.value} {self.when}"

    @property
    def lasting(self) -> str:
        return f"{self.lasting_min}m"

    def judge(self, window: Window) -> Finding:
        """What it is about, and whether its condition holds, at the window's `now`."""
        value = self.measure(window)
        return Finding(value, self.holds(value, window))


SERVED_RATE: Final = "pool:dspool_served_operations:rate5m"
ERROR_RATIO: Final = "pool:dspool_error_ratio:rate5m"
P99: Final = "pool:dspool_operation_duration_seconds:p99_5m"
WAIT_P95: Final = "pool:dspool_operation_wait_seconds:p95_5m"

_served = rate("dspool_operations_total", where='outcome=~"ok|error|timeout"', window="5m")
_failed = rate("dspool_operations_total", where='outcome=~"error|timeout"', window="5m")


def _error_ratio(window: Window) -> float:
    served = window.increase("dspool_operations_total", 5 * MINUTE, outcome="ok|error|timeout")
    failed = window.increase("dspool_operations_total", 5 * MINUTE, outcome="error|timeout")
    return failed / served if served > 0 else ABSENT


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
        _error_ratio,
        "> 0.05",
        lambda ratio, window: ratio > 0.05,
        5,
        "warning",
        "{{ $value | humanizePercentage }} of the operations of pool {{ $labels.pool }} fail",
        "Errors and timeouts of served operations; mistakes of callers and refusals are not among them. "
        "dspool_operation_errors_total says which error.",
    ),
    Alert(
        "DspoolErrorRateCritical",
        ERROR_RATIO,
        _error_ratio,
        "> 0.25",
        lambda ratio, window: ratio > 0.25,
        2,
        "critical",
        "{{ $value | humanizePercentage }} of the operations of pool {{ $labels.pool }} fail",
        "As DspoolErrorRate, and so many that users are hit now.",
    ),
    Alert(
        "DspoolLatencyP99",
        P99,
        lambda window: window.quantile(0.99, "dspool_operation_duration_seconds", 5 * MINUTE),
        f"> 0.5 * {level('dspool_operation_timeout_seconds')}",
        lambda p99, window: p99 > 0.5 * window.level("dspool_operation_timeout_seconds"),
        10,
        "warning",
        "p99 of pool {{ $labels.pool }} is {{ $value | humanizeDuration }}",
        "More than half of operation_timeout_s: the slowest operations are about to time out.",
    ),
    Alert(
        "DspoolQueueWait",
        WAIT_P95,
        lambda window: window.quantile(0.95, "dspool_operation_wait_seconds", 5 * MINUTE),
        f"> {level('dspool_queue_max_wait_seconds')}",
        lambda p95, window: p95 > window.level("dspool_queue_max_wait_seconds"),
        5,
        "warning",
        "Operations of pool {{ $labels.pool }} wait {{ $value | humanizeDuration }} for a slot (p95)",
        "Longer than max_wait_s: there are too few workers, or the model is slow.",
    ),
    Alert(
        "DspoolQueueFull",
        rate("dspool_operations_total", where='outcome="rejected"', window="5m"),
        lambda window: (
            window.increase("dspool_operations_total", 5 * MINUTE, outcome="rejected") / (5 * MINUTE)
        ),
        "> 0",
        lambda refused, window: refused > 0,
        2,
        "critical",
        "Pool {{ $labels.pool }} refuses {{ $value | humanize }} operations a second",
        "The queue is full, or the pool is paused or not ready.",
    ),
    Alert(
        "DspoolPoolNotReady",
        level("dspool_pool_ready"),
        lambda window: window.level("dspool_pool_ready"),
        "== 0",
        lambda ready, window: ready == 0,
        1,
        "critical",
        "Pool {{ $labels.pool }} has too few warm workers",
        "Fewer than min_ready. `dspool status` says why workers do not become warm.",
    ),
    Alert(
        "DspoolPoolUnhealthy",
        level("dspool_pool_health_score"),
        lambda window: window.level("dspool_pool_health_score"),
        "< 50",
        lambda score, window: score < 50,
        5,
        "warning",
        "The health of pool {{ $labels.pool }} is {{ $value | humanize }} of 100",
        "`dspool status` names what takes points away.",
    ),
    Alert(
        "DspoolCrashLoop",
        increase("dspool_worker_failures_total", window="5m"),
        lambda window: window.increase("dspool_worker_failures_total", 5 * MINUTE),
        "> 5",
        lambda deaths, window: deaths > 5,
        0,
        "critical",
        "{{ $value | humanize }} workers of pool {{ $labels.pool }} died in 5 minutes",
        "They die or cannot be started again and again; `dspool status` has the last reason.",
    ),
    Alert(
        "DspoolSessionLost",
        increase("dspool_events_total", where='event="session.lost"', window="15m"),
        lambda window: window.increase("dspool_events_total", 15 * MINUTE, event="session.lost"),
        "> 0",
        lambda sessions, window: sessions > 0,
        0,
        "critical",
        "{{ $value | humanize }} sessions of pool {{ $labels.pool }} could not be rebuilt",
        "No worker can read their stored state; `dspool events` has their hashes and the error's code.",
    ),
    Alert(
        "DspoolWorkersNotForked",
        increase("dspool_events_total", where='event="worker.fallback"', window="15m"),
        lambda window: window.increase("dspool_events_total", 15 * MINUTE, event="worker.fallback"),
        "> 0",
        lambda workers, window: workers > 0,
        0,
        "info",
        "{{ $value | humanize }} workers of pool {{ $labels.pool }} were started by exec instead of fork",
        "They work as well, but start slower and take more memory; `dspool events` says why.",
    ),
    Alert(
        "DspoolPoolDegraded",
        level("dspool_pool_state", where='state="degraded"'),
        lambda window: window.level("dspool_pool_state", state="degraded"),
        "== 1",
        lambda degraded, window: degraded == 1,
        5,
        "warning",
        "Pool {{ $labels.pool }} serves with what is left",
        "Workers fail faster than restart.intensity allows, so they are started one at a time.",
    ),
    Alert(
        "DspoolNoWarmSpare",
        level("dspool_pool_workers", where='state="spare"'),
        lambda window: window.level("dspool_pool_workers", state="spare"),
        f"== 0 and {level('dspool_pool_desired_spares')} > 0",
        lambda spares, window: spares == 0 and window.level("dspool_pool_desired_spares") > 0,
        2,
        "warning",
        "Pool {{ $labels.pool }} has no warm spare",
        "The next worker that dies is missed until a new one is warm.",
    ),
    Alert(
        "DspoolAtMaximumSize",
        level("dspool_pool_desired_workers"),
        lambda window: window.level("dspool_pool_desired_workers"),
        f">= {level('dspool_pool_max_workers')} and {level('dspool_pool_sizing_enabled')} == 1",
        lambda desired, window: (
            desired >= window.level("dspool_pool_max_workers")
            and window.level("dspool_pool_sizing_enabled") == 1
        ),
        10,
        "warning",
        "Sizing holds pool {{ $labels.pool }} at its maximum of {{ $value }} workers",
        "It would take more if it could: raise max_pool_size if the machine has room.",
    ),
    Alert(
        "DspoolTelemetryDropped",
        f"{increase('dspool_telemetry_dropped_samples_total', window='10m')} "
        f"+ {increase('dspool_telemetry_unattributed_operations_total', window='10m')}",
        lambda window: (
            window.increase("dspool_telemetry_dropped_samples_total", 10 * MINUTE)
            + window.increase("dspool_telemetry_unattributed_operations_total", 10 * MINUTE)
        ),
        "> 0",
        lambda missing, window: missing > 0,
        0,
        "info",
        "Telemetry of pool {{ $labels.pool }} is incomplete",
        "Samples were dropped or operations could not be attributed; operations themselves are not affected.",
    ),
    Alert(
        "DspoolMetricsMissing",
        f"max by (pool) ({REACHABLE})",
        lambda window: window.level(REACHABLE),
        "== 0",
        lambda reachable, window: reachable == 0,
        1,
        "warning",
        "The metrics actor of pool {{ $labels.pool }} does not answer",
        "Operations go on; what happened meanwhile is counted when it is back. Only GET /metrics can tell.",
    ),
)


METRICS_READ: Final = frozenset(
    name.removesuffix("_bucket")
    for expr in (*(rule.expr for rule in RECORDED), *(alert.expr for alert in ALERTS))
    for name in re.findall(r"(?<![:\w])dspool_\w+", expr)
)
"""The metrics that the alerts are about."""


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
