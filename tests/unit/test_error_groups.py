"""Errors by what they are: counted at the client, added up for the pool, bounded, and without anybody's content."""

from __future__ import annotations

import pytest

from dspool.core.metrics.error_groups import (
    EPISODE_S,
    MAX_BY,
    MAX_GROUPS,
    MAX_KINDS,
    ErrorCounts,
    ErrorGroups,
    kind_of,
)
from dspool.core.metrics.recorder import ClientRecorder
from dspool.core.metrics.tally import OTHER
from dspool.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelUnreachable,
    PoolError,
    ProgramError,
    QueueFull,
)
from dspool.telemetry.metrics import Metrics, encode

RAISED = ProgramError(
    "the program raised", exception="KeyError", at="shop.basic:56", text="'ada@example.com'"
)
SECRET = "the prompt of ada@example.com"


def counted(*errors: PoolError, program: str = "shop", version: int = 1, worker: str = "w0", id: str = "op"):
    counts = ErrorCounts()
    for error in errors:
        counts.add(program, error, version=version, worker=worker, operation=id)
    return counts.take()


def test_errors_are_one_group_if_the_same_exception_came_from_the_same_line():
    groups = ErrorGroups()
    elsewhere = ProgramError("the program raised", exception="KeyError", at="shop.basic:99")
    groups.take(counted(RAISED, RAISED, elsewhere), 10.0)
    groups.take(counted(RAISED, version=2, worker="w1", id="op-9"), 40.0)
    found = {group.at: group for group in groups.all(40.0)}
    assert {at: group.count for at, group in found.items()} == {"shop.basic:56": 3, "shop.basic:99": 1}
    whole = found["shop.basic:56"]
    assert whole.text == "KeyError at shop.basic:56"
    assert (whole.first, whole.last) == (10.0, 40.0)
    assert whole.versions == {1: 2, 2: 1}
    assert whole.workers == {"w0": 2, "w1": 1}
    assert whole.operations == ("op-9", "op")


def test_errors_of_a_model_are_grouped_by_model_provider_profile_and_status():
    about = {"model": "openai/gpt-4o-mini", "provider": "openai", "profile": "fast", "reason": "timeout"}
    one, other = ModelUnreachable("no answer", **about), ModelUnreachable("no", **about | {"profile": "slow"})
    groups = ErrorGroups()
    groups.take(counted(one, one, other), 1.0)
    assert [(group.profile, group.count) for group in groups.all(1.0)] == [("slow", 1), ("fast", 2)]
    assert groups.all(1.0)[0].text == "openai/gpt-4o-mini does not answer (timeout)"


def test_a_group_keeps_its_id_in_every_process():
    assert kind_of("shop", RAISED).id == kind_of("shop", RAISED).id == "63c918f7c76d"
    assert kind_of("shop", RAISED).id != kind_of("other", RAISED).id


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest(f"got {SECRET}", field=SECRET, reason="x"),
        ProgramError("raised", exception=SECRET, at=SECRET, text=SECRET),
        ModelUnreachable("no answer", model=SECRET, provider=SECRET, reason=SECRET, status="ada"),
        ProgramError(f"the code raised {SECRET}", exception="AdaLovelaceError", line=3),
        DeadlineExceeded("late", phase=["run", SECRET]),
    ],
)
def test_a_kind_holds_nothing_that_a_caller_may_have_written(error):
    text = repr(kind_of("shop", error))
    assert "ada" not in text.lower()
    assert "prompt" not in text


def test_code_that_a_user_sent_is_known_by_an_exception_of_pythons_own():
    assert kind_of("run_code", ProgramError("raised", exception="ZeroDivisionError", line=3)).exception == (
        "ZeroDivisionError"
    )


def test_a_client_counts_a_bounded_number_of_kinds_and_all_errors():
    errors = [ProgramError("raised", exception="E", at=f"shop:{line}") for line in range(10 * MAX_KINDS)]
    counts = counted(*errors)
    assert len(counts) == MAX_KINDS
    assert sum(count.number for count in counts) == len(errors)
    assert counts[-1].kind.program == OTHER


