"""Traced requests: W3C trace context taken and given; metrics and events of a pool as JSON."""

from __future__ import annotations

import pytest
from http_doubles import FakePool, assert_problem, client_of
from test_tracing import PARENT, UNSAMPLED, Traced

from dspool.errors import QueueFull
from dspool.telemetry import trace_names as names
from dspool.telemetry.tracing import NOT_TRACED, trace_id_of

QA = "/v1/pools/default/programs/qa/execute"
SPAN = "POST /v1/pools/{pool}/programs/{program}/execute"


def pool_with(t: Traced) -> FakePool:
    pool = FakePool()
    pool.tracing = t.tracing
    return pool


async def test_a_traced_request_continues_the_callers_trace_and_says_so():
    t = Traced(sampling=0.0)
    pool = pool_with(t)
    async with client_of(pool) as http:
        answer = await http.post(QA, json={"inputs": {}}, headers={"traceparent": PARENT})
    span = t.spans()[SPAN]
    assert f"{span.context.trace_id:032x}" == trace_id_of(PARENT)
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    # The operation hangs below the request, and so does what the caller makes of the answer.
    below = f"00-{trace_id_of(PARENT)}-{span.context.span_id:016x}-01"
    assert pool.asked[0]["traceparent"] == below == answer.headers["traceparent"]
    assert span.attributes[names.HTTP_STATUS] == 200


async def test_a_request_without_a_trace_begins_one_by_share():
    t = Traced(sampling=1.0)
    pool = pool_with(t)
    async with client_of(pool) as http:
        answer = await http.post(QA, json={"inputs": {}})
    assert t.spans()[SPAN].parent is None
    assert trace_id_of(answer.headers["traceparent"])


@pytest.mark.parametrize(("given", "passed"), [(None, NOT_TRACED), (UNSAMPLED, UNSAMPLED)])
async def test_what_the_ingress_does_not_trace_is_not_asked_about_again(given, passed):
    t = Traced(sampling=0.1, dice=0.5)
    pool = pool_with(t)
    async with client_of(pool) as http:
        headers = {} if given is None else {"traceparent": given}
        answer = await http.post(QA, json={"inputs": {}}, headers=headers)
    assert pool.asked[0]["traceparent"] == passed
    assert "traceparent" not in answer.headers
    assert t.spans() == {}


async def test_a_refused_request_ends_its_span_with_the_status_that_was_sent():
    t = Traced()
    pool = pool_with(t)
    pool.fail_with = QueueFull("full", retry_after_s=1.0)
    async with client_of(pool) as http:
        answer = await http.post(QA, json={"inputs": {}})
    problem = assert_problem(answer, answer.status_code, "queue_full")
    span = t.spans()[SPAN]
    assert span.attributes[names.HTTP_STATUS] == problem["status"]
    assert span.attributes[names.ERROR_TYPE] == "queue_full"
    assert "traceparent" in answer.headers


async def test_looking_at_a_pool_is_not_traced():
    t = Traced()
    async with client_of(pool_with(t)) as http:
        assert (await http.get("/v1/pools/default")).status_code == 200
    assert t.spans() == {}
