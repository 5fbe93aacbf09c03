"""Grafana dashboards; the JSON files beside this one are made by `python -m dspool_console.grafana`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from dspool.telemetry.metric_table import METRICS, Metric
from dspool_console.promql import WINDOW, level, mean, quantile, rate

FOLDER: Final = Path(__file__).parent
POOL: Final = "$pool"
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 8


class GrafanaPanel(NamedTuple):
    """One time series panel. `unit` is Grafana's name for it; `queries` are (legend, PromQL)."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str = ""


class GrafanaDashboard(NamedTuple):
    uid: str
    title: str
    panels: tuple[GrafanaPanel, ...]

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.uid}.json"


_DURATION, _WAIT = "dspool_operation_duration_seconds", "dspool_operation_wait_seconds"
_OPERATIONS = "dspool_operations_total"
_SERVED = rate(_OPERATIONS, where='outcome=~"ok|error|timeout"', pool=POOL)
_FAILED = rate(_OPERATIONS, where='outcome=~"error|timeout"', pool=POOL)

OVERVIEW: Final = GrafanaDashboard(
    "dspool-overview",
    "dspool: pools",
    (
        GrafanaPanel(
            "Operations by outcome", "ops", (("{{outcome}}", rate(_OPERATIONS, "outcome", pool=POOL)),)
        ),
        GrafanaPanel(
            "Latency",
            "s",
            (
                *((f"p{q * 100:g}", quantile(q, _DURATION, pool=POOL)) for q in (0.5, 0.95, 0.99)),
                ("mean", mean(_DURATION, pool=POOL)),
            ),
            "Submit to end of served operations.",
        ),
        GrafanaPanel(
            "Wait for a slot",
            "s",
            (
                ("p50", quantile(0.5, _WAIT, pool=POOL)),
                ("p99", quantile(0.99, _WAIT, pool=POOL)),
                ("max_wait_s", level("dspool_queue_max_wait_seconds", pool=POOL)),
            ),
        ),
        GrafanaPanel("Error rate", "percentunit", (("{{pool}}", f"{_FAILED} / ({_SERVED} > 0)"),)),
        GrafanaPanel(
            "Errors by code", "ops", (("{{code}}", rate("dspool_operation_errors_total", "code", pool=POOL)),)
        ),
        GrafanaPanel("Health", "none", (("{{pool}}", level("dspool_pool_health_score", pool=POOL)),)),
        GrafanaPanel(
            "Workers",
            "none",
            (
                ("{{state}}", level("dspool_pool_workers", "state", pool=POOL)),
                ("overflow", level("dspool_pool_overflow_workers", pool=POOL)),
                ("desired", level("dspool_pool_desired_workers", pool=POOL)),
                ("maximum", level("dspool_pool_max_workers", pool=POOL)),
            ),
        ),
        GrafanaPanel(
            "Utilization", "percentunit", (("{{pool}}", level("dspool_pool_utilization_ratio", pool=POOL)),)
        ),
        GrafanaPanel(
            "Queue",
            "none",
            (
                ("waiting", level("dspool_queue_operations", pool=POOL)),
                ("running", level("dspool_running_operations", pool=POOL)),
            ),
        ),
        GrafanaPanel(
            "Operations by program",
            "ops",
            (("{{program}}", rate(_OPERATIONS, "program", pool=POOL)),),
        ),
        GrafanaPanel(
            "p99 by program", "s", (("{{program}}", quantile(0.99, _DURATION, "program", pool=POOL)),)
        ),
        GrafanaPanel(
            "Tokens",
            "none",
            (
                (
                    "{{program}} {{direction}}",
                    rate("dspool_lm_tokens_total", "program", "direction", pool=POOL),
                ),
            ),
        ),
        GrafanaPanel("Sessions", "none", (("{{pool}}", level("dspool_pool_sessions", pool=POOL)),)),
        GrafanaPanel(
            "State",
            "none",
            (("{{state}}", level("dspool_pool_state", "state", pool=POOL)),),
            "1: it is in it.",
        ),
        GrafanaPanel(
            "Failures and retries",
            "ops",
            (
                ("workers failed", rate("dspool_worker_failures_total", pool=POOL)),
                ("operations retried", rate("dspool_operation_retries_total", pool=POOL)),
            ),
        ),
    ),
)

