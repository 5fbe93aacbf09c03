"""One judgement of a pool: health, state and alerts never disagree, and whatever is wrong has a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dspool.core.metrics.diagnosis import StandingAlert, diagnose, trouble_of
from dspool.core.metrics.error_groups import ErrorCounts, ErrorGroups
from dspool.core.metrics.health import ERROR_OBJECTIVE, HealthInput, health
from dspool.core.metrics.measures import MetricsSnapshot, Point, ProgramSnapshot
from dspool.errors import ModelUnreachable, PoolError, ProgramError
from dspool.messages import EndedWorker, PoolStatus, WorkerStatus
from dspool.telemetry.metrics import Metrics
from dspool_console.alerts import ALERTS

AT = 1000.0
EMPTY = Metrics("p", clock=lambda: 5.0, wall=lambda: AT).snapshot()
RAISED = ProgramError("raised", exception="KeyError", at="shop.basic:56")
AWAY = ModelUnreachable("away", model="openai/gpt-4o-mini", profile="fast", reason="timeout")


def groups_of(*errors: tuple[str, PoolError], version: int = 4):
    groups, counts = ErrorGroups(), ErrorCounts()
    for program, error in errors:
        counts.add(program, error, version=version, worker="w0", operation="op")
    groups.take(counts.take(), AT - 30)
    return groups.worst(AT, 5)


def snapshot_of(inputs: HealthInput, errors=(), programs: dict[str, float] | None = None) -> MetricsSnapshot:
    """`programs`: their error rates."""
    counters = EMPTY.counters
    return replace(
        EMPTY,
        error_rate=inputs.error_rate,
        health=health(inputs),
        errors=errors,
        programs={
            name: ProgramSnapshot(recent=Point(operations=9, error_rate=rate), counters=counters)
            for name, rate in (programs or {}).items()
        },
    )


def status_of(state="ready", ready=True, desired=4, actual=4, **more) -> PoolStatus:
    return PoolStatus("p", state, ready, desired, actual, 0, 1, **more)


share = st.sampled_from([0.0, ERROR_OBJECTIVE, 0.002, 0.1, 0.5, 1.0]) | st.floats(0.0, 1.0)
inputs = st.builds(
    HealthInput,
    desired=st.integers(0, 9),
    ready=st.integers(0, 9),
    lost=st.integers(0, 9),
    starting=st.booleans(),
    error_rate=share,
    wait_p95_s=st.floats(0.0, 5.0),
    latency_p99_s=st.floats(0.0, 5.0),
    latency_objective_s=st.none() | st.just(1.0),
    utilization=share,
    queue_fill=share,
    rejected_rate=share,
)
errors = st.lists(
    st.tuples(st.sampled_from(["shop", "desk", "execute_program"]), st.sampled_from([RAISED, AWAY])),
    max_size=4,
).map(lambda found: groups_of(*found))
snapshots = st.none() | st.builds(snapshot_of, inputs, errors, st.dictionaries(st.just("shop"), share))
statuses = st.none() | st.builds(
    status_of,
    st.sampled_from(["starting", "ready", "degraded", "paused", "closed", "unknown"]),
    st.booleans(),
    lost=st.integers(0, 4),
    reason=st.sampled_from(["", "worker w0 died: out of memory"]),
)
alerts = st.lists(
    st.builds(
        StandingAlert,
        st.sampled_from([alert.name for alert in ALERTS]),
        st.booleans(),
        st.sampled_from(["info", "warning", "critical"]),
        st.just(900.0),
        st.sampled_from(["", "12 % fail"]),
    ),
    max_size=3,
)
BAND = {"healthy": (80, 100), "starting": (80, 100), "impaired": (50, 80), "unhealthy": (0, 50)}


@given(statuses, snapshots, alerts)
def test_a_pool_is_healthy_only_if_neither_alert_nor_error_rate_nor_state_has_anything_against_it(
    status, snapshot, standing
):
    found = diagnose(status, snapshot, standing)
    if found.state in ("healthy", "starting"):
        assert standing == []
        assert snapshot is not None
        assert snapshot.error_rate <= ERROR_OBJECTIVE
        assert status is not None
        assert status.state == ("ready" if found.state == "healthy" else status.state)
        assert status.ready or found.state == "starting"
    if any(alert.firing and alert.severity == "critical" for alert in standing):
        assert found.state == "unhealthy"


@given(statuses, snapshots, alerts)
def test_whatever_is_wrong_has_a_sentence_and_a_place_that_it_leads_to(status, snapshot, standing):
    found = diagnose(status, snapshot, standing)
    assert bool(found.faults) == (found.state in ("impaired", "unhealthy"))
    assert found.sentence
    for fault in found.faults:
        assert fault.sentence
        assert not fault.sentence.endswith(".")
        assert fault.place
    ranks = [("critical", "warning", "info").index(fault.severity) for fault in found.faults]
    assert ranks == sorted(ranks)


@given(statuses, snapshots, alerts)
def test_the_number_and_the_word_are_one_judgement(status, snapshot, standing):
    found = diagnose(status, snapshot, standing)
    assert (found.score is None) == (snapshot is None)
    if found.score is not None and found.state in BAND:
        low, high = BAND[found.state]
        assert low <= found.score <= high


@given(statuses, snapshots, alerts)
def test_every_alert_that_stands_is_said_by_its_own_fault_or_by_one_that_says_more(
    status, snapshot, standing
):
    found = diagnose(status, snapshot, standing)
    for alert in standing:
        own = any(fault.id == alert.name for fault in found.faults)
        assert own or any(fault.place != "alerts" for fault in found.faults)


def test_a_failing_program_is_named_with_exception_line_version_and_who_is_spared():
    seen = snapshot_of(
        HealthInput(desired=4, ready=4, error_rate=0.3),
        groups_of(("shop", RAISED)),
        {"shop": 0.31, "desk": 0.0},
    )
    (fault,) = diagnose(status_of(), seen).faults
    assert fault.sentence == "KeyError at shop.basic:56 (version 4): 31.0% of the operations of shop fail"
    assert fault.whom == "callers of shop; the other 1 program serves"
    assert (fault.severity, fault.place, fault.since) == ("critical", "errors", AT - 30)
    assert fault.id == seen.errors[0].id


def test_a_model_that_does_not_answer_is_one_fault_for_all_programs_that_ask_it():
    seen = snapshot_of(
        HealthInput(desired=4, ready=4, error_rate=0.1),
        groups_of(("shop", AWAY), ("desk", AWAY)),
        {"shop": 0.1, "desk": 0.2},
    )
    (fault,) = diagnose(status_of(), seen).faults
    assert fault.sentence.startswith(
        "openai/gpt-4o-mini does not answer (timeout) (profile fast): up to 20.0% of the"
    )
    assert "desk" in fault.whom
    assert "shop" in fault.whom


def test_an_alert_that_remembers_errors_keeps_the_group_that_they_were_of():
    standing = [StandingAlert("DspoolErrorRate", True, "warning", 900.0, "12 % fail")]
    seen = snapshot_of(HealthInput(desired=4, ready=4), groups_of(("shop", RAISED)), {"shop": 0.0})
    found = diagnose(status_of(), seen, standing)
    assert found.state == "impaired"
    assert [fault.id for fault in found.faults] == [seen.errors[0].id]


def test_a_worker_that_was_lost_is_named_with_the_reason_and_since_when():
    ended = EndedWorker("p-w0-aa", 0, 1.0, 990.0, "out of memory", False)
    status = status_of(actual=3, lost=1, lost_since=990.0, reason="worker p-w0-aa died", ended=(ended,))
    found = diagnose(status, snapshot_of(HealthInput(desired=4, ready=3, lost=1)))
    (fault,) = found.faults
    assert fault.sentence == "1 of 4 workers failed and is not replaced yet: worker p-w0-aa died"
    assert (fault.place, fault.id, fault.since) == ("workers", "p-w0-aa", 990.0)
    assert found.state == "impaired"


@pytest.mark.parametrize(("state", "desired", "actual"), [("starting", 3, 0), ("ready", 5, 3)])
def test_a_start_and_a_growth_are_no_trouble(state, desired, actual):
    inputs = HealthInput(desired=desired, ready=actual, starting=state == "starting")
    found = diagnose(status_of(state, state == "ready", desired, actual), snapshot_of(inputs))
    assert found.faults == ()
    assert found.score == 100.0
    assert found.state == ("starting" if state == "starting" else "healthy")


def worker(**more) -> WorkerStatus:
    return WorkerStatus("p-w0-aa", 0, **({"state": "ready"} | more))


@pytest.mark.parametrize(
    ("seen", "lately", "trouble"),
    [
        (worker(errors=7), (0, 0), ""),
        (worker(errors=7), (0, 20), ""),
        (worker(errors=7), (3, 20), "failed 3 of its last 20 operations"),
        (worker(misses=1), (0, 0), "did not answer its last 1 health check"),
        (worker(fresh_mb=100.0, own_mb=300.0), (0, 0), ""),
        (
            worker(fresh_mb=100.0, own_mb=1400.0),
            (0, 0),
            "takes 1,400 MB, 1,300 MB more than when it was warm",
        ),
        (worker(fresh_mb=2000.0, own_mb=2900.0), (0, 0), ""),
        (worker(state="failed", reason="out of reach"), (0, 0), "is being killed: out of reach"),
        (worker(state="draining", reason="drained by hand"), (0, 0), ""),
    ],
)
def test_a_worker_is_in_trouble_for_what_it_does_now_and_not_for_what_it_once_did(seen, lately, trouble):
    failed, served = lately
    assert trouble_of(seen, failed=failed, served=served) == trouble


def test_a_worker_that_has_grown_is_named_and_leads_to_its_page():
    status = status_of(workers=(worker(fresh_mb=100.0, own_mb=1400.0),))
    (fault,) = diagnose(status, snapshot_of(HealthInput(desired=4, ready=4))).faults
    assert (fault.place, fault.id) == ("workers", "p-w0-aa")
    assert fault.sentence == "Worker p-w0-aa takes 1,400 MB, 1,300 MB more than when it was warm"
