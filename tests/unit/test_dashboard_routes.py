"""The dashboard and the API as its page asks it: files, policy, who may see and do what, and what is answered."""

from __future__ import annotations

import asyncio
import gzip
import json
import re

import httpx
import pytest

from dspool.errors import WorkerLost
from dspool_console.dashboard import DASHBOARD, files
from dspool_serve.api import ROUTES
from tests.dashboard_demo import application, tokens_for, write_traces
from tests.simulated_load import HOSTILE, STEPS
from tests.simulated_pool import SimulatedPool
from tests.unit.http_doubles import JSON, until

PAGE = "/dashboard"
POOL = "/v1/pools/default"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    pool = SimulatedPool(workers=3, history_s=300, state_dir=tmp_path_factory.mktemp("state"))
    write_traces(pool, 50)
    return pool


def client(*pools, tokens=None, audit=None, **settings):
    app = application(*pools, tokens=tokens, audit=audit, **settings)
    found = httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost", headers=JSON
    )
    found.app = app
    return found


async def logged_in(http, token):
    answer = await http.post(f"{PAGE}/login", json={"token": token}, headers={"x-dspool-csrf": "login"})
    assert answer.status_code == 200, answer.text
    return answer.json()["csrf"]


# --- files and policy -------------------------------------------------------------------------------


async def test_the_page_may_run_only_what_the_service_itself_serves(demo):
    async with client(demo) as http:
        answer = await http.get("/dashboard")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert "<script>" not in answer.text
    assert not re.search(r"\son\w+=|style=", answer.text)


async def test_the_address_of_the_service_leads_to_the_dashboard_also_below_a_path(demo):
    async with client(demo) as http:
        answer = await http.get("/", headers={"accept": "text/html"})
    assert (answer.status_code, answer.content) == (307, b"")
    # Relative: below a proxy's path it stays there.
    assert answer.headers["location"] == "dashboard"


async def test_a_file_is_kept_for_ever_under_its_version_and_not_under_another():
    name = next(iter(files.files()))
    async with client() as http:
        now = await http.get(f"{files.PREFIX}/{files.version()}/{name}")
        old = await http.get(f"{files.PREFIX}/0123456789ab/{name}")
        again = await http.get(
            f"{files.PREFIX}/{files.version()}/{name}", headers={"if-none-match": now.headers["etag"]}
        )
        missing = await http.get(f"{files.PREFIX}/{files.version()}/nothing.js")
        outside = await http.get(f"{files.PREFIX}/{files.version()}/..%2f..%2fapp.py")
    assert now.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert old.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert missing.status_code == outside.status_code == 404


async def test_the_chart_library_comes_out_of_the_installed_package():
    assert files.VENDOR.keys() == {
        name.removeprefix("vendor/") for name in files.files() if name.startswith("vendor/")
    }


