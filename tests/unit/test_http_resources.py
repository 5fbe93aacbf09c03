"""Programs, sessions, workers and the pool itself over HTTP, against a pool double."""

from __future__ import annotations

import asyncio

import pytest
from http_doubles import FakePool, assert_problem, client_of

from dspool.config import PoolConfig
from dspool.errors import ProgramError, SandboxUnavailable
from dspool.messages import ConfigureLM, Deployment, ResetSession, SetVariable

POOL = "/v1/pools/default"
WORKER = POOL + "/workers/default-w0-abcdef"


async def get(path, **settings):
    async with client_of(FakePool(), **settings) as http:
        return await http.get(POOL + path)


async def test_pool_programs_are_listed_with_their_versions_a_page_at_a_time():
    first = (await get("/programs?limit=1")).json()
    deployments = [{"version": version, "kind": "spec", "summary": ""} for version in (2, 1)]
    program = {"program": "qa", "version": 2, "versions": [1, 2], "deployments": deployments}
    assert first == {"programs": [program], "next_cursor": "qa"}
    second = (await get(f"/programs?limit=1&cursor={first['next_cursor']}")).json()
    assert [one["program"] for one in second["programs"]] == ["zz"]
    assert second["next_cursor"] is None


async def test_a_pool_program_tells_what_its_workers_know():
    shown = (await get("/programs/qa")).json()
    assert shown["versions"] == [1, 2]
    assert shown["info"] == {"signature": "question -> answer"}
    assert_problem(await get("/programs/none"), 404, "unknown_program")


async def test_a_version_is_deployed_and_rolled_back():
    pool = FakePool()
    async with client_of(pool) as http:
        done = await http.post(POOL + "/programs/qa/versions", json={"signature": "question -> answer"})
        assert (done.status_code, done.json()) == (201, {"program": "qa", "version": 3})
        back = await http.post(POOL + "/programs/qa/rollback")
        assert back.json() == {"program": "qa", "version": 1}
        assert (await http.post(POOL + "/programs/qa/rollback", json={"version": 2})).json()["version"] == 2
        assert_problem(await http.post(POOL + "/programs/qa/versions", json={}), 422, "invalid_request")
    assert pool.asked[0]["deploy"] == Deployment("qa", 0, spec={"signature": "question -> answer"})


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (None, Deployment("qa", 0)),
        ({"state": {"p": {}}}, Deployment("qa", 0, state={"p": {}})),
        ({"kwargs": {"n": 1}}, Deployment("qa", 0, kwargs={"n": 1})),
        (
            {"import_path": "a:B", "kwargs": {"n": 1}, "state": {"p": {}}},
            Deployment("qa", 0, import_path="a:B", kwargs={"n": 1}, state={"p": {}}),
        ),
        ({"program_dir": "/saved/qa"}, Deployment("qa", 0, program_dir="/saved/qa")),
    ],
)
async def test_a_deployment_may_name_a_part_of_the_program_and_the_rest_stays(body, wanted):
    pool = FakePool()
    async with client_of(pool) as http:
        assert (await http.post(POOL + "/programs/qa/versions", json=body)).status_code == 201
        both = {"program_dir": "/saved/qa", "import_path": "a:B"}
        assert_problem(await http.post(POOL + "/programs/qa/versions", json=both), 422, "invalid_request")
    assert pool.asked[0]["deploy"] == wanted


async def test_no_session_gets_a_program_from_a_directory():
    async with client_of(FakePool()) as http:
        asked = {"program_dir": "/saved/qa"}
        answer = await http.put(POOL + "/sessions/s/programs/qa", json=asked)
        assert_problem(answer, 422, "invalid_request")


async def test_how_long_a_canary_is_watched_may_be_asked_for():
    pool = FakePool()
    async with client_of(pool) as http:
        to = POOL + "/programs/qa/versions?canary_s="
        assert (await http.post(to + "60", json={"signature": "a -> b"})).status_code == 201
        assert (await http.post(to + "0.25", json={"signature": "a -> b"})).status_code == 201
        for wrong in ("soon", "-1", "3601", "nan", "inf", ""):
            assert_problem(await http.post(to + wrong, json={"signature": "a -> b"}), 422, "invalid_request")
    assert [asked["canary_s"] for asked in pool.asked] == [60, 0.25]


