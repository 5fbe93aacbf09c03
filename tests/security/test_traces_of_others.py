"""What a caller's `traceparent` cannot do: put spans into another's trace, or have more traced than is allowed."""

from __future__ import annotations

import httpx
import pytest

from dspool.config import PoolConfig
from dspool.telemetry import trace_names as names
from dspool.telemetry.trace_export import Batches
from dspool.telemetry.tracing import NOT_TRACED, Tracing, trace_id_of
from dspool_serve.access.security import Security
from tests.dashboard_demo import tokens_for
from tests.unit.http_doubles import FakePool, served
from tests.unit.test_tracing import Kept

QA = "/v1/pools/default/programs/qa/execute"
VICTIM = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = f"00-{VICTIM}-00f067aa0ba902b7-01"
UNSAMPLED = f"00-{VICTIM}-00f067aa0ba902b7-00"


class House:
    """A service with the callers ada and eve, whose spans are kept; its clock stands still."""

    def __init__(self, *, tokens: bool = True, **telemetry) -> None:
        self.kept, self.now = Kept(), 0.0
        settings = {"sampling": 0.0, "max_traces_per_s": None, **telemetry}
        self.tracing = Tracing(
            PoolConfig(telemetry=settings),
            "http",
            processor=Batches([self.kept], every_s=3600),
            clock=lambda: self.now,
        )
        self.pool = FakePool()
        self.pool.tracing = self.tracing
        self.tokens, source = tokens_for(ada="caller", eve="caller", root="admin")
        self.app = served(self.pool, security=Security(source if tokens else None))

    async def ask(self, who: str | None, traceparent: str | None) -> httpx.Response:
        headers = {} if who is None else {"authorization": f"Bearer {self.tokens[who]}"}
        if traceparent is not None:
            headers["traceparent"] = traceparent
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.post(QA, json={"inputs": {"question": "?"}}, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    def spans(self):
        self.tracing.flush()
        return self.kept.spans


@pytest.mark.parametrize("who", ["eve", "root"])
async def test_who_names_anothers_trace_gets_one_of_their_own_with_a_link(who):
    house = House()
    answer = await house.ask(who, SAMPLED)
    (span,) = house.spans()
    own = f"{span.context.trace_id:032x}"
    assert own != VICTIM
    assert span.parent is None
    # The operation, and with it the worker's spans and log lines, are in the new trace.
    assert (
        trace_id_of(house.pool.asked[0]["traceparent"]) == own == trace_id_of(answer.headers["traceparent"])
    )
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [VICTIM]
    assert span.attributes[names.CALLER_TRACE] == VICTIM


async def test_two_principals_who_name_one_trace_do_not_meet_in_it():
    house = House()
    first = await house.ask("ada", SAMPLED)
    answers = [await house.ask("eve", sent) for sent in (SAMPLED, first.headers["traceparent"])]
    traces = {trace_id_of(answer.headers["traceparent"]) for answer in (first, *answers)}
    assert len(traces) == 3


async def test_a_callers_word_against_a_trace_holds_and_names_no_trace_in_logs():
    house = House(sampling=1.0)
    await house.ask("eve", UNSAMPLED)
    assert house.pool.asked[0]["traceparent"] == NOT_TRACED
    assert house.spans() == []


async def test_callers_traces_are_continued_where_the_operator_says_so_or_there_are_no_tokens():
    for name, house in (
        ("eve", House(trust_traceparent=True)),
        (None, House(tokens=False)),
    ):
        answer = await house.ask(name, SAMPLED)
        (span,) = house.spans()
        assert f"{span.context.trace_id:032x}" == VICTIM == trace_id_of(answer.headers["traceparent"])
        assert f"{span.parent.span_id:016x}" == SAMPLED.split("-")[2]


@pytest.mark.parametrize("tokens", [True, False])
async def test_a_caller_forces_no_more_traces_than_their_half_of_the_limit(tokens):
    house = House(tokens=tokens, max_traces_per_s=10)
    for _ in range(30):
        await house.ask("eve" if tokens else None, SAMPLED)
    assert len(house.spans()) == 5
    house.now = 1.0
    for _ in range(30):
        await house.ask("eve" if tokens else None, SAMPLED)
    assert len(house.spans()) == 10


async def test_one_who_forces_traces_leaves_room_for_others_within_the_limit_for_all():
    house = House(max_traces_per_s=10)
    for who in ("eve", "ada", "root"):
        for _ in range(20):
            await house.ask(who, SAMPLED)
    assert len(house.spans()) == 10


def test_no_more_principals_are_counted_than_there_is_room_for():
    tracing = Tracing(PoolConfig(telemetry={"max_traces_per_s": 10}), "http", clock=lambda: 0.0)
    for number in range(3000):
        tracing.admits(SAMPLED, f"p{number}")
    assert len(tracing._callers) <= 1024


async def test_the_operations_of_a_batch_count_one_by_one():
    house = House(max_traces_per_s=10)
    body = {"inputs": [{"question": "?"}] * 50}
    headers = {"authorization": f"Bearer {house.tokens['eve']}", "traceparent": SAMPLED}
    transport = httpx.ASGITransport(app=house.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.post(QA.replace("execute", "batch"), json=body, headers=headers)
    assert answer.json()["succeeded"] == 50
    assert sum(1 for asked in house.pool.asked if asked["traceparent"] != NOT_TRACED) == 5


@pytest.mark.parametrize("trusted", [True, False])
async def test_what_was_beyond_the_limit_is_not_traced_further_on(trusted):
    """The operation's own process goes by the flags of what it is given."""
    house = House(tokens=trusted, trust_traceparent=trusted, max_traces_per_s=10)
    for _ in range(30):
        await house.ask("eve" if trusted else None, SAMPLED)
    given = [asked["traceparent"] for asked in house.pool.asked]
    assert sum(house.tracing.should_trace(one) for one in given) == 5
    assert {trace_id_of(one) for one in given} == {VICTIM}
