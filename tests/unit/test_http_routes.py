"""What each route answers, against a pool double."""

from __future__ import annotations

import asyncio

import pytest
from http_doubles import FakePool, FixedPools, assert_problem, client_of

from dspool.errors import PoolNotReady, StoreFailed
from dspool.messages import CreateProgram, DeleteProgram, ExecuteProgram, GetProgramInfo
from dspool_serve.api import pool as api_pool
from dspool_serve.api.application import Application

QA = "/v1/pools/default/programs/qa/execute"
PROGRAM = "/v1/pools/default/sessions/ada/programs/answerer"


async def test_executing_a_pool_program_answers_outputs_worker_version_timings_usage_and_offline():
    pool = FakePool()
    async with client_of(pool) as http:
        answer = await http.post(QA, json={"inputs": {"question": "why?"}, "timeout_s": 3})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "outputs": {"question": "why?"},
        "operation_id": "op-1",
        "worker": "default-w0-abcdef",
        "program_version": 3,
        "timings": {"wait_s": 0.25, "run_s": 0.5},
        "usage": {"m": {"total_tokens": 7}},
        "offline": True,
    }
    assert pool.asked[0]["command"] == ExecuteProgram("qa", {"question": "why?"})
    assert pool.asked[0]["timeout_s"] == 3


@pytest.mark.parametrize(("asked", "given"), [(None, 30.0), (5, 5.0), (3600, 30.0)])
async def test_the_deadline_is_the_asked_one_capped_by_the_configured_one(asked, given):
    pool = FakePool()
    async with client_of(pool, operation_timeout_s=30.0) as http:
        await http.post(QA, json={"inputs": {}, "timeout_s": asked})
    assert pool.asked[0]["timeout_s"] == given


async def test_executing_a_session_program_names_the_session():
    pool = FakePool()
    async with client_of(pool) as http:
        answer = await http.post("/v1/pools/default/sessions/ada/programs/qa/execute", json={"inputs": {}})
    assert answer.status_code == 200
    assert pool.asked[0]["session"] == "ada"


async def test_names_in_the_path_are_decoded_one_segment_at_a_time():
    pool = FakePool()
    async with client_of(pool) as http:
        await http.get("/v1/pools/default/sessions/a%2Fb%20%C3%A9/programs/p%25")
    assert pool.asked[0]["session"] == "a/b é"
    assert pool.asked[0]["command"] == GetProgramInfo("p%")


@pytest.mark.parametrize(
    ("body", "spec"),
    [
        ({"spec": {"signature": "q -> a"}}, {"signature": "q -> a"}),
        ({"signature": "q -> a", "module": "Predict"}, {"signature": "q -> a", "module": "Predict"}),
    ],
)
async def test_a_program_is_put_from_a_spec_in_either_form(body, spec):
    pool = FakePool()
    async with client_of(pool) as http:
        answer = await http.put(PROGRAM, json=body)
    assert answer.status_code == 200
    made = {"session": "ada", "program": "answerer", "info": {"program": "answerer"}}
    assert answer.json() == made | {"inputs": {}, "outputs": {}}
    assert pool.asked[0]["command"] == CreateProgram("answerer", spec=spec, replace=True)
    assert pool.asked[0]["session"] == "ada"


@pytest.mark.parametrize("body", [{}, {"spec": {}, "import_path": "a:b"}, {"spec": 1}, {"specs": {}}])
async def test_a_program_without_exactly_one_source_is_refused(body):
    async with client_of(FakePool()) as http:
        assert_problem(await http.put(PROGRAM, json=body), 422, "invalid_request")


async def test_a_program_is_read_and_deleted():
    pool = FakePool()
    async with client_of(pool) as http:
        info = await http.get(PROGRAM)
        gone = await http.delete(PROGRAM)
    assert info.json()["info"] == {"signature": "question -> answer"}
    assert (gone.status_code, gone.content) == (204, b"")
    assert pool.asked[1]["command"] == DeleteProgram("answerer")


async def test_pools_and_their_workers_are_shown():
    async with client_of(FakePool(), FakePool("second")) as http:
        pools = (await http.get("/v1/pools")).json()["pools"]
        one = (await http.get("/v1/pools/second")).json()
    assert [pool["name"] for pool in pools] == ["default", "second"]
    assert one["name"] == "second"
    worker = one["workers"][0]
    assert {key: worker[key] for key in ("id", "slot", "state", "pid", "node", "sessions", "running")} == {
        "id": "default-w0-abcdef",
        "slot": 0,
        "state": "ready",
        "pid": 42,
        "node": "10.0.0.1",
        "sessions": 2,
        "running": 1,
    }


async def test_sessions_are_listed_a_page_at_a_time():
    pool = FakePool()
    async with client_of(pool) as http:
        answer = await http.get("/v1/pools/default/sessions?limit=7&cursor=abc")
    assert pool.asked == [{"limit": 7, "after": "abc"}]
    assert answer.json()["sessions"][0]["id"] == "ada"
    assert answer.json()["next_cursor"] == "next"


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=-1", "limit=5000", "limit=²", "page=2"])
async def test_a_bad_page_is_refused(query):
    async with client_of(FakePool()) as http:
        assert_problem(await http.get(f"/v1/pools/default/sessions?{query}"), 422, "invalid_request")