@pytest.mark.parametrize(
    ("method", "path", "asks"),
    [
        ("GET", "", "status"),
        ("GET", "/stats", "status"),
        ("GET", "/decisions", "decisions"),
        ("GET", "/rollouts", "rollouts"),
        ("GET", "/workers", "status"),
        ("POST", "/pause", "pause"),
        ("POST", "/resume", "resume"),
        ("POST", "/resize", "resize"),
    ],
)
async def test_who_asks_a_supervisor_that_is_away_is_told_so_within_the_deadline(method, path, asks):
    pool = FakePool()

    async def never(*_):
        await asyncio.Event().wait()

    setattr(pool, asks, never)
    async with client_of(pool, operation_timeout_s=0.05) as http:
        answer = await asyncio.wait_for(
            http.request(method, POOL + path, json={"size": 1} if path == "/resize" else None), 60
        )
    assert_problem(answer, 503, "pool_not_ready")


async def test_a_version_from_an_import_path_may_choose_lm_and_adapter_and_nothing_else_of_a_spec():
    pool = FakePool()
    async with client_of(pool) as http:
        body = {"import_path": "a:B", "spec": {"lm": "fast"}}
        assert (await http.post(POOL + "/programs/qa/versions", json=body)).status_code == 201
        body["spec"]["module"] = "Predict"
        refused = await http.post(POOL + "/programs/qa/versions", json=body)
        assert_problem(refused, 422, "invalid_request")
    assert pool.asked[0]["deploy"] == Deployment("qa", 0, spec={"lm": "fast"}, import_path="a:B")


async def test_saved_state_alone_is_a_version_of_a_pool_program_but_no_program_of_a_session():
    pool = FakePool()
    async with client_of(pool) as http:
        body = {"state": {"demos": []}}
        assert (await http.post(POOL + "/programs/qa/versions", json=body)).status_code == 201
        refused = await http.put(POOL + "/sessions/ada/programs/p", json=body)
        assert_problem(refused, 422, "invalid_request")
    assert pool.asked[0]["deploy"] == Deployment("qa", 0, state={"demos": []})


async def test_only_a_program_that_there_is_gets_a_version_if_so_asked():
    pool = FakePool()
    async with client_of(pool) as http:
        path = POOL + "/programs/qaa/versions"
        spec = {"signature": "a -> b"}
        for body in ({"new": False, **spec}, {"new": False, "spec": spec}, {"new": False}):
            refused = assert_problem(await http.post(path, json=body), 404, "unknown_program")
            assert "did you mean qa?" in refused["detail"]
        assert pool.asked == []
        for body in ({"new": True, **spec}, spec):
            assert (await http.post(path, json=body)).status_code == 201
        assert pool.asked[0]["deploy"] == Deployment("qaa", 0, spec=spec)


async def test_two_versions_are_compared_with_what_they_did_at_the_same_time():
    pool = FakePool()
    made = [Deployment("qa", number, spec={"signature": f"q -> a{number}"}) for number in (2, 3)]

    async def deployments():
        return made

    pool.deployments = deployments
    async with client_of(pool) as http:
        path = POOL + "/programs/qa/compare"
        found = (await http.get(path + "?old=2&new=3")).json()
        assert found["differences"] == [
            {"part": "fields", "where": "signature", "before": "q -> a2", "after": "q -> a3"}
        ]
        assert (found["rollout"]["previous"], found["rollout"]["version"]) == (2, 3)
        assert_problem(await http.get(path + "?old=2"), 422, "invalid_request")
        assert_problem(await http.get(path + "?old=2&new=9"), 404, "unknown_program")
        assert_problem(await http.get(POOL + "/programs/qaa/compare?old=1&new=2"), 404, "unknown_program")


