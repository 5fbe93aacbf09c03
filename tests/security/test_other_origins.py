"""No page of another origin uses the service through a visitor's browser, with a login or without tokens."""

from __future__ import annotations

import re

import httpx
import pytest

from dspool_console.dashboard import DASHBOARD
from dspool_console.ray_panels import PANEL_ROUTES
from dspool_serve.access.security import LOOPBACK_NAMES, Security
from dspool_serve.api import ROUTES
from dspool_serve.api.application import Application
from dspool_serve.pools import Settings
from tests.dashboard_demo import application, tokens_for
from tests.simulated_pool import SimulatedPool
from tests.unit.http_doubles import FakePool, FixedPools, assert_problem

POOL = "/v1/pools/default"
ALL = (*ROUTES, *DASHBOARD, *PANEL_ROUTES)
CHANGES = [(r.method, r.path.replace("{pool}", "default")) for r in ALL if r.method != "GET"]
READS = [r.path.replace("{pool}", "default") for r in ALL if r.method == "GET"]

OTHER_PAGES = [
    {"origin": "http://evil.example"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://localhost:3000"},
    {"origin": "http://localhost.:8000"},
    {"origin": "http://127.0.0.1:8000"},
    {"origin": "http://localhost"},
    {"origin": "http://localhost:8000.evil.example"},
    {"origin": "http://localhost:8000@evil.example"},
    {"origin": "http://evil.example@localhost:8000"},
    {"origin": "http://evil.example/localhost:8000"},
    {"origin": "http://localhost:8000/"},
    {"origin": "http://localhost:8000, http://evil.example"},
    {"origin": "localhost:8000"},
    {"origin": "//localhost:8000"},
    {"origin": "file://localhost:8000"},
    {"origin": "chrome-extension://localhost:8000"},
    {"origin": "http://[::1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "Same-Origin"},
    {"sec-fetch-site": ""},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "origin": "http://localhost:8000"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    {"sec-fetch-site": "same-origin", "origin": "http://evil.example"},
]
NO_JSON = ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json",
    "application/json, text/plain", "text/plain; application/json", "application/jsonp", "application/xml"]  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    return SimulatedPool(workers=1, history_s=2)


class Browser:
    """A visitor of the service at localhost:8000: one who is logged in as admin, or one of a machine without tokens."""

    def __init__(self, pool, kind):
        self.pool, self.kind = pool, kind
        self.texts, source = tokens_for(root="admin")
        self.app = application(pool, tokens=source if kind == "login" else None)
        transport = httpx.ASGITransport(app=self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")

    async def __aenter__(self):
        if self.kind == "login":
            headers = {"x-dspool-csrf": "login", "content-type": "application/json"}
            answer = await self.http.post(
                "/dashboard/login", json={"token": self.texts["root"]}, headers=headers
            )
            assert answer.status_code == 200
        # Should it have become known.
        self.word = (await self.http.get("/dashboard/me")).json()["csrf"]
        return self

    async def __aexit__(self, *_):
        await self.http.aclose()

    async def ask(self, method, path, content=b"{}", **headers):
        path = re.sub(r"\{\w+\}", "x", path)
        sent = {"x-dspool-csrf": self.word, "content-type": "application/json"} | headers
        return await self.http.request(
            method, path, content=None if method in ("GET", "HEAD") else content, headers=sent
        )


@pytest.fixture(params=["login", "open"])
async def browser(request, pool):
    async with Browser(pool, request.param) as browser:
        yield browser


@pytest.mark.parametrize("headers", OTHER_PAGES, ids=str)
async def test_no_other_page_changes_anything(browser, headers):
    desired, paused = browser.pool.desired, browser.pool.paused
    for method, path in CHANGES:
        # A browser that logged in at a proxy adds the second by itself.
        for more in ({}, {"authorization": "Basic YTpi"}):
            answer = await browser.ask(method, path, **headers, **more)
            assert answer.status_code in (401, 403), (method, path, answer.text)
            assert "set-cookie" not in answer.headers
    assert (browser.pool.desired, browser.pool.paused) == (desired, paused)


@pytest.mark.parametrize("headers", OTHER_PAGES, ids=str)
async def test_no_other_page_reads_anything_or_opens_a_stream(browser, headers):
    for path in READS:
        for method in ("GET", "HEAD"):
            answer = await browser.ask(method, path, **headers)
            assert answer.status_code == 403, (method, path, answer.status_code)
            assert not any(name.startswith("access-control-") for name in answer.headers)


async def test_the_own_page_does_all_of_it(browser):
    own = {"sec-fetch-site": "same-origin", "origin": "http://localhost:8000"}
    for path in (f"{POOL}/overview", "/v1/pools", "/dashboard/me"):
        assert (await browser.ask("GET", path, **own)).status_code == 200, path
    assert (await browser.ask("POST", f"{POOL}/pause", **own)).json() == {"paused": True}
    assert (await browser.ask("POST", f"{POOL}/resume", **own)).json() == {"paused": False}


async def test_a_link_on_another_page_of_this_machine_leads_to_the_dashboard(browser):
    link = {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    answer = await browser.ask("GET", "/dashboard", **link)
    assert answer.status_code == 200
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert (await browser.ask("POST", f"{POOL}/pause", **link)).status_code == 403


@pytest.mark.parametrize("kind", NO_JSON)
async def test_a_body_that_is_not_said_to_be_json_changes_nothing(browser, kind):
    desired, paused = browser.pool.desired, browser.pool.paused
    for method, path in CHANGES:
        headers = {"content-type": kind} if kind else {}
        for content in (b"{}", pieces()):
            sent = {"x-dspool-csrf": browser.word} | headers
            path = re.sub(r"\{\w+\}", "x", path)
            # A browser that is too old to say where a form comes from.
            sent |= {"user-agent": "Mozilla/5.0"} if kind.startswith("multipart") else {}
            answer = await browser.http.request(method, path, content=content, headers=sent)
            assert_problem(answer, 415, "unsupported_media_type")
    assert (browser.pool.desired, browser.pool.paused) == (desired, paused)


async def pieces():
    yield b"{}"


async def test_json_may_say_its_character_set_and_no_body_needs_no_type(browser):
    kind = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await browser.ask("POST", f"{POOL}/resume", **kind)).status_code == 200
    headers = {"x-dspool-csrf": browser.word}
    answer = await browser.http.post(f"{POOL}/resume", headers=headers)
    assert answer.status_code == 200


async def test_a_program_with_a_bearer_token_sends_what_it_likes(pool):
    async with Browser(pool, "login") as browser:
        bearer = {"authorization": f"Bearer {browser.texts['root']}"}
        for more in ({"content-type": "text/plain"}, {"origin": "http://the-name-outside.example"}):
            answer = await browser.http.post(f"{POOL}/resume", content=b"{}", headers=bearer | more)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("headers", OTHER_PAGES[:-1], ids=str)
async def test_without_tokens_a_bearer_token_proves_nothing(pool, headers):
    async with Browser(pool, "open") as browser:
        for token in ("Bearer x", f"Bearer {browser.texts['root']}"):
            answer = await browser.ask("POST", f"{POOL}/pause", authorization=token, **headers)
            assert answer.status_code == 403
            plain = await browser.ask(
                "POST", f"{POOL}/pause", authorization=token, **{"content-type": "text/plain"}
            )
            assert plain.status_code == 415


# --- names of this machine --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", ":8000", "localhost.",
     "localhost.:80", "[::1", "::1", "[::1].evil.example", "evil@localhost", "localhost@evil",
     "localhost:evil", "localhost:80:80",
     "127.1", "2130706433", "0x7f000001", "0.0.0.0:8000", "[::ffff:127.0.0.1]:8000", "[::1%25lo]", "localhost ",
     "localhost/", "localhost,evil.example", "127.0.0.1 evil"],
)  # fmt: skip
async def test_a_name_that_is_not_loopbacks_is_answered_nothing_without_tokens(host):
    app = Application(FixedPools(FakePool()), Settings(), Security(hosts=LOOPBACK_NAMES))
    for path in READS + [path for _, path in CHANGES]:
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message, sent=sent):
            sent.append(message)

        method = "GET" if path in READS else next(m for m, p in CHANGES if p == path)
        path = re.sub(r"\{\w+\}", "x", path)
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
        }
        await app(scope | {"headers": [(b"host", host.encode())]}, receive, send)
        assert sent[0]["status"] in (403, 404), (path, sent)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
async def test_loopbacks_own_names_are_answered_whatever_the_port(host):
    app = Application(FixedPools(FakePool()), Settings(), Security(hosts=LOOPBACK_NAMES))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as http:
        answer = await http.get("/v1/pools", headers={"host": host})
    assert answer.status_code == 200


def test_nothing_that_is_only_read_changes_anything():
    """What a GET may do is in its handler; that all which change something are other methods is in the table."""
    verbs = re.compile(
        r"/(pause|resume|resize|drain|restart|rollback|warm|reset|execute|batch|login|logout)$"
    )
    assert [path for path in READS if verbs.search(path)] == []
