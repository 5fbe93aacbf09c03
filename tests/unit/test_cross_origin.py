"""Pages of `service.cors_origins` use the API from a browser; all others, and all other pages, stay out."""

import httpx
import pytest

from dspool.config import ServiceConfig
from dspool.errors import ConfigError
from dspool_serve.access.cors import CrossOrigin
from dspool_serve.access.security import LOOPBACK_NAMES, Security
from tests.dashboard_demo import tokens_for
from tests.unit.http_doubles import JSON, FakePool, served

APP = "https://app.example.org"
EXECUTE = "/v1/pools/default/programs/qa/execute"
PREFLIGHT = {
    "origin": APP,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,idempotency-key",
    "sec-fetch-site": "cross-site",
    "sec-fetch-mode": "cors",
}
FETCH = {**JSON, "origin": APP, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}


def browser(*origins, tokens=None):
    security = Security(tokens, hosts=None if tokens else LOOPBACK_NAMES, origins=origins)
    app = served(FakePool(), security=security)
    transport = httpx.ASGITransport(app=CrossOrigin(app, origins) if origins else app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")


async def test_a_page_of_an_allowed_origin_asks_first_and_then_reads_the_answer():
    async with browser(APP) as http:
        first = await http.options(EXECUTE, headers=PREFLIGHT)
        assert first.status_code == 200
        assert first.headers["access-control-allow-origin"] == APP
        assert "POST" in first.headers["access-control-allow-methods"]
        answer = await http.post(EXECUTE, json={"inputs": {"q": "?"}}, headers=FETCH)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == APP
        assert "access-control-allow-credentials" not in answer.headers
        refused = await http.post("/v1/pools/nope/programs/qa/execute", json={"inputs": {}}, headers=FETCH)
        assert refused.status_code == 404
        assert refused.headers["access-control-allow-origin"] == APP


async def test_with_tokens_such_a_page_still_needs_one():
    texts, source = tokens_for(app="caller")
    async with browser(APP, tokens=source) as http:
        assert (await http.post(EXECUTE, json={"inputs": {}}, headers=FETCH)).status_code == 401
        headers = {**FETCH, "authorization": f"Bearer {texts['app']}"}
        assert (await http.post(EXECUTE, json={"inputs": {}}, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.org.evil.example", "http://app.example.org", "null", "https://APP.example.org"],
)
async def test_a_page_of_another_origin_is_refused_and_told_nothing(origin):
    async with browser(APP) as http:
        answer = await http.post(EXECUTE, json={"inputs": {}}, headers={**FETCH, "origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        asked = await http.options(EXECUTE, headers={**PREFLIGHT, "origin": origin})
        assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize("path", ["/dashboard/me", "/dashboard", "/metrics"])
async def test_beyond_the_api_an_allowed_origin_is_as_foreign_as_any(path):
    async with browser(APP) as http:
        answer = await http.get(path, headers=FETCH)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


async def test_without_the_setting_nobody_is_answered():
    async with browser() as http:
        answer = await http.options(EXECUTE, headers=PREFLIGHT)
        assert answer.status_code >= 400
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["https://app.example.org", "http://localhost:3000", "http://[::1]:3000"])
def test_origins_are_taken_as_browsers_send_them(origin):
    assert ServiceConfig(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "app.example.org", "https://app.example.org/", "https://a/b", "https://A.example", "ftp://a", "",
     "https://u:p@a.example", "http://localhost:port", "https://*.example.org", "https://a b", "https://a.example:443",
     "http://a.example:80", "https://münchen.de"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(ConfigError, match="cors_origins"):
        ServiceConfig(cors_origins=(origin,))