async def test_decisions_about_the_size_are_shown_with_their_numbers():
    shown = (await get("/decisions?limit=2")).json()["decisions"]
    assert len(shown) == 2
    assert (shown[0]["action"], shown[0]["numbers"]) == ("grow", {"backlog": 20.0})
    assert_problem(await get("/decisions?limit=0"), 422, "invalid_request")
    assert_problem(await get("/decisions?since=0"), 422, "invalid_request")


async def test_roll_outs_are_shown_with_what_their_canaries_did():
    (shown,) = (await get("/rollouts?program=qa")).json()["rollouts"]
    assert (await get("/rollouts?program=other")).json()["rollouts"] == []
    assert (shown["phase"], shown["reason"], shown["previous"]) == ("rolled back", "slower", 2)
    assert shown["new"] == {"operations": 20, "errors": 1, "run_s": 0.5, "running": 0, "running_s": 0.0}


async def test_each_of_a_batch_ends_by_itself_in_its_place():
    pool = FakePool()
    run = pool.run

    async def picky(command, **options):
        if command.inputs == {"n": 1}:
            raise ProgramError("not this one")
        return await run(command, **options)

    pool.run = picky
    async with client_of(pool) as http:
        answer = await http.post(POOL + "/programs/qa/batch", json={"inputs": [{"n": 0}, {"n": 1}, {"n": 2}]})
    body = answer.json()
    assert (body["succeeded"], body["failed"]) == (2, 1)
    assert [item.get("result", {}).get("outputs") for item in body["items"]] == [{"n": 0}, None, {"n": 2}]
    assert body["items"][1]["problem"]["code"] == "program_error"


@pytest.mark.parametrize("inputs", [[], [{}, {}, {}], {}, [1]])
async def test_a_batch_that_is_empty_or_too_large_is_refused(inputs):
    pool = FakePool()
    async with client_of(pool, max_batch=2) as http:
        answer = await http.post(POOL + "/programs/qa/batch", json={"inputs": inputs})
    assert_problem(answer, 422, "invalid_request")
    assert pool.runs == 0


async def test_a_session_is_created_with_the_given_name_or_with_one_that_cannot_be_guessed():
    async with client_of(FakePool()) as http:
        named = await http.post(POOL + "/sessions", json={"id": "a/b"})
        assert named.status_code == 201
        assert named.headers["location"] == "/v1/pools/default/sessions/a%2Fb"
        assert (await http.get(named.headers["location"])).json()["id"] == "a/b"
        unnamed = [(await http.post(POOL + "/sessions")).json()["id"] for _ in range(2)]
        assert len(set(unnamed)) == 2
        assert min(map(len, unnamed)) >= 20
        assert_problem(await http.post(POOL + "/sessions", json={"id": "ada"}), 409, "conflict")
        assert_problem(await http.post(POOL + "/sessions", json={"id": ""}), 422, "invalid_request")
        assert_problem(await http.post(POOL + "/sessions", json={"id": "a\nb"}), 422, "invalid_request")


async def test_variables_are_set_read_listed_and_deleted():
    pool = FakePool()
    base = POOL + "/sessions/ada/variables"
    async with client_of(pool) as http:
        assert (await http.put(base + "/tone", json={"value": None})).json() == {
            "name": "tone",
            "value": None,
        }
        assert (await http.get(base + "/tone")).json() == {"name": "tone", "value": [1]}
        assert (await http.get(base + "?limit=2")).json() == {"variables": ["a", "b"], "next_cursor": "b"}
        assert (await http.get(base + "?cursor=b")).json() == {"variables": ["c"], "next_cursor": None}
        assert (await http.delete(base + "/tone")).status_code == 204
        assert_problem(await http.put(base + "/tone", json={}), 422, "invalid_request")
    assert pool.asked[0]["command"] == SetVariable("tone", None)
    assert pool.asked[0]["session"] == "ada"


async def test_a_session_is_reset_and_given_a_model():
    pool = FakePool()
    async with client_of(pool) as http:
        assert (await http.post(POOL + "/sessions/ada/reset")).status_code == 204
        await http.put(POOL + "/sessions/ada/lm", json={"profile": "fast"})
        assert (await http.get(POOL + "/sessions/ada/history?limit=1")).json()["operations"]
        assert (await http.get(POOL + "/sessions/ada/programs")).json()["programs"][0]["program"] == "qa"
        assert_problem(await http.get(POOL + "/sessions/none/programs"), 404, "unknown_session")
    assert pool.asked[0]["command"] == ResetSession()
    assert pool.asked[1]["command"] == ConfigureLM("fast")