async def test_a_table_is_packed_for_who_takes_that(demo):
    async with client(demo) as http:
        packed = await http.get(f"{POOL}/metrics/table?range=300", headers={"accept-encoding": "gzip"})
        plain = await http.get(f"{POOL}/metrics/table?range=300", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json()["columns"].keys() == plain.json()["columns"].keys()
    assert len(gzip.compress(plain.content)) < len(plain.content) / 2


# --- roles ------------------------------------------------------------------------------------------


def test_the_dashboard_itself_changes_nothing_but_a_login():
    changing = {route.path for route in DASHBOARD if route.method != "GET" and route.role != "admin"}
    assert changing == {f"{PAGE}/login", f"{PAGE}/logout"}


async def test_an_admin_silences_an_alert_with_a_reason_and_an_end_and_readers_see_that_but_not_who():
    pool = SimulatedPool(workers=1, history_s=2)
    texts, source = tokens_for(root="admin", eve="reader")
    silence, why = f"{POOL}/alerts/DspoolQueueWait/silence", {"reason": "moving", "duration_s": 3600}
    async with client(pool, tokens=source) as http:
        who = {name: {"authorization": f"Bearer {text}"} for name, text in texts.items()}

        async def shown(name):
            answer = (await http.get(f"{POOL}/alerts", headers=who[name])).json()
            return {one["name"]: one["silence"] for one in answer["alerts"]}.get("DspoolQueueWait")

        assert (await http.post(silence, json=why, headers=who["eve"])).status_code == 403
        for wrong in (
            {**why, "reason": ""},
            {**why, "duration_s": 1},
            {**why, "reason": "x" * 301},
            {"reason": "x"},
        ):
            assert (await http.post(silence, json=wrong, headers=who["root"])).status_code == 422
        mistyped = await http.post(silence.replace("Wait", "Wayt"), json=why, headers=who["root"])
        assert (mistyped.status_code, "did you mean DspoolQueueWait?" in mistyped.text) == (404, True)
        made = await http.post(silence, json=why, headers=who["root"])
        assert made.status_code == 201
        kept = made.json()["silence"]
        assert (kept["by"], kept["until"] - kept["since"]) == ("root", 3600.0)
        watch = http._transport.app._console.dashboard.of("default")
        watch.alerts.take(await pool.snapshot())
        assert (await shown("root"))["by"] == "root"
        assert {**(await shown("root")), "by": ""} == await shown("eve")
        overview = (await http.get(f"{POOL}/overview?fresh=1", headers=who["eve"])).json()
        assert overview["alerts"]["silenced"] == 1
        assert (await http.delete(silence, headers=who["root"])).json() == {
            "alert": "DspoolQueueWait",
            "silence": None,
        }
        assert await shown("root") is None


def test_below_the_page_there_is_nothing_but_its_files_and_the_login():
    own = {route.path for route in DASHBOARD if not route.path.startswith("/v1/")}
    assert {path for path in own if "/static/" not in path} == {
        "/", PAGE, f"{PAGE}/", f"{PAGE}/me", f"{PAGE}/login", f"{PAGE}/logout",
    }  # fmt: skip


async def test_without_a_session_there_is_only_the_page_and_the_login(demo):
    _, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        assert (await http.get("/dashboard")).status_code == 200
        me = (await http.get(f"{PAGE}/me")).json()
        assert me["login_needed"]
        assert me["pools"] == []
        for route in (*DASHBOARD, *ROUTES):
            if route.role is None:
                continue
            path = re.sub(r"\{\w+\}", "default", route.path)
            answer = await http.request(route.method, path)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path


async def test_a_reader_looks_and_an_admin_acts(demo, tmp_path):
    texts, source = tokens_for(root="admin", eve="reader")
    async with client(demo, tokens=source, audit=tmp_path / "audit.jsonl") as http:
        word = await logged_in(http, texts["eve"])
        assert (await http.get(f"{POOL}/overview")).status_code == 200
        refused = await http.post(f"{POOL}/resize", json={"size": 2}, headers={"x-dspool-csrf": word})
        assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
        assert (await http.get("/v1/audit")).status_code == 403
        worker = next(iter(demo.rows))
        assert (await http.get(f"{POOL}/workers/{worker}/log")).status_code == 403
        word = await logged_in(http, texts["root"])
        done = await http.post(f"{POOL}/resize", json={"size": 3}, headers={"x-dspool-csrf": word})
        assert done.json() == {"desired": 3}
        records = (await http.get("/v1/audit")).json()["records"]
    told = [(one["principal"], one["event"], one["path"]) for one in records]
    assert told[0] == ("root", "done", f"{POOL}/resize")
    assert ("eve", "denied", f"{POOL}/resize") in told
    assert not any(text in json.dumps(records) for text in texts.values())


async def test_without_tokens_everybody_on_the_machine_is_admin(demo):
    async with client(demo) as http:
        me = (await http.get(f"{PAGE}/me")).json()
        assert (me["principal"], me["role"], me["login_needed"]) == ("local", "admin", False)
        done = await http.post(f"{POOL}/pause", headers={"x-dspool-csrf": me["csrf"]})
        assert done.json() == {"paused": True}
        await http.post(f"{POOL}/resume", headers={"x-dspool-csrf": me["csrf"]})


async def test_who_is_no_admin_sees_neither_ids_of_sessions_nor_their_owners(demo):
    texts, source = tokens_for(root="admin", eve="reader")
    async with client(demo, tokens=source) as http:
        await logged_in(http, texts["eve"])
        worker = next(id for id, row in demo.rows.items() if row.state == "ready")
        pages = [
            await http.get(f"{POOL}/{path}")
            for path in (
                "pool_sessions",
                f"running?workers={worker}",
                f"workers/{worker}",
                "pool_sessions?search=user-1",
                "pool_sessions?cursor=user-1",
            )
        ]
        for page in pages:
            assert page.status_code == 200
            assert "user-" not in page.text
            assert "person" not in page.text
        # Searching must not tell either, nor does a session whose name begins like a worker's id.
        assert pages[0].json()["sessions"] == pages[3].json()["sessions"] == pages[4].json()["sessions"]
        assert pages[0].json()["next_cursor"] is None
        wonder = (await http.get(f"{POOL}/pool_sessions?search={demo.name}-wonder")).json()
        assert wonder["sessions"] == pages[0].json()["sessions"]
        there = (await http.get(f"{POOL}/pool_sessions?search={worker}")).json()["sessions"]
        assert {row["owner"] for row in there} == {worker}
        await logged_in(http, texts["root"])
        assert (await http.get(f"{POOL}/pool_sessions?search=user-17")).json()["sessions"][0][
            "id"
        ] == "user-17"


# --- sessions and CSRF ------------------------------------------------------------------------------


async def test_a_login_is_for_this_site_and_its_api_and_no_script(demo):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        answer = await http.post(
            f"{PAGE}/login", json={"token": texts["root"]}, headers={"x-dspool-csrf": "login"}
        )
        cookie, other = answer.headers.get_list("set-cookie")
        assert {"HttpOnly", "SameSite=Strict", "Path=/dashboard"} <= set(cookie.split("; "))
        assert other == cookie.replace("Path=/dashboard", "Path=/v1")
        assert texts["root"] not in cookie
        assert "Secure" not in cookie
        sent = {"cookie": cookie.split(";")[0]}
        assert (await http.get("/v1/pools", headers=sent)).status_code == 200
        # What is not asked by the page takes bearer tokens only.
        assert (await http.get("/metrics", headers=sent)).status_code == 401
        # A token that is sent with it is what counts, also if it is wrong.
        wrong = sent | {"authorization": "Bearer dsp_wrong"}
        assert (await http.get("/v1/pools", headers=wrong)).status_code == 401
    async with client(demo, tokens=source, tls=True) as http:
        answer = await http.post(
            f"{PAGE}/login", json={"token": texts["root"]}, headers={"x-dspool-csrf": "login"}
        )
        assert "Secure" in answer.headers["set-cookie"]


OTHER_PAGES = (
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "http://[x"},
)
CHANGES = [
    (route.method, re.sub(r"\{\w+\}", "x", route.path.replace("{pool}", "default")))
    for route in (*ROUTES, *DASHBOARD)
    if route.method != "GET" and route.path.startswith("/v1/")
]


