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
from dspool_console.alerts.window import ABSENT, SampleWindow
from dspool_console.promql import increase, level, quantile, rate

FILE: Final = Path(__file__).with_name("dspool.yaml")
EXAMPLE: Final = Path(__file__).with_name("prometheus.yaml")
"""A Prometheus configuration that scrapes a service or a Ray cluster and loads the rules."""
RUNBOOK: Final = "docs/reference/metrics.md#all-alerts"
MINUTE: Final = 60.0


class Recorded(NamedTuple):
    """An expression that Prometheus evaluates once for all that use its name."""

    name: str
    expr: str


class Judgement(NamedTuple):
    """What an alert is about at one moment, and whether its condition holds."""

    value: float
    """Not a number: nothing was measured."""
    holds: bool


class Alert(NamedTuple):
    """Fires when `value` is `when` for `lasting_min` minutes.

    Both stand here twice, as PromQL for Prometheus and in Python for a service without one: `measure` gives `value`,
    and `holds` says whether that is `when`. Tests hold the two equal.
    """

    name: str
    value: str
    measure: Callable[[SampleWindow], float]
    when: str
    holds: Callable[[float, SampleWindow], bool]
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

    def judge(self, window: SampleWindow) -> Judgement:
        value = self.measure(window)
        return Judgement(value, self.holds(value, window))


SERVED_RATE: Final = "pool:dspool_served_operations:rate5m"
ERROR_RATIO: Final = "pool:dspool_error_ratio:rate5m"
P99: Final = "pool:dspool_operation_duration_seconds:p99_5m"
WAIT_P95: Final = "pool:dspool_operation_wait_seconds:p95_5m"

_served = rate("dspool_operations_total", where='outcome=~"ok|error|timeout"', window="5m")
_failed = rate("dspool_operations_total", where='outcome=~"error|timeout"', window="5m")