async def test_workers_are_listed_and_looked_at():
    assert [one["id"] for one in (await get("/workers")).json()["workers"]] == ["default-w0-abcdef"]
    assert (await get("/workers/default-w0-abcdef")).json()["slot"] == 0
    assert_problem(await get("/workers/none"), 404, "unknown_worker")


@pytest.mark.parametrize("what", ["drain", "restart"])
async def test_a_worker_is_gone_or_still_on_its_way(what, monkeypatch):
    monkeypatch.setattr("dspool_serve.api.workers.LEAST_WAIT_S", 0.001)
    pool = FakePool()
    async with client_of(pool) as http:
        assert (await http.post(f"{WORKER}/{what}")).json() == {"worker": "default-w0-abcdef", "gone": True}
        pool.gone = asyncio.Event()
        waited = await http.post(f"{WORKER}/{what}", json={"wait_s": 0})
        assert waited.json()["gone"] is False
        assert_problem(await http.post(f"{POOL}/workers/none/{what}"), 404, "unknown_worker")


async def test_operators_resize_pause_and_resume():
    pool = FakePool()
    async with client_of(pool) as http:
        assert (await http.post(POOL + "/resize", json={"size": 3})).json() == {"desired": 3}
        assert (await http.post(POOL + "/pause")).json() == {"paused": True}
        assert (await http.post(POOL + "/resume")).json() == {"paused": False}
        assert_problem(await http.post(POOL + "/resize", json={"size": -1}), 422, "invalid_request")
    assert pool.size == 3
    assert pool.asked == [{"pause": True}, {"pause": False}]


async def test_stats_are_given_also_when_nothing_is_measured():
    stats = (await get("/stats")).json()
    assert stats["actual"] == 1
    assert stats["load"] is None


async def test_the_configuration_is_shown_without_passwords():
    pool = FakePool()
    pool.config = PoolConfig(pool_size=3, store_url="postgresql://me:secret@host/db?password=secret")
    async with client_of(pool) as http:
        config = (await http.get("/v1/pools/default/config")).json()["config"]
    assert (config["name"], config["pool_size"]) == ("default", 3)
    assert config["store_url"] == "postgresql://me:***@host/db?password=***"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=%C2%B2", "unknown=1"])
@pytest.mark.parametrize("path", ["/programs", "/workers", "/sessions", "/sessions/ada/variables"])
async def test_a_page_out_of_range_is_refused(path, query):
    assert_problem(await get(f"{path}?{query}"), 422, "invalid_request")


@pytest.mark.parametrize(("path", "kind"), [("", "html"), ("/docs.js", "javascript"), ("/docs.css", "css")])
async def test_the_documentation_needs_nothing_from_elsewhere(path, kind):
    async with client_of(FakePool()) as http:
        answer = await http.get("/docs" + path)
    assert answer.status_code == 200
    assert kind in answer.headers["content-type"]
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_code_runs_only_where_it_is_offered_and_says_so_where_there_is_no_sandbox():
    path = POOL + "/sessions/s/execute_code"
    pool = FakePool()
    async with client_of(pool) as http:
        refused = await http.post(path, json={"code": "1"})
        assert_problem(refused, 403, "not_allowed")
        assert "service.execute_code" in refused.text
    assert pool.runs == 0
    async with client_of(pool, execute_code=True) as http:
        pool.fail_with = SandboxUnavailable("there is no Deno; pip install deno")
        missing = await http.post(path, json={"code": "1"})
        assert_problem(missing, 501, "sandbox_unavailable")
        assert "pip install deno" in missing.text
        pool.fail_with = None
        done = (await http.post(path, json={"code": "1"})).json()
        assert (done["result"], done["stdout"], done["worker"]) == (2, "hi", "default-w0-abcdef")
        assert_problem(await http.post(path, json={"code": ""}), 422, "invalid_request")