@pytest.mark.parametrize("headers", [{}, {"x-dspool-csrf": "wrong"}, {"x-dspool-csrf": ""}, *OTHER_PAGES])
async def test_no_other_page_can_act_through_a_visitor_who_is_logged_in(demo, headers):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        word = await logged_in(http, texts["root"])
        # Also with the right word, should it have become known.
        sent = {"x-dspool-csrf": word} | headers if headers in OTHER_PAGES else headers
        for method, path in CHANGES:
            answer = await http.request(method, path, content=b"{}", headers=sent)
            assert answer.status_code == 403, (method, path, answer.text)
            assert answer.json()["code"] in ("csrf", "not_allowed")
        answer = await http.post(f"{POOL}/resize", json={"size": 1}, headers=sent)
    assert answer.status_code == 403
    assert demo.desired == 3


@pytest.mark.parametrize("headers", OTHER_PAGES)
async def test_without_tokens_no_other_page_can_act_through_a_visitor_of_this_machine(demo, headers):
    async with client(demo) as http:
        word = (await http.get(f"{PAGE}/me")).json()["csrf"]
        for method, path in CHANGES:
            answer = await http.request(
                method, path, content=b"{}", headers={"x-dspool-csrf": word} | headers
            )
            assert answer.status_code == 403, (method, path, answer.text)
            # A browser that logged in at a proxy adds this by itself.
            basic = {"authorization": "Basic YTpi"} | headers
            assert (await http.request(method, path, content=b"{}", headers=basic)).status_code == 403
        # Programs send none of these headers.
        assert (await http.post(f"{POOL}/resize", json={"size": 3})).status_code == 200
    assert demo.desired == 3


