"""The dashboard's doors: its files, its policy, who may see and do what, and what it answers."""

from __future__ import annotations

import asyncio
import gzip
import json
import re

import httpx
import pytest

from dspool_console.dashboard import files
from dspool_console.dashboard.routes import DASHBOARD
from tests.dashboard_demo import HOSTILE, SimulatedPool, application, tokens_for, write_traces

API = "/dashboard/api"
POOL = f"{API}/pools/default"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    pool = SimulatedPool(workers=3, history_s=300, state_dir=tmp_path_factory.mktemp("state"))
    write_traces(pool, 50)
    return pool


def client(*pools, tokens=None, audit=None, **settings):
    app = application(*pools, tokens=tokens, audit=audit, **settings)
    found = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")
    found.app = app
    return found


async def logged_in(http, token):
    answer = await http.post(f"{API}/login", json={"token": token}, headers={"x-dspool-csrf": "login"})
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


async def test_history_is_packed_for_who_takes_that(demo):
    async with client(demo) as http:
        packed = await http.get(f"{POOL}/history?range=300", headers={"accept-encoding": "gzip"})
        plain = await http.get(f"{POOL}/history?range=300", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json()["columns"].keys() == plain.json()["columns"].keys()
    assert len(gzip.compress(plain.content)) < len(plain.content) / 2


# --- roles ------------------------------------------------------------------------------------------


def test_what_the_dashboard_changes_needs_an_admin():
    for route in DASHBOARD:
        if route.method != "GET" and not route.path.endswith(("/login", "/logout")):
            assert route.role == "admin", route.path


async def test_without_a_session_there_is_only_the_page_and_the_login(demo):
    _, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        assert (await http.get("/dashboard")).status_code == 200
        me = (await http.get(f"{API}/me")).json()
        assert me["login_needed"]
        assert me["pools"] == []
        for route in DASHBOARD:
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
        assert (await http.get(f"{API}/audit")).status_code == 403
        worker = next(iter(demo.rows))
        assert (await http.get(f"{POOL}/workers/{worker}/log")).status_code == 403
        word = await logged_in(http, texts["root"])
        done = await http.post(f"{POOL}/resize", json={"size": 3}, headers={"x-dspool-csrf": word})
        assert done.json() == {"desired": 3}
        records = (await http.get(f"{API}/audit")).json()["records"]
    told = [(one["principal"], one["event"], one["path"]) for one in records]
    assert told[0] == ("root", "done", f"{POOL}/resize")
    assert ("eve", "denied", f"{POOL}/resize") in told
    assert not any(text in json.dumps(records) for text in texts.values())


async def test_without_tokens_everybody_on_the_machine_is_admin(demo):
    async with client(demo) as http:
        me = (await http.get(f"{API}/me")).json()
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
            for path in ("sessions", f"cells?workers={worker}", f"workers/{worker}", "sessions?search=user-1")
        ]
        for page in pages:
            assert page.status_code == 200
            assert "user-" not in page.text
            assert "person" not in page.text
        # Searching must not tell either, nor does a session whose name begins like a worker's id.
        assert pages[0].json()["sessions"] == pages[3].json()["sessions"]
        wonder = (await http.get(f"{POOL}/sessions?search={demo.name}-wonder")).json()
        assert wonder["sessions"] == pages[0].json()["sessions"]
        there = (await http.get(f"{POOL}/sessions?search={worker}")).json()["sessions"]
        assert {row["owner"] for row in there} == {worker}
        await logged_in(http, texts["root"])
        assert (await http.get(f"{POOL}/sessions?search=user-17")).json()["sessions"][0]["id"] == "user-17"


# --- sessions and CSRF ------------------------------------------------------------------------------


async def test_a_session_cookie_is_for_the_dashboard_of_this_site_and_no_script(demo):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        answer = await http.post(
            f"{API}/login", json={"token": texts["root"]}, headers={"x-dspool-csrf": "login"}
        )
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/dashboard"} <= set(cookie.split("; "))
        assert texts["root"] not in cookie
        assert "Secure" not in cookie
        # The API takes bearer tokens only: a cookie there would need guards of its own.
        assert (await http.get("/v1/pools", headers={"cookie": cookie.split(";")[0]})).status_code == 401
    async with client(demo, tokens=source, tls=True) as http:
        answer = await http.post(
            f"{API}/login", json={"token": texts["root"]}, headers={"x-dspool-csrf": "login"}
        )
        assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-dspool-csrf": "wrong"},
        {"origin": "http://evil.example", "WORD": ""},
        {"sec-fetch-site": "cross-site", "WORD": ""},
        {"sec-fetch-site": "same-site", "WORD": ""},
    ],
)
@pytest.mark.parametrize("with_tokens", [False, True])
async def test_no_other_page_can_act_through_a_visitor(demo, headers, with_tokens):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source if with_tokens else None) as http:
        word = (await http.get(f"{API}/me")).json()["csrf"]
        if with_tokens:
            word = await logged_in(http, texts["root"])
        sent = {name: value for name, value in headers.items() if name != "WORD"}
        if "WORD" in headers:
            sent["x-dspool-csrf"] = word
        answer = await http.post(f"{POOL}/resize", json={"size": 1}, headers=sent)
    assert answer.status_code == 403, answer.text
    assert demo.desired == 3


