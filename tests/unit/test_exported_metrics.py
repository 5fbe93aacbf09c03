"""The table of metrics, and its export as Prometheus text and through Ray."""

from __future__ import annotations

import math
import re
import shutil
import subprocess

import pytest
from measured import Measured
from msgspec import structs

from dspool.core.metrics.histogram import Histogram
from dspool.core.metrics.tally import MAX_CODES, OTHER, OUTCOMES
from dspool.errors import StoreFailed
from dspool.runtime import exported
from dspool.runtime.exported import REPEAT_S, RayMetrics, export_interval_s
from dspool.telemetry.event_log import FORWARDED
from dspool.telemetry.exposition import REACHABLE, cumulative, expose
from dspool.telemetry.metric_table import BOUNDARIES, BY_NAME, METRICS, UNATTRIBUTED

SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)*)\} (\S+)')


def samples(page: bytes) -> dict[tuple[str, str], float]:
    """Value by (name, labels as they stand) of a page, each line of which must be well-formed."""
    found = {}
    for line in page.decode().splitlines():
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match, line
            key = (match[1], match[2])
            assert key not in found, line
            found[key] = float(match[3])
    return found


def value(page: bytes, name: str, **labels: str) -> float:
    return samples(page)[name, ",".join(f'{key}="{text}"' for key, text in labels.items())]


# --- the table ---