@pytest.mark.parametrize("headers", [{}, *({"x-dspool-csrf": "login"} | one for one in OTHER_PAGES)])
@pytest.mark.parametrize("path", ["login", "logout"])
async def test_no_other_page_can_log_a_visitor_in_or_out(demo, headers, path):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        answer = await http.post(f"{PAGE}/{path}", json={"token": texts["root"]}, headers=headers)
    assert (answer.status_code, answer.headers.get("set-cookie")) == (403, None), answer.text


async def test_another_logins_word_does_not_count(demo):
    texts, source = tokens_for(root="admin", eve="reader")
    async with client(demo, tokens=source) as http:
        words = [await logged_in(http, texts[who]) for who in ("eve", "root", "root")]
        answers = [
            (await http.post(f"{POOL}/resume", headers={"x-dspool-csrf": word})).status_code for word in words
        ]
    assert answers == [403, 403, 200]


async def test_a_bearer_token_needs_no_word(demo):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        bearer = {"authorization": f"Bearer {texts['root']}"}
        assert (await http.post(f"{POOL}/resize", json={"size": 3}, headers=bearer)).status_code == 200


async def test_wrong_tokens_are_slowed_down_and_written_down(demo, tmp_path):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source, audit=tmp_path / "a.jsonl") as http:
        answers = [
            await http.post(f"{PAGE}/login", json={"token": "dsp_no"}, headers={"x-dspool-csrf": "login"})
            for _ in range(21)
        ]
        right = await http.post(
            f"{PAGE}/login", json={"token": texts["root"]}, headers={"x-dspool-csrf": "login"}
        )
    assert {answer.status_code for answer in answers[:20]} == {401}
    assert (answers[20].status_code, right.status_code) == (429, 200)
    assert (tmp_path / "a.jsonl").read_text().count('"denied"') == 2


async def test_logging_out_ends_the_session_in_the_browser(demo):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        word = await logged_in(http, texts["root"])
        assert (await http.get(f"{POOL}/overview")).status_code == 200
        assert (await http.post(f"{PAGE}/logout", headers={"x-dspool-csrf": word})).status_code == 204
        assert (await http.get(f"{POOL}/overview")).status_code == 401


# --- what it answers --------------------------------------------------------------------------------


async def test_every_question_is_answered_with_json(demo):
    worker = next(iter(demo.rows))
    paths = (
        "overview", "metrics/table?range=60", "metrics/table?slot=0", "metrics/table?program=qa&range=60", "markers",
        "workers", f"workers/{worker}", f"workers/{worker}/log", f"running?workers={worker}", "pool_sessions",
        "operations", "operations/op-3", "decisions", "whatif?max_size=4&range=300", "warmup", "programs", "rollouts",
        "events", "alerts",
    )  # fmt: skip
    async with client(demo) as http:
        for path in paths:
            answer = await http.get(f"{POOL}/{path}")
            assert answer.status_code == 200, (path, answer.text)
            assert isinstance(answer.json(), dict)
            assert answer.headers["cache-control"] == "no-store"