def _error_ratio(window: SampleWindow) -> float:
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
        name="DspoolErrorRate",
        value=ERROR_RATIO,
        measure=_error_ratio,
        when="> 0.05",
        holds=lambda ratio, window: ratio > 0.05,
        lasting_min=5,
        severity="warning",
        summary="{{ $value | humanizePercentage }} of the operations of pool {{ $labels.pool }} fail",
        description=(
            "Errors and timeouts of served operations; mistakes of callers and refusals are not among them. "
            "dspool_operation_errors_total says which error."
        ),
    ),
    Alert(
        name="DspoolErrorRateCritical",
        value=ERROR_RATIO,
        measure=_error_ratio,
        when="> 0.25",
        holds=lambda ratio, window: ratio > 0.25,
        lasting_min=2,
        severity="critical",
        summary="{{ $value | humanizePercentage }} of the operations of pool {{ $labels.pool }} fail",
        description="As DspoolErrorRate, and so many that users are hit now.",
    ),
    Alert(
        name="DspoolLatencyP99",
        value=P99,
        measure=lambda window: window.quantile(0.99, "dspool_operation_duration_seconds", 5 * MINUTE),
        when=f"> 0.5 * {level('dspool_operation_timeout_seconds')}",
        holds=lambda p99, window: p99 > 0.5 * window.level("dspool_operation_timeout_seconds"),
        lasting_min=10,
        severity="warning",
        summary="p99 of pool {{ $labels.pool }} is {{ $value | humanizeDuration }}",
        description="More than half of operation_timeout_s: the slowest operations are about to time out.",
    ),
    Alert(
        name="DspoolQueueWait",
        value=WAIT_P95,
        measure=lambda window: window.quantile(0.95, "dspool_operation_wait_seconds", 5 * MINUTE),
        when=f"> {level('dspool_queue_max_wait_seconds')}",
        holds=lambda p95, window: p95 > window.level("dspool_queue_max_wait_seconds"),
        lasting_min=5,
        severity="warning",
        summary="Operations of pool {{ $labels.pool }} wait {{ $value | humanizeDuration }} for a slot (p95)",
        description="Longer than max_wait_s: there are too few workers, or the model is slow.",
    ),
    Alert(
        name="DspoolQueueFull",
        value=rate("dspool_operations_total", where='outcome="rejected"', window="5m"),
        measure=lambda window: (
            window.increase("dspool_operations_total", 5 * MINUTE, outcome="rejected") / (5 * MINUTE)
        ),
        when="> 0",
        holds=lambda refusals, window: refusals > 0,
        lasting_min=2,
        severity="critical",
        summary="Pool {{ $labels.pool }} refuses {{ $value | humanize }} operations a second",
        description="The queue is full, or the pool is paused or not ready.",
    ),
    Alert(
        name="DspoolPoolNotReady",
        value=level("dspool_pool_ready"),
        measure=lambda window: window.level("dspool_pool_ready"),
        when="== 0",
        holds=lambda ready, window: ready == 0,
        lasting_min=1,
        severity="critical",
        summary="Pool {{ $labels.pool }} has too few warm workers",
        description="Fewer than min_ready. `dspool status` says why workers do not become warm.",
    ),
    Alert(
        name="DspoolPoolUnhealthy",
        value=level("dspool_pool_health_score"),
        measure=lambda window: window.level("dspool_pool_health_score"),
        when="< 50",
        holds=lambda score, window: score < 50,
        lasting_min=5,
        severity="warning",
        summary="The health of pool {{ $labels.pool }} is {{ $value | humanize }} of 100",
        description="`dspool status` names what takes points away.",
    ),
    Alert(
        name="DspoolCrashLoop",
        value=increase("dspool_worker_failures_total", window="5m"),
        measure=lambda window: window.increase("dspool_worker_failures_total", 5 * MINUTE),
        when="> 5",
        holds=lambda deaths, window: deaths > 5,
        lasting_min=0,
        severity="critical",
        summary="{{ $value | humanize }} workers of pool {{ $labels.pool }} died in 5 minutes",
        description="They die or cannot be started again and again; `dspool status` has the last reason.",
    ),
    Alert(
        name="DspoolSessionLost",
        value=increase("dspool_events_total", where='event="session.lost"', window="15m"),
        measure=lambda window: window.increase("dspool_events_total", 15 * MINUTE, event="session.lost"),
        when="> 0",
        holds=lambda sessions, window: sessions > 0,
        lasting_min=0,
        severity="critical",
        summary="{{ $value | humanize }} sessions of pool {{ $labels.pool }} could not be rebuilt",
        description="No worker can read their stored state; `dspool events` has their hashes and the error's code.",
    ),
    Alert(
        name="DspoolStoreFailing",
        value=increase("dspool_operation_errors_total", where='code="store_failed"', window="5m"),
        measure=lambda window: window.increase(
            "dspool_operation_errors_total", 5 * MINUTE, code="store_failed"
        ),
        when="> 0",
        holds=lambda operations, window: operations > 0,
        lasting_min=0,
        severity="critical",
        summary="{{ $value | humanize }} operations of pool {{ $labels.pool }} failed with the session store",
        description="Nothing that changes a session gets through while its database is away; what does not, goes on. "
        "docs/how-to/store.md#when-the-store-fails says what to do.",
    ),
    Alert(
        name="DspoolStoreReplaced",
        value=increase("dspool_events_total", where='event="store.replaced"', window="15m"),
        measure=lambda window: window.increase("dspool_events_total", 15 * MINUTE, event="store.replaced"),
        when="> 0",
        holds=lambda stores, window: stores > 0,
        lasting_min=0,
        severity="warning",
        summary="{{ $value | humanize }} session stores of pool {{ $labels.pool }} were replaced while they ran",
        description="One hung or was cut off, or a second service uses the same pool of the same database; nothing was "
        "lost. docs/how-to/store.md#when-a-store-was-replaced says what to look at.",
    ),
    Alert(
        name="DspoolWorkersNotForked",
        value=increase("dspool_events_total", where='event="worker.fallback"', window="15m"),
        measure=lambda window: window.increase("dspool_events_total", 15 * MINUTE, event="worker.fallback"),
        when="> 0",
        holds=lambda workers, window: workers > 0,
        lasting_min=0,
        severity="info",
        summary="{{ $value | humanize }} workers of pool {{ $labels.pool }} were started by exec instead of fork",
        description="They work as well, but start slower and take more memory; `dspool events` says why.",
    ),
    Alert(
        name="DspoolPoolDegraded",
        value=level("dspool_pool_state", where='state="degraded"'),
        measure=lambda window: window.level("dspool_pool_state", state="degraded"),
        when="== 1",
        holds=lambda value, window: value == 1,
        lasting_min=5,
        severity="warning",
        summary="Pool {{ $labels.pool }} serves with what is left",
        description="Workers fail faster than restart.intensity allows, so they are started one at a time.",
    ),
    Alert(
        name="DspoolNoWarmSpare",
        value=level("dspool_pool_workers", where='state="spare"'),
        measure=lambda window: window.level("dspool_pool_workers", state="spare"),
        when=f"== 0 and {level('dspool_pool_desired_spares')} > 0",
        holds=lambda spares, window: spares == 0 and window.level("dspool_pool_desired_spares") > 0,
        lasting_min=2,
        severity="warning",
        summary="Pool {{ $labels.pool }} has no warm spare",
        description="The next worker that dies is missed until a new one is warm.",
    ),
    Alert(
        name="DspoolAtMaximumSize",
        value=level("dspool_pool_desired_workers"),
        measure=lambda window: window.level("dspool_pool_desired_workers"),
        when=f">= {level('dspool_pool_max_workers')} and {level('dspool_pool_sizing_enabled')} == 1",
        holds=lambda desired, window: (
            desired >= window.level("dspool_pool_max_workers")
            and window.level("dspool_pool_sizing_enabled") == 1
        ),
        lasting_min=10,
        severity="warning",
        summary="Sizing holds pool {{ $labels.pool }} at its maximum of {{ $value }} workers",
        description="It would take more if it could: raise max_pool_size if the machine has room.",
    ),
    Alert(
        name="DspoolTelemetryDropped",
        value=(
            f"{increase('dspool_telemetry_dropped_samples_total', window='10m')} "
            f"+ {increase('dspool_telemetry_unattributed_operations_total', window='10m')}"
        ),
        measure=lambda window: (
            window.increase("dspool_telemetry_dropped_samples_total", 10 * MINUTE)
            + window.increase("dspool_telemetry_unattributed_operations_total", 10 * MINUTE)
        ),
        when="> 0",
        holds=lambda samples, window: samples > 0,
        lasting_min=0,
        severity="info",
        summary="Telemetry of pool {{ $labels.pool }} is incomplete",
        description=(
            "Samples were dropped or operations could not be attributed; operations themselves are not affected."
        ),
    ),
    Alert(
        name="DspoolMetricsMissing",
        value=f"max by (pool) ({REACHABLE})",
        measure=lambda window: window.level(REACHABLE),
        when="== 0",
        holds=lambda reachable, window: reachable == 0,
        lasting_min=1,
        severity="warning",
        summary="The metrics actor of pool {{ $labels.pool }} does not answer",
        description="Operations go on; what happened meanwhile is counted when it is back. Only GET /metrics can tell.",
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
