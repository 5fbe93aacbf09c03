"""Metrics, and the alerts that are made from them."""

from __future__ import annotations

from docs._generators.markdown import table as markdown_table
from dspool.telemetry.metric_table import METRICS
from dspool_console.alerts import ALERTS


def table() -> str:
    rows = [(f"`{metric.name}`", metric.kind, ", ".join(metric.labels), metric.help) for metric in METRICS]
    return markdown_table(("metric", "kind", "labels besides `pool`", "meaning"), rows)


def alerts_table() -> str:
    rows = [(alert.name, alert.severity, alert.lasting, alert.description) for alert in ALERTS]
    return markdown_table(("alert", "severity", "after", "what to know"), rows)