def test_the_pool_keeps_a_bounded_number_of_groups_and_says_how_many_went():
    groups = ErrorGroups()
    for line in range(MAX_GROUPS + 7):
        groups.take(counted(ProgramError("raised", exception="E", at=f"shop:{line}")), float(line))
    assert len(groups) == MAX_GROUPS
    assert groups.forgotten == 7
    assert groups.all(1e6)[-1].at == "shop:7"


def test_a_group_names_a_bounded_number_of_versions_and_workers():
    groups = ErrorGroups()
    for number in range(50):
        groups.take(counted(RAISED, version=number + 1, worker=f"w{number}"), float(number))
    (group,) = groups.all(50.0)
    assert list(group.versions) == list(range(51 - MAX_BY, 51))
    assert len(group.workers) == MAX_BY
    assert len(group.operations) == 3


def test_an_error_that_comes_again_after_a_while_began_then():
    groups = ErrorGroups()
    groups.take(counted(RAISED), 100.0)
    groups.take(counted(RAISED), 100.0 + EPISODE_S)
    assert groups.all(500.0)[0].since == 100.0
    groups.take(counted(RAISED), 101.0 + 2 * EPISODE_S)
    (group,) = groups.all(101.0 + 2 * EPISODE_S)
    assert (group.first, group.since) == (100.0, 101.0 + 2 * EPISODE_S)


def test_what_is_worst_now_is_what_failed_operations_most_often_in_the_last_minute():
    groups = ErrorGroups()
    old, often, seldom = (
        ProgramError("raised", exception=name, at="shop:1") for name in ("Old", "Often", "Once")
    )
    groups.take(counted(*[old] * 9), 0.0)
    groups.take(counted(QueueFull("full"), InvalidRequest("no")), 400.0)
    groups.take(counted(*[often] * 3, seldom), 400.0)
    assert [(one.exception, one.lately) for one in groups.worst(410.0, 5)] == [("Often", 3), ("Once", 1)]
    assert [one.lately for one in groups.worst(500.0, 5)] == [0, 0]
    assert groups.worst(400.0 + EPISODE_S + 1, 5) == ()


def test_what_a_client_counted_counts_once_and_survives_the_metrics_actor():
    wall = iter(float(at) for at in range(1000, 2000))
    metrics = Metrics("default", clock=lambda: 5.0, wall=lambda: next(wall))
    client = ClientRecorder("default", "c", now=0.0)
    client.submitted("shop")
    client.record("shop", "error", 0.1, code="program_error")
    client.failed("shop", RAISED, version=3, worker="w1", operation="op-1")
    delta = client.take_delta(1.0)
    metrics.report_encoded([encode(delta), encode(delta)])
    (group,) = metrics.errors().errors
    assert (group.count, group.versions, group.operations) == (1, {3: 1}, ("op-1",))
    assert metrics.snapshot().errors == (group,)
    successor = Metrics("default", clock=lambda: 5.0, wall=lambda: next(wall))
    successor.restore(metrics.checkpoint())
    assert successor.errors().errors[0].count == 1
    client.submitted("shop")
    client.record("shop", "error", 0.1, code="program_error")
    client.failed("shop", RAISED, version=3, worker="w1", operation="op-2")
    successor.report(client.take_delta(2.0))
    assert successor.errors().errors[0].operations == ("op-2", "op-1")


def test_a_cancelled_operation_is_no_error():
    from dspool.errors import Cancelled

    client = ClientRecorder("default", "c", now=0.0)
    client.submitted("shop")
    client.record("shop", "cancelled", 0.1, code="cancelled")
    client.failed("shop", Cancelled("gone"), version=0, worker=None, operation="op")
    assert client.take_delta(1.0).errors == []