async def test_a_hostile_name_stays_the_text_it_is(demo):
    async with client(demo) as http:
        listed = (await http.get(f"{POOL}/pool_sessions?search=onerror")).json()["sessions"]
        assert listed[0]["id"] == HOSTILE
        report = await http.get(f"{POOL}/report?range=300")
        me = (await http.get(f"{PAGE}/me")).json()
        gone = await http.delete(
            f"{POOL}/pool_sessions/{httpx.QueryParams({'i': HOSTILE})!s}".replace("i=", "").replace(
                "+", "%20"
            ),
            headers={"x-dspool-csrf": me["csrf"]},
        )
    assert "<img" not in report.text
    assert "&lt;img" in report.text
    assert gone.status_code == 204
    assert demo.ended == [HOSTILE]


async def test_the_report_is_one_file_that_needs_nothing_else(demo):
    async with client(demo) as http:
        answer = await http.get(f"{POOL}/report?range=300")
    assert answer.headers["content-disposition"].startswith('attachment; filename="dspool-default-')
    assert answer.text.count("<svg") == 11
    assert re.search(r"\(\d+ min( \d+ s)?\)", answer.text)
    assert not re.search(r"<script|src=|href=|url\(|@import", answer.text.replace("src=x", ""))


async def test_a_table_comes_as_csv_and_as_json_with_the_same_rows(demo):
    asked = f"{POOL}/metrics/table?columns=p50_s,p95_s,p50_s,p99_s,mean_s,p50_s&range=200"
    async with client(demo) as http:
        text = (await http.get(f"{asked}&format=csv")).text
        data = (await http.get(asked)).json()
        wrong = await http.get(f"{POOL}/metrics/table?columns=p50_s,nothing")
    lines = text.split()
    assert lines[0] == "time_utc,time_s,p50_s,p95_s,p99_s,mean_s"
    assert abs(len(lines) - 1 - len(data["at"])) <= 1
    assert data["columns"].keys() == {"p50_s", "p95_s", "p99_s", "mean_s"}
    assert wrong.status_code == 422


async def test_a_page_that_changed_something_can_ask_past_what_others_were_told(demo):
    async with client(demo) as http:
        assert not (await http.get(f"{POOL}/overview")).json()["pool"]["paused"]
        await demo.pause()
        try:
            assert not (await http.get(f"{POOL}/overview")).json()["pool"]["paused"]
            assert (await http.get(f"{POOL}/overview?fresh=1")).json()["pool"]["paused"]
        finally:
            demo.paused = False


async def test_while_the_metrics_are_away_the_rest_is_shown(demo):
    demo.away = True
    try:
        async with client(demo) as http:
            overview = (await http.get(f"{POOL}/overview")).json()
            workers = (await http.get(f"{POOL}/workers")).json()["workers"]
            history = await http.get(f"{POOL}/metrics/table?range=60")
    finally:
        demo.away = False
    assert overview["now"] is None
    assert overview["pool"]["state"] == "ready"
    assert len(workers) == len(demo.rows)
    assert {row["utilization"] for row in workers} == {None}
    assert (history.status_code, history.json()["code"]) == (502, "worker_lost")


async def test_two_pools_are_two_and_none_is_none(demo):
    other = SimulatedPool("other", workers=1, history_s=20)
    async with client(demo, other) as http:
        assert (await http.get(f"{PAGE}/me")).json()["pools"] == ["default", "other"]
        assert (await http.get("/v1/pools/other/overview")).json()["pool"]["name"] == "other"
        assert (await http.get("/v1/pools/third/overview")).status_code == 404
    async with client() as http:
        assert (await http.get(f"{PAGE}/me")).json()["pools"] == []
        assert (await http.get("/v1/pools")).json() == {"pools": []}