async def test_a_bearer_token_needs_no_word(demo):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        bearer = {"authorization": f"Bearer {texts['root']}"}
        assert (await http.post(f"{POOL}/resize", json={"size": 3}, headers=bearer)).status_code == 200


async def test_wrong_tokens_are_slowed_down_and_written_down(demo, tmp_path):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source, audit=tmp_path / "a.jsonl") as http:
        answers = [
            await http.post(f"{API}/login", json={"token": "dsp_no"}, headers={"x-dspool-csrf": "login"})
            for _ in range(21)
        ]
        right = await http.post(
            f"{API}/login", json={"token": texts["root"]}, headers={"x-dspool-csrf": "login"}
        )
    assert {answer.status_code for answer in answers[:20]} == {401}
    assert answers[20].status_code == right.status_code == 429
    assert (tmp_path / "a.jsonl").read_text().count('"denied"') == 20


async def test_logging_out_ends_the_session_in_the_browser(demo):
    texts, source = tokens_for(root="admin")
    async with client(demo, tokens=source) as http:
        word = await logged_in(http, texts["root"])
        assert (await http.get(f"{POOL}/overview")).status_code == 200
        assert (await http.post(f"{API}/logout", headers={"x-dspool-csrf": word})).status_code == 204
        assert (await http.get(f"{POOL}/overview")).status_code == 401


# --- what it answers --------------------------------------------------------------------------------


async def test_every_question_is_answered_with_json(demo):
    worker = next(iter(demo.rows))
    paths = (
        "overview", "history?range=60", "history?slot=0", "history?program=qa&range=60", "markers", "workers",
        f"workers/{worker}", f"workers/{worker}/log", f"cells?workers={worker}", "sessions", "operations",
        "operations/op-3", "sizing", "whatif?max_size=4&range=300", "warmup", "deployments", "events", "alerts",
    )  # fmt: skip
    async with client(demo) as http:
        for path in paths:
            answer = await http.get(f"{POOL}/{path}")
            assert answer.status_code == 200, (path, answer.text)
            assert isinstance(answer.json(), dict)
            assert answer.headers["cache-control"] == "no-store"


async def test_a_hostile_name_stays_the_text_it_is(demo):
    async with client(demo) as http:
        listed = (await http.get(f"{POOL}/sessions?search=onerror")).json()["sessions"]
        assert listed[0]["id"] == HOSTILE
        report = await http.get(f"{POOL}/report?range=300")
        me = (await http.get(f"{API}/me")).json()
        gone = await http.delete(
            f"{POOL}/sessions/{httpx.QueryParams({'i': HOSTILE})!s}".replace("i=", "").replace("+", "%20"),
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


async def test_a_chart_leaves_as_csv_and_as_json_with_the_same_rows(demo):
    async with client(demo) as http:
        text = (await http.get(f"{POOL}/export?chart=latency&format=csv&range=200")).text
        data = (await http.get(f"{POOL}/export?chart=latency&format=json&range=200")).json()
        wrong = await http.get(f"{POOL}/export?chart=nothing")
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
            history = await http.get(f"{POOL}/history?range=60")
    finally:
        demo.away = False
    assert overview["now"] is None
    assert overview["pool"]["state"] == "ready"
    assert len(workers) == len(demo.rows)
    assert (history.status_code, history.json()["code"]) == (502, "worker_lost")


async def test_two_pools_are_two_and_none_is_none(demo):
    other = SimulatedPool("other", workers=1, history_s=20)
    async with client(demo, other) as http:
        assert (await http.get(f"{API}/me")).json()["pools"] == ["default", "other"]
        assert (await http.get(f"{API}/pools/other/overview")).json()["pool"]["name"] == "other"
        assert (await http.get(f"{API}/pools/third/overview")).status_code == 404
    async with client() as http:
        assert (await http.get(f"{API}/me")).json()["pools"] == []
        assert (await http.get(f"{API}/pools")).json() == {"pools": []}


async def test_of_five_hundred_workers_all_are_listed_and_64_looked_into_at_once():
    many = SimulatedPool("default", workers=500, history_s=2)
    many._second(whole=True)
    async with client(many) as http:
        rows = (await http.get(f"{POOL}/workers")).json()["workers"]
        ids = [row["id"] for row in rows]
        cells = await http.get(f"{POOL}/cells?workers={','.join(ids[:64])}")
        refused = await http.get(f"{POOL}/cells?workers={','.join(ids[:65])}")
    assert len(rows) == 501
    assert len(cells.json()["workers"]) == 64
    assert refused.status_code == 422


@pytest.mark.parametrize(
    "path",
    ["history?range=abc", "history?from=9&to=1", "history?from=nan", "whatif?min_size=9&max_size=2", "live?topics=x",
     "whatif?max_wait_s=-1", "overview?x=1", "export?format=exe"],
)  # fmt: skip
async def test_what_cannot_be_answered_is_refused_with_a_problem(demo, path):
    async with client(demo) as http:
        answer = await http.get(f"{POOL}/{path}")
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_warm_up_begins_at_once_and_only_one_at_a_time(demo):
    async with client(demo) as http:
        word = {"x-dspool-csrf": (await http.get(f"{API}/me")).json()["csrf"]}
        first = await http.post(f"{POOL}/warm", headers=word)
        second = await http.post(f"{POOL}/warm", json={"strategy": "staged"}, headers=word)
    demo._warming.cancel()
    await asyncio.gather(demo._warming, return_exceptions=True)
    assert first.json() == {"started": True}
    assert second.status_code == 409
