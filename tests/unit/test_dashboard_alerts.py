"""Alerts without a Prometheus: the same table, evaluated here."""

from __future__ import annotations

import math

import pytest

from dspool.telemetry.exposition import REACHABLE
from dspool_console.alerts import ALERTS, RECORDED
from dspool_console.alerts.promql import NotUnderstood, PromSeries, parse
from dspool_console.alerts.watch import NEEDED, AlertWatch, sample_of
from tests.dashboard_demo import SimulatedPool

RECORDS = {rule.name: rule.expr for rule in RECORDED}


def labels(**named):
    return frozenset(named.items())


def series_of(name, *values, every=15.0, **named):
    series = PromSeries(660.0)
    for index, value in enumerate(values):
        series.add(index * every, {name: {labels(pool="p", **named): value}})
    return series


def value(text, series):
    found = parse(text).vector(series)
    return next(iter(found.values())) if found else None


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_and_its_value_can_be_evaluated_here(alert):
    assert parse(alert.expr, RECORDS).names
    assert parse(alert.value, RECORDS).names <= parse(alert.expr, RECORDS).names


@pytest.mark.parametrize(
    "text", ["avg(x)", "rate(x)", "x[5m]", "x or y", "rate(x[5q])", "max by (pool) (x", "x $ y", ""]
)
def test_what_is_not_understood_is_refused_and_not_guessed(text):
    with pytest.raises(NotUnderstood):
        parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rate(x[5m])", 2.0),
        ("increase(x[5m])", 60.0),
        ("max by (pool) (rate(x[5m])) > 1", 2.0),
        ("max by (pool) (rate(x[5m])) > 3", None),
        ("0.5 * rate(x[5m]) + 1", 2.0),
        ("x / (x > 1e9)", None),
        ("x == 60 and x > 1", 60.0),
        ('x{way=~"a|b"}', 60.0),
        ('x{way!~"a|b"}', None),
        ('x{way!="a"}', None),
    ],
)
def test_expressions_mean_what_they_mean_to_a_prometheus(text, expected):
    assert value(text, series_of("x", 0.0, 30.0, 60.0, way="a")) == expected


def test_a_counter_that_begins_anew_has_not_fallen():
    assert value("increase(x[5m])", series_of("x", 100.0, 110.0, 4.0, 9.0)) == 19.0


def test_a_quantile_lies_in_its_bucket():
    series = PromSeries(660.0)
    for at, number in ((0.0, 0.0), (15.0, 100.0)):
        buckets = {
            labels(pool="p", le=le): number * share
            for le, share in (("0.1", 0.5), ("1", 0.99), ("+Inf", 1.0))
        }
        series.add(at, {"d_bucket": buckets})
    found = value("histogram_quantile(0.95, sum by (pool, le) (rate(d_bucket[5m])))", series)
    assert 0.1 < found < 1.0
    assert math.isnan(value("histogram_quantile(0.95, d_bucket)", series_of("d_bucket", 0.0, le="+Inf")))


def test_a_sample_has_all_that_the_alerts_read():
    pool = SimulatedPool(workers=2, history_s=3)
    reading = {}

    async def read():
        reading["it"] = await pool.snapshot()

    import asyncio

    asyncio.run(read())
    assert sample_of("default", reading["it"]).keys() >= NEEDED
    assert sample_of("default", None).keys() == {REACHABLE}


class Watch:
    """A watch whose time goes on when a test says so."""

    def __init__(self):
        self.now = 0.0
        self.pool = SimulatedPool(workers=2, history_s=3)
        self.watch = AlertWatch(
            "default", self.pool.snapshot, clock=lambda: self.now, wall=lambda: 1e9 + self.now
        )

    async def pass_s(self, seconds, **status):
        import msgspec

        for _ in range(int(seconds / 15)):
            self.now += 15.0
            reading = await self.pool.snapshot()
            changed = msgspec.structs.replace(reading.status, **status)
            self.watch.take(msgspec.structs.replace(reading, status=changed))

    def state(self, name):
        return next(alert for alert in self.watch.alerts if alert.name == name)


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
    assert [seen.number for seen in watch.watch.changes] == [-1 - n for n in range(watch.watch.told)]
    about = [seen for seen in watch.watch.changes if seen.metadata["alert"] == "DspoolPoolNotReady"]
    assert [seen.event for seen in about] == ["alert.firing", "alert.resolved"]


async def test_what_the_metrics_cannot_tell_is_unknown_and_their_absence_is_an_alert():
    watch = Watch()
    await watch.pass_s(30)
    for _ in range(6):
        watch.now += 15.0
        watch.watch.take(None)
    assert watch.state("DspoolMetricsMissing").state == "firing"
    assert watch.state("DspoolPoolNotReady").state == "unknown"


async def test_workers_that_die_again_and_again_fire_at_once():
    watch = Watch()
    await watch.pass_s(30, failures=1)
    await watch.pass_s(15, failures=9)
    assert watch.state("DspoolCrashLoop").state == "firing"
    assert watch.state("DspoolCrashLoop").value == 8.0
