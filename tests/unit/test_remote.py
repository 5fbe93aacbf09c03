"""The remote client: the same methods, errors and results as a pool in the cluster, over HTTP that may fail."""

from __future__ import annotations

import inspect
import json

import httpx
import msgspec
import pytest

from dspool import errors
from dspool.blocking import BlockingSession
from dspool.core.lifecycle.warmup import WarmupReport
from dspool.errors import Unreachable
from dspool.messages import (
    CreateProgram,
    Deployment,
    ExecuteProgram,
    GetVariable,
    Ping,
    PoolStatus,
    SetVariable,
    StreamEvent,
    WorkerStatus,
)
from dspool.pool import BlockingPool, Pool, SessionHandle
from dspool.protocols import PoolClient
from dspool.remote import BlockingRemotePool, RemotePool, RemoteSession
from dspool.remote.requests import ATTEMPTS, Events, HttpCall, call_for, pause_s, problem_of
from dspool.session import SessionMethods
from dspool.supervisor.canary import Rollout
from dspool.supervisor.warmup import WarmProgress

ANSWER = {
    "outputs": {"answer": "42"},
    "operation_id": "op-1",
    "worker": "w0",
    "program_version": 2,
    "timings": {"wait_s": 0.1, "run_s": 0.2},
    "usage": {},
    "offline": False,
}


def problem(status, code, headers=None, **details):
    body = {
        "type": f"urn:dspool:problem:{code}",
        "title": "t",
        "status": status,
        "detail": "no",
        "code": code,
    }
    return httpx.Response(status, json=body | ({"details": details} if details else {}), headers=headers)


