"""The dashboard behind a proxy that offers it below a path and takes that off: all that it names lies below it."""

from __future__ import annotations

import re

import pytest

from tests.browser.chromium import VIEWS, Looking, SignedDemo, needs_chromium
from tests.browser.stripping_proxy import StrippingProxy

pytestmark = [pytest.mark.browser, needs_chromium]

ROOT = "/dsp"
_NAMED = "() => [...document.querySelectorAll('a[href], img[src], script[src], link[href]')].map(x => x.href || x.src)"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    service = SignedDemo(tmp_path_factory.mktemp("demo"), "--workers", "4", "--root-path", ROOT)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def proxy(demo):
    proxy = StrippingProxy(demo.port, ROOT)
    yield proxy
    proxy.close()


@pytest.fixture
def behind(browser, demo, proxy):
    looking = Looking(browser, proxy.url)
    looking.sign_in(demo.tokens["root"])
    yield looking
    assert proxy.strayed == []
    assert [url for url in looking.asked if not url.startswith((f"{proxy.url}/", "data:"))] == []
    looking.close()


def test_every_page_lives_below_the_path_and_names_nothing_beside_it(behind, proxy):
    for view in VIEWS:
        page = behind.go(view)
        page.locator("#connection", has_text="live").wait_for()
        assert [name for name in page.evaluate(_NAMED) if not name.startswith(f"{proxy.url}/")] == [], view
    page = behind.go("workers")
    page.locator("tbody a.id").first.click()
    page.get_by_role("heading", name="Warm-up by step").wait_for()
    page = behind.go("operations")
    page.locator(".list tbody a.id").first.click()
    page.get_by_role("heading", name="Operation", exact=True).wait_for()
    assert behind.troubles == []


def test_what_is_changed_streamed_and_downloaded_goes_through_the_path(behind):
    page = behind.go("workers")
    page.get_by_role("button", name="Drain", exact=True).first.click()
    with page.expect_response(lambda answer: answer.request.method == "POST") as drained:
        page.get_by_role("dialog").get_by_role("button", name="Drain", exact=True).click()
    assert drained.value.ok
    ask(behind)
    page = behind.go("report")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the report").click()
    assert "Pool default" in download.value.path().read_text()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()


def test_the_lines_to_copy_ask_below_the_path(behind, proxy):
    page = ask(behind)
    for language in ("Shell", "Python"):
        lines = page.get_by_label(f"{language} code").inner_text()
        assert re.findall(r"http://[^\s\"']+", lines)[0].startswith(proxy.url)


def ask(behind):
    page = behind.go("try")
    page.get_by_label("question").fill("Where is my order?")
    page.get_by_label("order").fill('{"number": 4711, "lines": ["lamp", "bulb"]}')
    page.get_by_role("button", name="Run").click()
    page.get_by_text("Done in").wait_for()
    return page