WORKERS: Final = GrafanaDashboard(
    "dspool-workers",
    "dspool: workers",
    (
        GrafanaPanel(
            "Busy",
            "percentunit",
            (
                (
                    "{{slot}}",
                    f"{rate('dspool_worker_busy_seconds_total', 'slot', pool=POOL)} "
                    f"/ ({level('dspool_worker_operation_slots', 'slot', pool=POOL)} > 0)",
                ),
            ),
            "Slot-seconds used of those there are, by worker slot number.",
        ),
        GrafanaPanel(
            "Operations", "ops", (("{{slot}}", rate("dspool_worker_operations_total", "slot", pool=POOL)),)
        ),
        GrafanaPanel(
            "Failed operations",
            "ops",
            (
                (
                    "{{slot}}",
                    rate(
                        "dspool_worker_operations_total", "slot", where='outcome=~"error|timeout"', pool=POOL
                    ),
                ),
            ),
        ),
        GrafanaPanel(
            "Running", "none", (("{{slot}}", level("dspool_worker_running_operations", "slot", pool=POOL)),)
        ),
        GrafanaPanel("Sessions", "none", (("{{slot}}", level("dspool_worker_sessions", "slot", pool=POOL)),)),
        GrafanaPanel(
            "Memory",
            "bytes",
            (("{{slot}}", level("dspool_worker_resident_memory_bytes", "slot", pool=POOL)),),
        ),
    ),
)


def _every(metric: Metric) -> GrafanaPanel:
    """A panel for one row of the table."""
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels) or "{{pool}}"
    if metric.kind == "histogram":
        queries = tuple(
            (f"p{q * 100:g} {legend}", quantile(q, metric.name, *metric.labels, pool=POOL))
            for q in (0.5, 0.99)
        )
    elif metric.kind == "counter":
        by = rate(
            metric.name,
            *metric.labels,
            where='program=~".+"' if "program" in metric.labels else "",
            pool=POOL,
        )
        queries = ((legend, by),)
    else:
        queries = ((legend, level(metric.name, *metric.labels, pool=POOL)),)
    units = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit"}
    base = metric.name.removesuffix("_total").rsplit("_", 1)[-1]
    unit = units.get(base, "none") if metric.kind != "counter" else "cps"
    return GrafanaPanel(metric.name, unit, queries, metric.help)


EVERYTHING: Final = GrafanaDashboard("dspool-metrics", "dspool: every metric", tuple(map(_every, METRICS)))

DASHBOARDS: Final = (OVERVIEW, WORKERS, EVERYTHING)


def as_json(dashboard: GrafanaDashboard) -> str:
    """What Grafana imports or provisions."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    model: dict[str, Any] = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["dspool"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {
                    "name": "pool",
                    "type": "query",
                    "label": "Pool",
                    "datasource": source,
                    "query": {"query": "label_values(dspool_pool_health_score, pool)", "refId": "pool"},
                    "refresh": 2,
                    "includeAll": True,
                    "allValue": ".+",
                    "multi": True,
                },
            ]
        },
        "panels": [_panel(number, panel, source) for number, panel in enumerate(dashboard.panels)],
    }
    return json.dumps(model, indent=1) + "\n"


def _panel(number: int, panel: GrafanaPanel, source: dict[str, str]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": source,
        "gridPos": {
            "h": _HEIGHT,
            "w": _WIDTH,
            "x": number % _COLUMNS * _WIDTH,
            "y": number // _COLUMNS * _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": source, "expr": expr, "legendFormat": legend}
            for at, (legend, expr) in enumerate(panel.queries)
        ],
    }


__all__ = ["DASHBOARDS", "POOL", "WINDOW", "GrafanaDashboard", "GrafanaPanel", "as_json"]
