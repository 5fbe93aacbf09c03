"""The alerts in Python: over the scenarios of tests/alerts/rules_test.yaml they say what Prometheus says."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
import yaml

from dspool.core.admission.silences import KEPT, AlertSilence
from dspool.store.store import SessionStore
from dspool.telemetry.exposition import REACHABLE
from dspool.telemetry.metric_table import BY_NAME
from dspool_console.alerts import ALERTS, METRICS_READ
from dspool_console.alerts.watch import SPAN_S, AlertWatch
from dspool_console.alerts.window import SampleWindow, sample_of
from dspool_console.dashboard import view
from tests.simulated_pool import SimulatedPool

RULE_TESTS = Path(__file__).parents[1] / "alerts" / "rules_test.yaml"
# All as text: to YAML `0x60` is a number.
RULES = yaml.load(RULE_TESTS.read_text(), yaml.BaseLoader)
STEP_S = 30


def numbers(notation):
    """Values in the notation of `promtool`: `0+10x3` are 0 10 20 30, `7x2` are 7 7 7, `_x1` are none and none."""
    for part in notation.split():
        begin, step, repeats = re.fullmatch(r"(_|\d+(?:\.\d+)?)(?:\+(\d+))?(?:x(\d+))?", part).groups()
        for index in range(int(repeats or 0) + 1):
            yield None if begin == "_" else float(begin) + float(step or 0) * index


class Scenario:
    """One case of the file: what each pool's samples are at each step, and what the alerts then say in Python."""

    def __init__(self, case):
        self.case = case
        self.name = case["name"]
        assert case["interval"] == f"{STEP_S}s"
        series = [(one["series"], list(numbers(one["values"]))) for one in case["input_series"]]
        self.steps = min(len(values) for _, values in series)
        self.samples = {}
        """By pool, a sample a step."""
        for text, values in series:
            name, labels = re.fullmatch(r"(\w+)\{(.*)\}", text).groups()
            labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            metric = name.removesuffix("_bucket")
            names = BY_NAME[metric].labels if metric != REACHABLE else ()
            key = tuple(labels[label] for label in (*names, *(["le"] if metric != name else [])))
            samples = self.samples.setdefault(labels["pool"], [{} for _ in range(self.steps)])
            for sample, value in zip(samples, values, strict=False):
                if value is not None:
                    sample.setdefault(metric, {})[key] = value

    def alerts(self):
        """(step, pool, alert) -> the alert, if it is pending or fires."""
        alerts = {}
        for pool, samples in self.samples.items():
            clock = itertools.count(0.0, STEP_S)
            watch = AlertWatch(pool, None, clock=clock.__next__)
            for step, sample in enumerate(samples):
                watch.judge(sample)
                for alert in watch.alerts:
                    if alert.state in ("pending", "firing"):
                        alerts[step, pool, alert.name] = alert
        return alerts


SCENARIOS = [Scenario(case) for case in RULES["tests"]]


def step_of(text):
    minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text).groups()
    return (int(minutes or 0) * 60 + int(seconds or 0)) // STEP_S