class Service:
    """Gives the answers in order, the last for ever, and remembers what it was sent."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request):
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pool(self, **options):
        return RemotePool("http://pool", transport=httpx.MockTransport(self), **options)

    def blocking(self, **options):
        return BlockingRemotePool("http://pool", transport=httpx.MockTransport(self), **options)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    paused = []

    async def pause(seconds):
        paused.append(seconds)

    monkeypatch.setattr("dspool.remote.service.asyncio.sleep", pause)
    return paused


def methods_of(protocol):
    return sorted(
        name
        for kind in protocol.__mro__
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_")
    )


def test_every_form_of_a_pool_has_every_method_with_the_same_parameters():
    for pool in (Pool, RemotePool, BlockingPool, BlockingRemotePool):
        for name in methods_of(PoolClient):
            wanted = inspect.signature(getattr(PoolClient, name)).parameters
            has = inspect.signature(getattr(pool, name)).parameters
            assert set(wanted) <= set(has), (pool, name)
    for session in (SessionHandle, RemoteSession, BlockingSession):
        for name in methods_of(SessionMethods):
            has = inspect.signature(getattr(session, name)).parameters
            assert set(inspect.signature(getattr(SessionMethods, name)).parameters) == set(has), (
                session,
                name,
            )


async def test_a_result_is_as_the_pool_gives_it():
    service = Service(httpx.Response(200, json=ANSWER))
    async with service.pool(token="dsp_x", priority="batch") as pool:
        result = await pool.execute("qa", question="?", timeout_s=5.0)
    assert (result.answer, result.worker, result.wait_s, result.program_version) == ("42", "w0", 0.1, 2)
    (request,) = service.asked
    assert request.url.path == "/v1/pools/default/programs/qa/execute"
    assert json.loads(request.content) == {"inputs": {"question": "?"}, "timeout_s": 5.0}
    assert request.headers["authorization"] == "Bearer dsp_x"
    assert request.headers["x-dspool-priority"] == "batch"
    assert 0 < float(request.headers["x-request-timeout-seconds"]) <= 5.0


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "unknown_session", errors.UnknownSession),
        (422, "invalid_request", errors.InvalidRequest),
        (401, "unauthenticated", errors.Unauthenticated),
        (403, "not_allowed", errors.NotAllowed),
        (500, "program_error", errors.ProgramError),
        (504, "deadline_exceeded", errors.DeadlineExceeded),
        (500, "from_tomorrow", errors.PoolError),
    ],
)
async def test_a_problem_is_raised_as_the_error_that_it_was_and_not_sent_again(status, code, kind):
    service = Service(problem(status, code, why="x"))
    async with service.pool() as pool:
        with pytest.raises(kind) as raised:
            await pool.execute("qa")
    assert type(raised.value) is kind
    assert raised.value.details["why"] == "x"
    assert len(service.asked) == 1


async def test_what_was_refused_is_sent_again_when_the_service_says_under_the_same_key(no_pauses):
    service = Service(
        problem(429, "queue_full", {"retry-after": "3"}),
        problem(503, "pool_paused", retry_after_s=0.75),
        httpx.Response(200, json=ANSWER),
    )
    async with service.pool() as pool:
        assert (await pool.execute("qa")).answer == "42"
    assert no_pauses == [3.0, 0.75]
    assert len({request.headers["idempotency-key"] for request in service.asked}) == 1


async def test_it_gives_up_after_some_tries_and_never_past_the_deadline(no_pauses):
    service = Service(problem(429, "queue_full", {"retry-after": "1"}))
    async with service.pool() as pool:
        with pytest.raises(errors.QueueFull):
            await pool.execute("qa")
        assert len(service.asked) == ATTEMPTS
        service.asked.clear()
        with pytest.raises(errors.QueueFull):
            await pool.execute("qa", timeout_s=0.5)
        assert len(service.asked) == 1


async def test_after_a_broken_connection_only_what_can_be_done_once_is_sent_again():
    broken = httpx.RemoteProtocolError("cut")
    for idempotent, command, session in (
        (None, ExecuteProgram("qa", {}), None),
        (True, ExecuteProgram("qa", {}), None),
        (None, SetVariable("x", 1), "s"),
        (None, GetVariable("x"), "s"),
    ):
        service = Service(broken, httpx.Response(200, json=ANSWER))
        async with service.pool() as pool:
            await pool.run(command, session=session, idempotent=idempotent)
        assert len(service.asked) == 2
    service = Service(broken)
    async with service.pool() as pool:
        with pytest.raises(Unreachable):
            await pool.run(CreateProgram("p", {"signature": "q -> a"}), session="s")
    assert len(service.asked) == 1
    assert service.asked[0].headers["if-none-match"] == "*"


async def test_an_answer_that_is_not_from_dspool_is_an_error_of_few_words():
    service = Service(httpx.Response(502, text="<html>bad gateway</html>"))
    async with service.pool() as pool:
        with pytest.raises(errors.PoolError, match="answered 502"):
            await pool.run(CreateProgram("p", {"signature": "q -> a"}), session="s")


async def test_a_redirect_does_not_take_the_token_elsewhere():
    service = Service(httpx.Response(307, headers={"location": "http://evil/"}))
    async with service.pool(token="dsp_x") as pool:
        with pytest.raises(errors.PoolError):
            await pool.execute("qa")
    assert {request.url.host for request in service.asked} == {"pool"}


SSE = (
    b': heartbeat\n\nevent: token\ndata: {"field":"answer","text":"4"}\n\n'
    b'event: field\ndata: {"field":"answer","value":"42"}\n\nevent: final\ndata: %b\n\n'
) % json.dumps(ANSWER).encode()


async def test_a_stream_gives_events_and_then_the_result():
    async with Service(httpx.Response(200, content=SSE)).pool() as pool:
        got = [one async for one in pool.session("s").stream("p", question="?")]
    assert got[:2] == [StreamEvent("token", "answer", "4"), StreamEvent("field", "answer", "42")]
    assert got[2].answer == "42"
    with Service(httpx.Response(200, content=SSE)).blocking() as blocking:
        assert list(blocking.session("s").stream("p", question="?")) == got


async def test_a_stream_that_breaks_off_or_ends_in_an_error_says_so():
    failed = b'event: error\ndata: {"code":"program_error","detail":"no","status":500}\n\n'
    for content, kind in ((SSE[:60], Unreachable), (failed, errors.ProgramError)):
        async with Service(httpx.Response(200, content=content)).pool() as pool:
            with pytest.raises(kind):
                [one async for one in pool.session("s").stream("p")]


async def test_a_stream_is_never_begun_twice():
    service = Service(httpx.RemoteProtocolError("cut"))
    async with service.pool() as pool:
        with pytest.raises(Unreachable):
            [one async for one in pool.session("s").stream("p")]
    assert len(service.asked) == 1


def test_the_blocking_twin_waits_and_retries_as_well(no_pauses):
    service = Service(problem(503, "pool_not_ready", {"retry-after": "2"}), httpx.Response(200, json=ANSWER))
    with service.blocking() as pool:
        assert pool.execute("qa").answer == "42"
    assert no_pauses == [2.0]
    service = Service(httpx.Response(200, json={"name": "x", "value": 1}))
    with service.blocking() as pool:
        assert pool.session("a/b").get_variable("x") == {"name": "x", "value": 1}
    assert service.asked[0].url.raw_path == b"/v1/pools/default/sessions/a%2Fb/variables/x"


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_that_would_be_a_step_in_the_path_is_refused(name):
    with pytest.raises(errors.InvalidRequest):
        call_for("default", GetVariable(name), "s", timeout_s=None, idempotent=None, operation_id=None)


def test_what_http_does_not_offer_is_said():
    with pytest.raises(errors.InvalidRequest, match="not offered"):
        call_for("default", Ping(), "s", timeout_s=None, idempotent=None, operation_id=None)


def test_pauses_grow_are_spread_and_keep_to_what_was_asked():
    call = HttpCall("POST", "/", None, True)
    refused = problem_of(503, b"{}", {})
    assert [pause_s(refused, call, n, 1.0) for n in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert pause_s(refused, call, 1, 0.0) == 0.05
    assert pause_s(refused, call, ATTEMPTS, 1.0) is None
    assert pause_s(problem_of(429, b"{}", {"retry-after": "7"}), call, 1, 1.0) == 7.0
    assert pause_s(problem_of(429, b"{}", {"retry-after": "nonsense"}), call, 1, 1.0) == 0.1
    under_way = b'{"code": "idempotency_in_progress", "detail": "the first one still runs"}'
    assert pause_s(problem_of(409, under_way, {"retry-after": "1"}), call, 1, 1.0) == 1.0


def test_events_may_come_in_several_lines_and_with_comments():
    events = Events()
    lines = [": hi", "", "event: token", 'data: {"a":', "data: 1}", "", "data: 2", ""]
    assert list(events.feed("".join(f"{line}\n" for line in lines).encode())) == [
        ("token", {"a": 1}),
        ("message", 2),
    ]


def test_what_ends_a_line_elsewhere_may_stand_in_a_text_that_comes_in_any_pieces():
    text = "one\u2028two\u0085three"
    sent = f'event: token\r\ndata: {{"text":"{text}"}}\r\n\r\n'.encode()
    events = Events()
    assert [event for byte in sent for event in events.feed(bytes([byte]))] == [("token", {"text": text})]


def test_a_map_is_one_request_for_many_inputs_and_raises_the_first_failure():
    items = [{"result": ANSWER}, {"result": ANSWER}]
    service = Service(httpx.Response(200, json={"items": items, "succeeded": 2, "failed": 0}))
    with service.blocking() as pool:
        assert [one.answer for one in pool.map("qa", [{"question": "a"}, {"question": "b"}])] == ["42", "42"]
        assert pool.map("qa", []) == []
    assert len(service.asked) == 1
    items[1] = {"problem": {"code": "program_error", "detail": "no", "status": 500}}
    service = Service(httpx.Response(200, json={"items": items, "succeeded": 1, "failed": 1}))
    with service.blocking() as pool, pytest.raises(errors.ProgramError):
        pool.map("qa", [{}, {}])
    with service.blocking() as pool:
        good, bad = pool.map("qa", [{}, {}], return_errors=True)
    assert (good.answer, bad.code) == ("42", "program_error")


def test_a_map_asks_for_as_much_at_once_as_the_service_takes():
    refused = problem(422, "invalid_request", limit=2)
    two, one = ({"items": [{"result": ANSWER}] * n, "succeeded": n, "failed": 0} for n in (2, 1))
    service = Service(refused, httpx.Response(200, json=two), httpx.Response(200, json=one))
    with service.blocking() as pool:
        assert len(pool.map("qa", [{"question": "?"}] * 3)) == 3
    assert [len(msgspec.json.decode(one.content)["inputs"]) for one in service.asked] == [3, 2, 1]
    service = Service(problem(422, "invalid_request", limit=0))
    with service.blocking() as pool, pytest.raises(errors.InvalidRequest):
        pool.map("qa", [{}])


def test_code_runs_in_a_sandbox_or_not_at_all():
    body = {"stdout": "", "result": 3, "operation_id": "o", "worker": "w", "timings": {}}
    service = Service(httpx.Response(200, json=body))
    with service.blocking() as pool:
        assert pool.session("s").execute_code("1 + 2") == {"stdout": "", "result": 3}
    assert service.asked[0].url.path == "/v1/pools/default/sessions/s/execute_code"
    assert "idempotency-key" in service.asked[0].headers


async def test_a_deployment_and_a_warm_up_show_how_far_they_are_and_then_what_came_of_it():
    states = [
        Rollout(program="qa", version=2, previous=1, phase=phase, began_at=1.0)
        for phase in ("canary", "done")
    ]
    sent = [("status", state) for state in states] + [("final", {"program": "qa", "version": 2})]
    service = Service(httpx.Response(200, content=sse(sent)), httpx.Response(201, json={"version": 3}))
    wanted = Deployment("qa", 0, spec={"signature": "q -> a"})
    async with service.pool() as pool:
        shown = [one async for one in pool.stream_deploy(wanted, canary_s=5)]
        done = await pool.deploy(wanted)
    assert shown == [*states, msgspec.structs.replace(wanted, version=2)]
    assert done.version == 3
    assert [request.headers["accept"] for request in service.asked] == [
        "text/event-stream",
        "application/json",
    ]
    assert service.asked[0].url.query == b"canary_s=5"
    # As long as it takes: no deadline goes along.
    assert "x-request-timeout-seconds" not in service.asked[0].headers
    report = WarmupReport("staged")
    steps = [WarmProgress(1, "begin", total=1), WarmProgress(2, "end")]
    body = sse([*(("status", step) for step in steps), ("final", report)])
    async with Service(httpx.Response(200, content=body)).pool() as pool:
        assert [one async for one in pool.stream_warm()] == [*steps, report]
        assert await pool.warm("staged") == report


def sse(events):
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data)) for name, data in events
    )


async def test_a_worker_is_asked_for_again_until_it_is_gone():
    gone = [httpx.Response(200, json={"worker": "w", "gone": False}), problem(404, "unknown_worker")]
    service = Service(*gone)
    async with service.pool() as pool:
        assert await pool.drain("w")
        assert [json.loads(request.content) for request in service.asked] == [{"wait_s": 10.0}] * 2
        with pytest.raises(errors.UnknownWorker):
            await pool.restart("w")
    async with Service(gone[0]).pool() as pool:
        assert await pool.restart("w", wait_s=0) is False


async def test_a_worker_named_by_its_ordinal_is_the_one_that_has_it_when_the_drain_begins():
    status = PoolStatus("default", "ready", True, 1, 1, 0, 1, (WorkerStatus("default-w0-a", 0, "ready"),))
    known = httpx.Response(200, json=msgspec.to_builtins(status))
    waiting = httpx.Response(200, json={"worker": "default-w0-a", "gone": False})
    for named in (0, "0"):
        service = Service(known, waiting, problem(404, "unknown_worker"))
        async with service.pool() as pool:
            assert await pool.drain(named)
        # Its successor has the number by then, and is none of ours to drain.
        paths = [request.url.path for request in service.asked]
        assert paths[1:] == ["/v1/pools/default/workers/default-w0-a/drain"] * 2


def test_a_remote_pool_shows_its_address_and_no_token():
    with BlockingRemotePool("http://host:8000", token="secret") as pool:
        assert repr(pool) == "BlockingRemotePool(RemotePool('http://host:8000', pool='default'))"


def test_an_address_is_named_in_errors_without_what_may_be_secret_in_it():
    service = Service(httpx.ConnectError("no"))
    transport = httpx.MockTransport(service)
    with (
        BlockingRemotePool("http://me:secret@pool:1/x", transport=transport) as pool,
        pytest.raises(Unreachable) as raised,
    ):
        pool.status()
    assert raised.value.message == "http://pool:1 does not answer (ConnectError)"