def test_names_follow_prometheus():
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert re.fullmatch(r"dspool_[a-z]+(_[a-z]+)+", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.kind != "histogram" or metric.name.endswith("_seconds"), metric.name
        assert metric.help.endswith("."), metric.name


def test_workers_that_should_have_been_forked_and_were_not_are_counted():
    for starts, number in ((("fork", "exec"), 0), (("fork", "exec: the parent hung"), 1)):
        page = expose({"default": Measured().snapshot(starts=starts)})
        assert value(page, "dspool_pool_fallback_workers", pool="default") == number


def test_no_label_is_unbounded():
    assert {label for metric in METRICS for label in metric.labels} <= {
        "program",
        "outcome",
        "code",
        "event",
        "slot",
        "state",
        "direction",
        "limit",
        "model",
    }


def test_every_event_that_leaves_its_process_is_counted_from_zero_on():
    snapshot = structs.replace(Measured().snapshot(), events={"worker.fallback": 2, "operation.stop": 9})
    counted = {labels[0]: number for labels, number in BY_NAME["dspool_events_total"].read(snapshot)}
    assert counted == {**dict.fromkeys(FORWARDED, 0), "worker.fallback": 2}


def test_every_metric_of_a_pool_that_did_something_has_a_value_with_its_labels():
    measured = (
        Measured()
        .run(3, usage={"m": {"prompt_tokens": 5, "cost_usd": 0.5}})
        .run(outcome="error", code="model_error")
    )
    snapshot = measured.snapshot()
    for metric in METRICS:
        series = list(metric.read(snapshot))
        assert series, metric.name
        for labels, number in series:
            assert len(labels) == len(metric.labels), metric.name
            assert isinstance(number, Histogram) == (metric.kind == "histogram"), metric.name


# --- the text format ---


def test_promtool_finds_nothing_wrong_with_the_page():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (make debian)")
    measured = Measured().run(3).run(outcome="error", code="model_error")
    page = expose({"default": measured.snapshot(), "gone": None})
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == b""


def test_operations_count_by_program_and_outcome():
    page = expose({"p": Measured("p").run(5).run(2, program="sum", outcome="timeout").snapshot()})
    assert value(page, "dspool_operations_total", pool="p", program="qa", outcome="ok") == 5
    assert value(page, "dspool_operations_total", pool="p", program="sum", outcome="timeout") == 2
    assert value(page, "dspool_operations_total", pool="p", program="sum", outcome="ok") == 0


def test_sums_over_programs_are_exact_even_if_a_delta_was_lost():
    measured = Measured().run(5)
    measured.client.take_delta(measured.now)  # never delivered
    page = expose({"default": measured.run(2).snapshot()})
    total = sum(number for (name, _), number in samples(page).items() if name == "dspool_operations_total")
    assert total == 7
    lost = value(page, "dspool_operations_total", pool="default", program=UNATTRIBUTED, outcome="ok")
    assert lost == 5


def test_histograms_have_ascending_buckets_that_end_with_the_count():
    measured = Measured()
    for seconds in (0.0, 0.0007, 0.02, 0.02, 0.7, 4000.0):
        measured.run(seconds=seconds, wait=0.0)
    page = samples(expose({"default": measured.snapshot()}))
    name = "dspool_operation_duration_seconds"
    buckets = [number for (found, _), number in page.items() if found == f"{name}_bucket"]
    assert buckets == sorted(buckets)
    assert len(buckets) == len(BOUNDARIES) + 1
    count = page[f"{name}_count", 'pool="default",program="qa"']
    assert buckets[-1] == count == 6
    assert page[f"{name}_sum", 'pool="default",program="qa"'] == pytest.approx(4000.7407)
    assert page[f"{name}_bucket", 'pool="default",program="qa",le="0.001"'] == 2
    assert page[f"{name}_bucket", 'pool="default",program="qa",le="0.025"'] == 4
    assert page[f"{name}_bucket", 'pool="default",program="qa",le="300"'] == 5


def test_a_value_on_a_boundary_is_within_it():
    histogram = Histogram()
    for boundary in BOUNDARIES:
        histogram.record(boundary)
    assert [number for _, number in cumulative(histogram)] == [
        *range(1, len(BOUNDARIES) + 1),
        len(BOUNDARIES),
    ]


def test_labels_are_escaped():
    page = expose({'a"b\\c\nd': Measured("x").snapshot()}).decode()
    assert 'pool="a\\"b\\\\c\\nd"' in page
    samples(page.encode())


def test_large_counters_are_written_to_the_last_digit():
    measured = Measured()
    measured.run(usage={"m": {"prompt_tokens": 123_456_789_012}})
    page = expose({"default": measured.snapshot()}).decode()
    assert 'dspool_lm_tokens_total{pool="default",program="qa",direction="input"} 123456789012\n' in page


def test_a_pool_whose_metrics_actor_is_away_is_named_and_has_nothing_else():
    page = expose({"here": Measured("here").snapshot(), "away": None})
    assert value(page, REACHABLE, pool="away") == 0
    assert value(page, REACHABLE, pool="here") == 1
    assert [name for (name, labels) in samples(page) if 'pool="away"' in labels] == [REACHABLE]


def test_what_only_the_supervisor_knows_is_missing_while_it_is_silent():
    measured = Measured()
    measured.told = False
    names = {name for name, _ in samples(expose({"default": measured.snapshot()}))}
    assert "dspool_pool_ready" not in names
    assert "dspool_pool_health_score" in names


def test_exactly_one_state_is_on():
    page = samples(expose({"default": Measured().snapshot(state="degraded")}))
    states = {labels: number for (name, labels), number in page.items() if name == "dspool_pool_state"}
    assert states.pop('pool="default",state="degraded"') == 1
    assert set(states.values()) == {0}


def test_the_number_of_series_is_bounded_however_many_programs_and_codes_there_are():
    measured = Measured()
    for number in range(300):
        measured.run(program=f"p{number}", outcome="error", code=f"code{number}")
    found = samples(expose({"default": measured.snapshot()}))
    programs = {labels for (name, labels) in found if name == "dspool_operations_total"}
    assert len(programs) <= 66 * len(OUTCOMES)
    assert any(OTHER in labels for labels in programs)
    codes = [labels for name, labels in found if name == "dspool_operation_errors_total"]
    assert len(codes) <= MAX_CODES + len((OTHER, StoreFailed.code)), (
        "a store's failures have a series from the start"
    )
    assert len(found) < 4_000


# --- through Ray ---


class Told:
    """Stands for Ray's Counter and Gauge: remembers what it was told."""

    def __init__(self, name, description="", tag_keys=()):
        self.name, self.keys = name, tag_keys
        self.told: list[tuple[float, dict[str, str]]] = []
        self.started: list[dict[str, str]] = []

    def start(self, tags):
        assert set(tags) == set(self.keys)
        self.started.append(tags)

    def inc(self, amount, tags):
        assert amount > 0
        assert set(tags) == set(self.keys)
        self.told.append((amount, tags))

    def set(self, number, tags):
        assert set(tags) == set(self.keys)
        self.told.append((number, tags))


@pytest.fixture
def rays(monkeypatch):
    made: dict[str, Told] = {}

    def make(*arguments):
        made[arguments[0]] = Told(*arguments)
        return made[arguments[0]]

    monkeypatch.setattr(exported, "StartedCounter", make)
    monkeypatch.setattr(exported, "Gauge", make)
    return made


OK = {"pool": "default", "program": "qa", "outcome": "ok"}


def test_rays_counters_get_what_came_since_the_last_tick(rays):
    measured, exported = Measured(), RayMetrics("default")
    exported.export(measured.run(5).snapshot(), 1.0)
    exported.export(measured.snapshot(), 2.0)
    exported.export(measured.run(2).snapshot(), 3.0)
    assert [amount for amount, tags in rays["dspool_operations_total"].told if tags == OK] == [5, 2]


def test_rays_counters_go_on_when_the_one_who_counts_began_again(rays):
    exported = RayMetrics("default")
    exported.export(Measured().snapshot(failures=7), 1.0)
    exported.export(Measured().snapshot(failures=2), 2.0)
    exported.export(Measured().snapshot(failures=3), 3.0)
    assert [amount for amount, _ in rays["dspool_worker_failures_total"].told] == [7, 2, 1]


def test_rays_histograms_are_cumulative_buckets_sum_and_count(rays):
    measured, exported = Measured(), RayMetrics("default")
    exported.export(measured.run(3, seconds=0.2, wait=0.0).run(seconds=20.0, wait=0.0).snapshot(), 1.0)
    name = "dspool_operation_duration_seconds"
    buckets = {tags["le"]: number for number, tags in rays[f"{name}_bucket"].told}
    assert (buckets["0.1"], buckets["0.25"], buckets["30"], buckets["+Inf"]) == (0, 3, 4, 4)
    assert rays[f"{name}_count"].told == [(4, {"pool": "default", "program": "qa"})]
    assert rays[f"{name}_sum"].told[0][0] == pytest.approx(20.6)


def test_a_gauge_that_did_not_change_is_repeated_before_ray_forgets_it(rays):
    exported, snapshot = RayMetrics("default"), Measured().snapshot()
    for now in (1.0, 2.0, 1.0 + REPEAT_S):
        exported.export(snapshot, now)
    assert len(rays["dspool_pool_max_workers"].told) == 2


def test_the_zero_of_a_counter_is_repeated_since_rays_agent_may_have_missed_the_first(rays):
    measured, exported = Measured(), RayMetrics("default")
    for now in (1.0, 2.0, 1.0 + REPEAT_S):
        exported.export(measured.snapshot(), now)
    failures = rays["dspool_worker_failures_total"]
    assert len(failures.started) == 2
    exported.export(measured.snapshot(failures=1), 9.0)
    exported.export(measured.snapshot(failures=1), 99.0)
    assert len(failures.started) == 2
    assert [amount for amount, _ in failures.told] == [1.0]


def test_every_metric_reaches_ray_and_counters_begin_at_zero(rays):
    measured, exported = Measured(), RayMetrics("default")
    measured.run(3, usage={"m": {"prompt_tokens": 5, "cost_usd": 0.5}}).run(
        outcome="error", code="model_error"
    )
    exported.export(measured.snapshot(), 1.0)
    exported.export(measured.snapshot(), 2.0)
    assert all(metric.told or metric.started for metric in rays.values())
    assert rays["dspool_worker_failures_total"].started == [{"pool": "default"}]
    assert rays["dspool_worker_failures_total"].told == []
    assert len(rays["dspool_operations_total"].started) == 2 * len(OUTCOMES)


@pytest.mark.parametrize(
    ("tick_s", "told", "every_s"),
    [(1.0, {}, 5.0), (1.0, {"RAY_metrics_report_interval_ms": "1000"}, 1.0), (30.0, {}, 30.0)],
)
def test_ray_is_given_the_figures_twice_for_each_time_it_gives_them_on(tick_s, told, every_s):
    assert export_interval_s(tick_s, told) == every_s


def test_ray_is_given_no_figures_where_it_collects_none():
    assert export_interval_s(1.0, {"RAY_enable_metrics_collection": "0"}) == math.inf