@pytest.fixture(scope="module")
def alerts():
    return {scenario.name: scenario.alerts() for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_an_alert_in_python_fires_when_the_scenario_says_and_not_otherwise(scenario, alerts):
    for check in scenario.case.get("alert_rule_test", []):
        fires = {
            pool: alert.summary
            for (step, pool, name), alert in alerts[scenario.name].items()
            if (step, name, alert.state) == (step_of(check["eval_time"]), check["alertname"], "firing")
        }
        # Prometheus writes 29.6s, we 29.6 s.
        assert {pool: re.sub(r"(?<=\d) (?=(%|ms|s)( |$))", "", text) for pool, text in fires.items()} == {
            alert["exp_labels"]["pool"]: alert["exp_annotations"]["summary"] for alert in check["exp_alerts"]
        }


def test_prometheus_says_the_same_at_each_step(alerts, tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (make debian)")
    tests = []
    for scenario in SCENARIOS:
        checks = [
            {"expr": "ALERTS", "eval_time": f"{step * STEP_S}s", "exp_samples": []}
            for step in range(scenario.steps)
        ]
        for (step, pool, name), alert in alerts[scenario.name].items():
            labels = (
                f'alertname="{name}", alertstate="{alert.state}", pool="{pool}", severity="{alert.severity}"'
            )
            checks[step]["exp_samples"].append({"labels": f"ALERTS{{{labels}}}", "value": 1})
        tests.append(
            {key: scenario.case[key] for key in ("name", "interval", "input_series")}
            | {"promql_expr_test": checks}
        )
    rules = [str((RULE_TESTS.parent / file).resolve()) for file in RULES["rule_files"]]
    file = tmp_path / "steps.yaml"
    file.write_text(yaml.safe_dump(RULES | {"rule_files": rules, "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_each_alert_begins_in_some_scenario_and_ends_there(alert, alerts):
    ends = False
    for scenario in SCENARIOS:
        for pool in scenario.samples:
            life = [alerts[scenario.name].get((step, pool, alert.name)) for step in range(scenario.steps)]
            fires = [step for step, now in enumerate(life) if now and now.state == "firing"]
            if fires and life[-1] is None:
                ends = True
                assert sum(now is not None for now in life[: fires[0]]) == alert.lasting_min * 60 // STEP_S
    assert ends


def test_a_window_holds_what_the_alert_that_looks_back_longest_needs():
    minutes = [int(found) for alert in ALERTS for found in re.findall(r"\[(\d+)m\]", alert.expr)]
    assert max(minutes) * 60 == SPAN_S


# --- what the alerts read ---


def test_a_quantile_lies_in_its_bucket():
    metric = "dspool_operation_wait_seconds"
    buckets = (("0.1", 0.5), ("1", 0.99), ("+Inf", 1.0))
    samples = [
        (at, {metric: {("qa", le): count * share for le, share in buckets}})
        for at, count in ((0.0, 0.0), (15.0, 100.0))
    ]
    assert 0.1 < SampleWindow(samples, 15.0).quantile(0.95, metric, 300) < 1.0
    assert SampleWindow(samples, 15.0).quantile(0.995, metric, 300) == 1.0
    assert math.isnan(SampleWindow(samples[:1], 0.0).quantile(0.95, metric, 300))


async def test_a_sample_has_all_that_the_alerts_read():
    snapshot = await SimulatedPool(workers=2, history_s=3).snapshot()
    sample = sample_of(snapshot, METRICS_READ)
    assert sample.keys() == METRICS_READ
    assert all(sample.values())
    assert sample_of(None, METRICS_READ) == {REACHABLE: {(): 0.0}}


# --- the watch ---


class Watch:
    """A watch whose time goes on when a test says so."""

    def __init__(self):
        self.now = 0.0
        self.pool = SimulatedPool(workers=2, history_s=3)
        self.watch = AlertWatch(
            "default", self.pool.snapshot, clock=lambda: self.now, wall=lambda: 1e9 + self.now
        )

    async def pass_s(self, seconds, *, away=False, **status):
        for _ in range(int(seconds / 15)):
            self.now += 15.0
            snapshot = await self.pool.snapshot()
            changed = msgspec.structs.replace(snapshot.status, **status)
            self.watch.take(None if away else msgspec.structs.replace(snapshot, status=changed))

    def state(self, name):
        return next(alert for alert in self.watch.alerts if alert.name == name)

    def events(self, name):
        return [change.event for change in self.watch.changes if change.metadata["alert"] == name]


async def test_an_alert_is_pending_before_it_fires_and_tells_when_it_is_over():
    watch = Watch()
    await watch.pass_s(30)
    assert watch.state("DspoolPoolNotReady").state == "ok"
    await watch.pass_s(30, ready=False)
    assert watch.state("DspoolPoolNotReady").state == "pending"
    await watch.pass_s(60, ready=False)
    fires = watch.state("DspoolPoolNotReady")
    assert (fires.state, fires.value, fires.severity) == ("firing", 0.0, "critical")
    assert fires.since == 1e9 + 45.0
    assert "default" in fires.summary
    assert (watch.watch.summary()["firing"], watch.watch.summary()["worst"]) == (1, "critical")
    await watch.pass_s(15)
    assert watch.state("DspoolPoolNotReady").state == "ok"
    assert [change.number for change in watch.watch.changes] == [-1 - n for n in range(watch.watch.told)]
    assert watch.events("DspoolPoolNotReady") == ["alert.firing", "alert.resolved"]


async def test_a_silenced_alert_fires_and_is_shown_but_counts_for_nobody_until_its_end():
    watch = Watch()
    await watch.pass_s(90, ready=False)
    until = 1e9 + watch.now + 60.0
    silence = AlertSilence("the database is being moved", 1e9, until, "ada")
    version = watch.watch.version
    watch.watch.hear({"DspoolPoolNotReady": silence})
    fires = watch.state("DspoolPoolNotReady")
    assert (fires.state, fires.silence) == ("firing", silence)
    assert watch.watch.version == version + 1, "viewers are told"
    summary = watch.watch.summary()
    assert (summary["firing"], summary["worst"], summary["silenced"]) == (0, None, 1)
    quiet = view.diagnosis(None, None, watch.pool.config, watch.watch.alerts)
    await watch.pass_s(45, ready=False)
    assert watch.state("DspoolPoolNotReady").silence == silence
    await watch.pass_s(15, ready=False)
    assert watch.state("DspoolPoolNotReady").silence is None
    assert watch.watch.summary()["worst"] == "critical"
    loud = view.diagnosis(None, None, watch.pool.config, watch.watch.alerts)
    assert (quiet.state, loud.state) == ("impaired", "unhealthy"), "health hears of it again"
    assert watch.events("DspoolPoolNotReady") == ["alert.firing"], "a silence is no end of an alert"


async def test_silences_outlive_the_store_and_those_that_are_over_are_forgotten(tmp_path):
    for now in (100.0, 140.0):
        store = SessionStore(f"sqlite:///{tmp_path}/dspool.db", clock=lambda now=now: now)
        await store.open()
        for number in range(KEPT + 3):
            kept = await store.silence_alert("p", f"a{number}", AlertSilence("why", now, now + 50.0, "ada"))
        assert len(kept) == KEPT
        await store.close()
    store = SessionStore(f"sqlite:///{tmp_path}/dspool.db", clock=lambda: 200.0)
    await store.open()
    assert await store.silence_alert("p", "a9", None) == {}
    await store.close()


async def test_what_the_metrics_cannot_tell_is_unknown_and_their_absence_is_an_alert():
    watch = Watch()
    await watch.pass_s(30)
    await watch.pass_s(90, away=True)
    assert watch.state("DspoolMetricsMissing").state == "firing"
    assert watch.state("DspoolPoolNotReady").state == "unknown"


async def test_an_alert_that_still_fires_when_the_metrics_are_back_tells_nothing_new():
    watch = Watch()
    await watch.pass_s(90, ready=False)
    await watch.pass_s(30, away=True)
    await watch.pass_s(15, ready=False)
    assert watch.state("DspoolPoolNotReady").state == "firing"
    assert watch.events("DspoolPoolNotReady") == ["alert.firing"]


async def test_workers_that_die_again_and_again_fire_at_once():
    watch = Watch()
    await watch.pass_s(30, failures=1)
    await watch.pass_s(15, failures=9)
    assert watch.state("DspoolCrashLoop").state == "firing"
    assert watch.state("DspoolCrashLoop").value == 8.0
