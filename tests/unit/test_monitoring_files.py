"""The Grafana dashboards and the Prometheus rules are what their tables say, and Prometheus understands them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dspool.telemetry.exposition import REACHABLE
from dspool.telemetry.metric_table import BY_NAME, METRICS
from dspool_console import alerts, grafana
from dspool_console.promql import level, quantile, rate

ROOT = Path(__file__).parents[2]
RULE_TESTS = ROOT / "tests" / "alerts" / "rules_test.yaml"
NAME = re.compile(r"(?<![:\w])dspool_[a-z_]+")


@pytest.fixture
def promtool():
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (make debian)")

    def run(*arguments):
        return subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    return run


def queries():
    for dashboard in grafana.DASHBOARDS:
        for panel in dashboard.panels:
            for _, expr in panel.queries:
                yield f"{dashboard.uid}: {panel.title}", expr


@pytest.mark.parametrize("dashboard", grafana.DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_the_committed_dashboard_is_what_the_table_makes(dashboard):
    assert dashboard.file.read_text() == grafana.as_json(dashboard), "run python -m dspool_console.grafana"


def test_every_metric_and_every_alert_is_in_the_documentation():
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    assert [metric.name for metric in METRICS if f"| `{metric.name}` | {metric.kind} |" not in page] == []
    assert [alert.name for alert in alerts.ALERTS if f"| {alert.name} | {alert.severity} |" not in page] == []


def test_there_is_no_dashboard_file_that_nothing_makes():
    made = {dashboard.file for dashboard in grafana.DASHBOARDS}
    assert set(grafana.FOLDER.glob("*.json")) == made


def test_the_committed_rules_are_what_the_table_makes():
    assert alerts.FILE.read_text() == alerts.rules(), "run python -m dspool_console.alerts"


def test_every_metric_is_on_a_dashboard():
    shown = {name for _, expr in queries() for name in NAME.findall(expr)}
    shown |= {name.removesuffix("_bucket") for name in shown}
    assert {metric.name for metric in METRICS} <= shown


def test_dashboards_and_alerts_name_only_metrics_of_the_table():
    exprs = [expr for _, expr in queries()]
    exprs += [rule.expr for rule in alerts.RECORDED] + [alert.expr for alert in alerts.ALERTS]
    known = set(BY_NAME) | {REACHABLE}
    known |= {f"{name}_{part}" for name in BY_NAME for part in ("bucket", "sum", "count")}
    for expr in exprs:
        assert set(NAME.findall(expr)) <= known, expr


def test_every_query_of_a_dashboard_keeps_to_the_chosen_pool():
    for where, expr in queries():
        selectors = re.findall(r"(?<![:\w])dspool_[a-z_]+(\{[^}]*\})?", expr)
        assert all('pool=~"$pool"' in chosen for chosen in selectors), where


def test_panels_of_a_dashboard_do_not_lie_on_each_other():
    for dashboard in grafana.DASHBOARDS:
        model = json.loads(grafana.as_json(dashboard))
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in model["panels"]]
        assert len(places) == len(set(places))
        assert len({panel["id"] for panel in model["panels"]}) == len(places)
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in model["panels"])


@pytest.mark.parametrize(
    "ask",
    [
        lambda: rate("dspool_nothing_total"),
        lambda: rate("dspool_queue_operations"),
        lambda: level("dspool_operations_total"),
        lambda: rate("dspool_operations_total", "session"),
        lambda: quantile(0.5, "dspool_operation_wait_seconds", "slot"),
    ],
)
def test_a_query_about_what_the_table_does_not_have_is_refused(ask):
    with pytest.raises(ValueError, match=r"there is no|has no label"):
        ask()


def test_prometheus_accepts_the_rules_and_the_example_configuration(promtool):
    for arguments in (("check", "rules", str(alerts.FILE)), ("check", "config", str(alerts.EXAMPLE))):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_not_otherwise(promtool):
    done = promtool("test", "rules", str(RULE_TESTS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires():
    cases = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    fired = {
        check["alertname"]
        for case in cases
        for check in case.get("alert_rule_test", [])
        if check["exp_alerts"]
    }
    assert fired == {alert.name for alert in alerts.ALERTS}
