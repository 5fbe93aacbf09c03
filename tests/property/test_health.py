from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dspool.core.metrics.health import ERROR_OBJECTIVE, HealthInput, health

share = st.floats(0.0, 1.0)
seconds = st.floats(0.0, 1000.0)
inputs = st.builds(
    HealthInput,
    desired=st.integers(0, 50),
    ready=st.integers(0, 50),
    lost=st.integers(0, 50),
    starting=st.booleans(),
    error_rate=share,
    latency_p99_s=seconds,
    latency_objective_s=st.none() | st.floats(0.001, 100.0),
    wait_p95_s=seconds,
    max_wait_s=st.floats(0.0, 10.0),
    utilization=share,
    queue_fill=share,
    rejected_rate=share,
)
IDLE = HealthInput(desired=4, ready=4)

worse = st.one_of(
    st.tuples(st.sampled_from(["error_rate", "utilization", "queue_fill", "rejected_rate"]), share),
    st.tuples(st.sampled_from(["latency_p99_s", "wait_p95_s"]), seconds),
)


@given(inputs, worse)
def test_the_score_never_rises_when_one_input_gets_worse(seen, change):
    name, value = change
    better, worse = sorted((getattr(seen, name), value))
    assert health(replace(seen, **{name: worse})).score <= health(replace(seen, **{name: better})).score


@given(inputs, st.integers(0, 50))
def test_the_score_never_rises_when_fewer_workers_are_warm(seen, ready):
    fewer, more = sorted((seen.ready, ready))
    assert health(replace(seen, ready=fewer)).score <= health(replace(seen, ready=more)).score


@given(inputs, st.integers(0, 50))
def test_the_score_never_rises_when_more_workers_are_lost(seen, lost):
    fewer, more = sorted((seen.lost, lost))
    assert health(replace(seen, lost=more)).score <= health(replace(seen, lost=fewer)).score


@given(st.integers(0, 50), st.integers(0, 50), st.booleans())
def test_workers_on_their_way_cost_nothing_whether_the_pool_starts_or_grows(desired, ready, starting):
    found = health(HealthInput(desired=desired, ready=ready, starting=starting))
    assert found.score == 100.0
    assert found.state == ("starting" if starting else "healthy")


@given(inputs, share.filter(lambda rate: rate > ERROR_OBJECTIVE))
def test_a_pool_over_its_objective_for_errors_is_not_healthy(seen, rate):
    assert health(replace(seen, error_rate=rate)).state in ("impaired", "unhealthy")


@given(inputs)
def test_the_score_is_100_minus_its_parts_and_each_part_says_why(seen):
    found = health(seen)
    assert 0.0 <= found.score <= 100.0
    assert found.score == pytest.approx(max(0.0, 100.0 - sum(part.cost for part in found.parts)), abs=0.01)
    assert {part.name for part in found.parts} == {"errors", "latency", "wait", "workers", "saturation"}
    assert all(part.cost >= 0 and part.sentence.endswith(".") for part in found.parts)


@given(st.integers(0, 100), st.floats(0.0, 0.85), st.floats(0.0, 0.1))
def test_a_healthy_pool_scores_100_whatever_its_size_and_fair_load(size, utilization, wait_s):
    seen = HealthInput(
        desired=size, ready=size, utilization=utilization, wait_p95_s=wait_s, latency_p99_s=1.0,
        latency_objective_s=1.0,
    )  # fmt: skip
    assert health(seen).score == 100.0
    assert health(seen).state == "healthy"


@given(inputs, st.floats(0.2, 1.0))
def test_a_fifth_of_errors_is_below_60_whatever_else(seen, rate):
    assert health(replace(seen, error_rate=rate)).score < 60


@pytest.mark.parametrize(
    "change",
    [
        {"error_rate": 0.01},
        {"latency_p99_s": 3.0, "latency_objective_s": 1.0},
        {"wait_p95_s": 0.2},
        {"ready": 3, "lost": 1},
        {"utilization": 0.99},
        {"queue_fill": 0.5},
        {"rejected_rate": 0.1},
    ],
)
def test_each_trouble_alone_lowers_the_score(change):
    assert health(replace(IDLE, **change)).score < 100.0


def test_the_most_costly_part_comes_first():
    found = health(replace(IDLE, ready=1, lost=3, wait_p95_s=0.2))
    assert found.parts[0].name == "workers"
    assert found.parts[0].sentence == "3 of 4 workers are missing: 3 failed."


def test_no_worker_that_lives_is_no_health():
    assert health(replace(IDLE, ready=0, lost=4)).score == 0.0
