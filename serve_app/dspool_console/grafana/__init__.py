"""Grafana dashboards; the JSON files beside this one are made by `python -m dspool_console.grafana`."""

from __future__ import annotations

import json
from functools import partial
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
_OPERATIONS, _WORKER_OPERATIONS = "dspool_operations_total", "dspool_worker_operations_total"
_rate, _level = partial(rate, pool=POOL), partial(level, pool=POOL)
_quantile, _mean = partial(quantile, pool=POOL), partial(mean, pool=POOL)
_FAILED, _SERVED = 'outcome=~"error|timeout"', 'outcome=~"ok|error|timeout"'


def _panel(title: str, unit: str, *queries: tuple[str, str], description: str = "") -> GrafanaPanel:
    return GrafanaPanel(title, unit, queries, description)


OVERVIEW: Final = GrafanaDashboard(
    "dspool-overview",
    "dspool: pools",
    (
        _panel("Operations by outcome", "ops", ("{{outcome}}", _rate(_OPERATIONS, "outcome"))),
        _panel(
            "Latency",
            "s",
            *((f"p{q * 100:g}", _quantile(q, _DURATION)) for q in (0.5, 0.95, 0.99)),
            ("mean", _mean(_DURATION)),
            description="Submit to end of served operations.",
        ),
        _panel(
            "Wait for a slot",
            "s",
            ("p50", _quantile(0.5, _WAIT)),
            ("p99", _quantile(0.99, _WAIT)),
            ("max_wait_s", _level("dspool_queue_max_wait_seconds")),
        ),
        _panel(
            "Error rate",
            "percentunit",
            ("{{pool}}", f"{_rate(_OPERATIONS, where=_FAILED)} / ({_rate(_OPERATIONS, where=_SERVED)} > 0)"),
        ),
        _panel("Errors by code", "ops", ("{{code}}", _rate("dspool_operation_errors_total", "code"))),
        _panel("Health", "none", ("{{pool}}", _level("dspool_pool_health_score"))),
        _panel(
            "Workers",
            "none",
            ("{{state}}", _level("dspool_pool_workers", "state")),
            ("overflow", _level("dspool_pool_overflow_workers")),
            ("desired", _level("dspool_pool_desired_workers")),
            ("maximum", _level("dspool_pool_max_workers")),
        ),
        _panel("Utilization", "percentunit", ("{{pool}}", _level("dspool_pool_utilization_ratio"))),
        _panel(
            "Queue",
            "none",
            ("waiting", _level("dspool_queue_operations")),
            ("running", _level("dspool_running_operations")),
        ),
        _panel("Operations by program", "ops", ("{{program}}", _rate(_OPERATIONS, "program"))),
        _panel("p99 by program", "s", ("{{program}}", _quantile(0.99, _DURATION, "program"))),
        _panel(
            "Tokens",
            "none",
            ("{{program}} {{direction}}", _rate("dspool_lm_tokens_total", "program", "direction")),
        ),
        _panel("Sessions", "none", ("{{pool}}", _level("dspool_pool_sessions"))),
        _panel(
            "State",
            "none",
            ("{{state}}", _level("dspool_pool_state", "state")),
            description="1: it is in it.",
        ),
        _panel(
            "Failures and retries",
            "ops",
            ("workers failed", _rate("dspool_worker_failures_total")),
            ("operations retried", _rate("dspool_operation_retries_total")),
        ),
    ),
)

WORKERS: Final = GrafanaDashboard(
    "dspool-workers",
    "dspool: workers",
    (
        _panel(
            "Busy",
            "percentunit",
            (
                "{{slot}}",
                f"{_rate('dspool_worker_busy_seconds_total', 'slot')} "
                f"/ ({_level('dspool_worker_operation_slots', 'slot')} > 0)",
            ),
            description="Slot-seconds used of those there are, by worker slot number.",
        ),
        _panel("Operations", "ops", ("{{slot}}", _rate(_WORKER_OPERATIONS, "slot"))),
        _panel("Failed operations", "ops", ("{{slot}}", _rate(_WORKER_OPERATIONS, "slot", where=_FAILED))),
        _panel("Running", "none", ("{{slot}}", _level("dspool_worker_running_operations", "slot"))),
        _panel("Sessions", "none", ("{{slot}}", _level("dspool_worker_sessions", "slot"))),
        _panel("Memory", "bytes", ("{{slot}}", _level("dspool_worker_resident_memory_bytes", "slot"))),
    ),
)


def _panel_of(metric: Metric) -> GrafanaPanel:
    """A panel for one row of the table."""
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels) or "{{pool}}"
    queries: tuple[tuple[str, str], ...]
    if metric.kind == "histogram":
        queries = tuple(
            (f"p{q * 100:g} {legend}", _quantile(q, metric.name, *metric.labels)) for q in (0.5, 0.99)
        )
    elif metric.kind == "counter":
        where = 'program=~".+"' if "program" in metric.labels else ""
        queries = ((legend, _rate(metric.name, *metric.labels, where=where)),)
    else:
        queries = ((legend, _level(metric.name, *metric.labels)),)
    units = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit"}
    unit = "cps" if metric.kind == "counter" else units.get(metric.name.rsplit("_", 1)[-1], "none")
    return GrafanaPanel(metric.name, unit, queries, metric.help)


EVERYTHING: Final = GrafanaDashboard("dspool-metrics", "dspool: every metric", tuple(map(_panel_of, METRICS)))

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
        "panels": [_panel_json(number, panel, source) for number, panel in enumerate(dashboard.panels)],
    }
    return json.dumps(model, indent=1) + "\n"


def _panel_json(number: int, panel: GrafanaPanel, source: dict[str, str]) -> dict[str, Any]:
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
