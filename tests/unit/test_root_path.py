"""Behind a proxy that offers the service below a path: the pages, the description and the logins work there.

The proxy takes the path off, or leaves it on. What is only relative works without the service knowing of it.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin

import httpx
import pytest

from dspool.config import PoolConfig, ServiceConfig
from dspool.errors import ConfigError
from dspool.messages import SessionInfo
from dspool_console.dashboard import files
from dspool_serve.http.root_path import UnderRoot
from tests.dashboard_demo import application, tokens_for
from tests.simulated_pool import SimulatedPool
from tests.unit.http_doubles import JSON

ROOT = "/behind/dsp"


class Keeping(SimulatedPool):
    """Its sessions can be made."""

    async def create_session(self, id, **about):
        return SessionInfo(id, None, 0, 1.0, 1.0)


class Stripping:
    """What a proxy does with the path that it offers the service below; nothing else is there."""

    def __init__(self, app) -> None:
        self._app = app

    async def __call__(self, scope, receive, send) -> None:
        path = scope["path"]
        if not path.startswith(f"{ROOT}/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"of the proxy"})
            return
        raw = scope["raw_path"].removeprefix(ROOT.encode())
        await self._app({**scope, "path": path.removeprefix(ROOT), "raw_path": raw}, receive, send)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Keeping(workers=1, history_s=10, state_dir=tmp_path_factory.mktemp("state"))


def behind(demo, *, strips=True, known=True, tokens=None):
    app = application(demo, tokens=tokens, root_path=ROOT if known else "")
    if known:
        app = UnderRoot(app, ROOT)
    transport = httpx.ASGITransport(app=Stripping(app) if strips else app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=JSON)


def links(page: str) -> list[str]:
    return [link for link in re.findall(r'(?:src|href)="([^"#]+)"', page) if not link.startswith("data:")]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("page", ["/dashboard", "/dashboard/", "/docs"])
async def test_every_file_that_a_page_names_is_there(demo, page, known):
    async with behind(demo, known=known) as http:
        answer = await http.get(ROOT + page)
        assert answer.status_code == 200
        named = links(answer.text)
        assert named
        for link in named:
            assert (await http.get(urljoin(f"{ROOT}{page}", link))).status_code == 200, link


async def test_no_script_of_ours_asks_at_a_path_that_begins_at_the_servers_root(demo):
    async with behind(demo) as http:
        scripts = [name for name in files.files() if name.endswith(".js") and "vendor" not in name]
        texts = [(await http.get(f"{ROOT}{files.PREFIX}/{files.version()}/{name}")).text for name in scripts]
        texts.append((await http.get(f"{ROOT}/docs/docs.js")).text)
    assert len(texts) > 10
    ours = r"""(?<!ROOT \+ )["'`]/(v1|dashboard|docs|openapi|grafana|healthz|readyz|metrics)\b"""
    for text in texts:
        assert not re.search(ours, text)


@pytest.mark.parametrize("known", [True, False])
async def test_the_description_says_where_its_paths_begin(demo, known):
    async with behind(demo, known=known) as http:
        at = f"{ROOT}/openapi.json"
        (server,) = (await http.get(at)).json()["servers"]
        assert urljoin(at, server["url"]).rstrip("/") == ROOT
        assert server["url"] == (ROOT if known else ".")


@pytest.mark.parametrize("strips", [True, False])
async def test_a_login_stays_below_the_path_and_reaches_all_that_the_page_asks(demo, strips):
    texts, source = tokens_for(ada="caller")
    async with behind(demo, tokens=source, strips=strips) as http:
        answer = await http.post(
            f"{ROOT}/dashboard/login", json={"token": texts["ada"]}, headers={"x-dspool-csrf": "login"}
        )
        assert answer.status_code == 200
        paths = [re.search("Path=([^;]+)", one)[1] for one in answer.headers.get_list("set-cookie")]
        assert paths == [f"{ROOT}/dashboard", f"{ROOT}/v1"]
        # The client keeps cookies as a browser does.
        assert (await http.get(f"{ROOT}/dashboard/me")).json()["principal"] == "ada"
        assert (await http.get(f"{ROOT}/v1/pools")).status_code == 200
        csrf = answer.json()["csrf"]
        made = await http.post(
            f"{ROOT}/v1/pools/{demo.name}/sessions", json={"id": "a/b"}, headers={"x-dspool-csrf": csrf}
        )
        assert made.headers["location"] == f"{ROOT}/v1/pools/{demo.name}/sessions/a%2Fb"
        await http.post(f"{ROOT}/dashboard/logout", headers={"x-dspool-csrf": csrf})
        assert not list(http.cookies.jar)


async def test_names_with_escaped_slashes_stay_whole_below_the_path(demo):
    async with behind(demo, strips=False) as http:
        answer = await http.get(f"{ROOT}/v1/pools/no%2Fpool")
        assert "no/pool" in answer.json()["detail"]


async def test_the_path_alone_leads_to_the_dashboard(demo):
    async with behind(demo, strips=False) as http:
        answer = await http.get(ROOT, follow_redirects=True)
        assert (answer.status_code, answer.url.path) == (200, f"{ROOT}/dashboard")


async def test_without_the_proxy_the_service_still_answers(demo):
    async with behind(demo, strips=False) as http:
        for path in ("/healthz", "/v1/pools", "/dashboard"):
            assert (await http.get(path)).status_code == 200
        assert (await http.get(f"{ROOT}x/healthz")).status_code == 404


@pytest.mark.parametrize("root", ["", "/dsp", "/a/b-c_d", "/team.one/~x", "/v10"])
def test_a_path_of_the_proxys_is_taken(root):
    assert PoolConfig(service={"root_path": root}).service.root_path == root


@pytest.mark.parametrize(
    "root", ["/", "dsp", "/dsp/", "//dsp", "/a//b", "/..", "/a b", "/ä", "/a%20b", "/a;b", "/a\nb", "/v1", "/v1/x",
             "/dashboard", "/docs", "/-/x", "https://a/b"],
)  # fmt: skip
def test_what_is_no_such_path_is_refused(root):
    with pytest.raises(ConfigError, match="root_path"):
        ServiceConfig(root_path=root)