async def test_of_five_hundred_workers_all_are_listed_and_64_looked_into_at_once():
    many = SimulatedPool("default", workers=500, history_s=2)
    many._second(whole=True)
    async with client(many) as http:
        rows = (await http.get(f"{POOL}/workers?limit=1000")).json()["workers"]
        ids = [row["id"] for row in rows]
        running = await http.get(f"{POOL}/running?workers={','.join(ids[:64])}")
        refused = await http.get(f"{POOL}/running?workers={','.join(ids[:65])}")
    assert len(rows) == 501
    assert any(row["throughput"] for row in rows)
    assert len(running.json()["workers"]) == 64
    assert refused.status_code == 422


@pytest.mark.parametrize(
    "path",
    ["metrics/table?range=abc", "metrics/table?from=9&to=1", "metrics/table?from=nan", "whatif?min_size=9&max_size=2",
     "live?topics=x", "whatif?max_wait_s=-1", "overview?x=1", "metrics/table?format=exe"],
)  # fmt: skip
async def test_what_cannot_be_answered_is_refused_with_a_problem(demo, path):
    async with client(demo) as http:
        answer = await http.get(f"{POOL}/{path}")
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_worker_is_shown_with_all_that_is_known_of_it(demo):
    worker = next(id for id, row in demo.rows.items() if row.state == "ready")
    # Twice: the first ends an interval that may be longer than the window of the figures.
    demo._second(whole=True)
    demo._second(whole=True)
    async with client(demo) as http:
        (listed,) = [
            row for row in (await http.get(f"{POOL}/workers")).json()["workers"] if row["id"] == worker
        ]
        detail = (await http.get(f"{POOL}/workers/{worker}")).json()
        missing = await http.get(f"{POOL}/workers/nobody")
    assert listed.items() <= detail.items()
    assert detail["throughput"] > 0
    assert detail["memory"].keys() == {"rss_mb", "pss_mb", "uss_mb"}
    assert [run["step"] for run in detail["warmup"]] == list(STEPS)
    assert detail["session_ids"]
    assert detail["programs"] == demo.versions
    assert missing.status_code == 404


async def test_a_worker_that_does_not_answer_is_shown_all_the_same(demo, monkeypatch):
    async def away(worker_id):
        raise WorkerLost("it hangs")

    monkeypatch.setattr(demo, "worker_operations", away)
    worker = next(iter(demo.rows))
    async with client(demo) as http:
        detail = (await http.get(f"{POOL}/workers/{worker}")).json()
        running = (await http.get(f"{POOL}/running?workers={worker}")).json()
    assert (detail["id"], detail["running_operations"]) == (worker, None)
    assert running["workers"] == {worker: None}


async def test_only_an_admin_ends_anybodys_session_and_it_is_written_down(tmp_path):
    pool = SimulatedPool(workers=1, history_s=2, state_dir=tmp_path)
    texts, source = tokens_for(root="admin", ada="caller")
    async with client(pool, tokens=source, audit=tmp_path / "audit.jsonl") as http:
        ada, root = ({"authorization": f"Bearer {texts[who]}"} for who in ("ada", "root"))
        assert (await http.delete(f"{POOL}/pool_sessions/user-3", headers=ada)).status_code == 403
        assert (await http.delete(f"{POOL}/pool_sessions/user-3", headers=root)).status_code == 204
        assert (await http.delete(f"{POOL}/pool_sessions/user-3", headers=root)).status_code == 404
    assert pool.ended == ["user-3"]
    assert (tmp_path / "audit.jsonl").read_text().count("pool_sessions/user-3") == 3


async def test_a_warm_up_begins_at_once_and_only_one_at_a_time(demo):
    async with client(demo) as http:
        first = asyncio.ensure_future(http.post(f"{POOL}/warm"))
        await until(lambda: demo._progress)
        second = await http.post(f"{POOL}/warm", json={"strategy": "staged"})
        progress = (await http.get(f"{POOL}/warmup")).json()["progress"]
    demo._warming.cancel()
    first.cancel()
    await asyncio.gather(demo._warming, first, return_exceptions=True)
    assert progress[0]["kind"] == "begin"
    assert second.status_code == 409