async def test_a_session_is_shown_then_ended_then_unknown():
    async with client_of(FakePool()) as http:
        session = "/v1/pools/default/sessions/ada"
        assert (await http.get(session)).json()["owner"] == "default-w0-abcdef"
        assert (await http.delete(session)).status_code == 204
        assert_problem(await http.delete(session), 404, "unknown_session")
        assert_problem(await http.get(session), 404, "unknown_session")


async def test_readyz_is_200_only_when_every_pool_is_ready():
    first, second = FakePool(), FakePool("second")
    async with client_of(first, second) as http:
        assert (await http.get("/readyz")).json() == {
            "ready": True,
            "pools": {"default": "ready", "second": "ready"},
            "missing": [],
        }
        second.ready = False
        late = await http.get("/readyz")
        assert "second" in assert_problem(late, 503, "pool_not_ready")["detail"]
        assert late.headers["retry-after"] == "1"
        assert (await http.get("/healthz")).json()["status"] == "ok"


async def test_readyz_says_503_while_the_store_is_away_unless_a_balancer_does_without():
    pool = FakePool()

    async def away():
        raise StoreFailed("the database does not answer")

    pool.silences = away
    async with client_of(pool) as http:
        late = assert_problem(await http.get("/readyz"), 503, "pool_not_ready")
        assert late["detail"] == "default: store: the database does not answer"
        without = await http.get("/readyz?without=store")
        assert without.json()["missing"] == ["default: store: the database does not answer"]
        assert_problem(await http.get("/readyz?without=workers"), 422, "invalid_request")


async def test_readyz_is_200_while_the_supervisor_is_away_and_its_workers_are_there():
    pool = FakePool()
    pool.workers_reached = 2

    async def away():
        raise PoolNotReady("it is being restarted")

    pool.status = away
    async with client_of(pool) as http:
        seen = (await http.get("/readyz")).json()
        assert (seen["ready"], seen["missing"]) == (True, ["default: supervisor: it is being restarted"])
        pool.workers_reached = 0
        assert "workers" in assert_problem(await http.get("/readyz"), 503, "pool_not_ready")["detail"]


@pytest.mark.parametrize(("reached", "limit"), [(1, "TROUBLE_S"), (2, "STATUS_TIMEOUT_S")])
async def test_while_the_supervisor_says_nothing_a_pool_is_shown_as_this_process_sees_it(
    monkeypatch, reached, limit
):
    pool = FakePool()
    pool.workers_reached = reached
    pool.status = asyncio.Event().wait
    for name in ("TROUBLE_S", "STATUS_TIMEOUT_S"):
        monkeypatch.setattr(api_pool, name, 0.0 if name == limit else 3600.0)
    async with client_of(pool) as http:
        seen = (await http.get("/v1/pools/default")).json()
    assert (seen["state"], seen["actual"], seen["desired"]) == ("unknown", reached, 2)
    assert "does not answer" in seen["reason"]


async def test_a_supervisor_that_takes_its_time_is_waited_for_where_all_workers_are_there(monkeypatch):
    pool = FakePool()
    pool.workers_reached = 2
    at_once = pool.status
    monkeypatch.setattr(api_pool, "TROUBLE_S", 0.0)

    async def late():
        await asyncio.sleep(3 * api_pool.LOOK_S)
        return await at_once()

    pool.status = late
    async with client_of(pool) as http:
        assert (await http.get("/v1/pools/default")).json()["state"] == "ready"


async def test_readyz_says_503_where_no_worker_can_be_reached_however_well_the_pool_is():
    pool = FakePool()
    pool.workers_reached = 0
    async with client_of(pool) as http:
        assert "reaches none" in assert_problem(await http.get("/readyz"), 503, "pool_not_ready")["detail"]


async def test_readyz_says_503_when_a_pool_cannot_be_asked():
    pool = FakePool()
    pool.workers_reached = 0
    pool.fail_with = PoolNotReady("the supervisor does not answer")
    async with client_of(pool) as http:
        assert "supervisor" in assert_problem(await http.get("/readyz"), 503, "pool_not_ready")["detail"]


async def test_a_trace_context_is_passed_on_and_a_bad_one_is_dropped():
    good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    pool = FakePool()
    async with client_of(pool) as http:
        await http.post(QA, json={"inputs": {}}, headers={"traceparent": good})
        await http.post(QA, json={"inputs": {}}, headers={"traceparent": "x" * 55})
    assert [asked["traceparent"] for asked in pool.asked] == [good, None]


async def test_the_request_id_is_echoed_unless_the_server_in_front_does_it():
    for echo, seen in ((True, "r-1"), (False, None)):
        async with client_of(FakePool(), echo_request_id=echo) as http:
            answer = await http.get("/healthz", headers={"x-request-id": "r-1"})
            assert answer.headers.get("x-request-id") == seen


async def test_cancelling_the_request_cancels_its_operation():
    pool = FakePool()
    async with client_of(pool) as http:
        sent = asyncio.create_task(http.post("/v1/pools/default/programs/slow/execute", json={"inputs": {}}))
        await pool.started.wait()
        sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent
    assert pool.cancelled == 1


async def test_the_application_opens_and_closes_its_pools_with_the_server():
    pools = FixedPools(FakePool())
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent = []

    async def receive():
        return next(incoming)

    async def send(message):
        sent.append(message["type"])

    await Application(pools)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert (pools.opened, pools.closed) == (1, 1)
