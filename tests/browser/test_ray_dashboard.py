"""Ray's own dashboard as `dspool up --ray-dashboard` prints it: reached with the token, and right about our pool."""

from __future__ import annotations

import json
import os
import re

import pytest

from tests.browser.chromium import WAIT_MS, WIDE, needs_chromium
from tests.serve.test_service import QA, QUESTION, Up, dspool

pytestmark = [pytest.mark.browser, pytest.mark.serve, pytest.mark.long, needs_chromium]


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    service = Up(tmp_path_factory.mktemp("ray") / "state", "--ray-dashboard", "--pool-size", "1")
    yield service
    service.end()


@pytest.fixture(scope="module")
def page(browser, up):
    """Opened as a person does: the address that `up` has printed, and the token that `dspool open --ray` prints."""
    with up.client() as http:
        for _ in range(5):
            assert http.post(QA, json={"inputs": QUESTION}).status_code == 200
    told = dspool("open", "--ray", "--print", "--json", "--state-dir", str(up.state_dir))
    facts = json.loads(told.stdout)
    assert facts["url"] == up.facts["ray_dashboard"]
    with browser.new_context(viewport=WIDE) as context:
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.goto(facts["url"])
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Authentication Token", exact=True).fill(facts["token"])
        dialog.get_by_role("button", name=re.compile("submit", re.IGNORECASE)).click()
        dialog.wait_for(state="detached")
        yield page
    context.close()


def seen(page, name):
    """Keep a picture for the how-to where RAY_PICTURES says so."""
    if into := os.environ.get("RAY_PICTURES"):
        page.screenshot(path=f"{into}/ray-{name}.png", animations="disabled")


def test_without_the_token_nothing_is_shown(browser, up):
    with browser.new_context() as context:
        stranger = context.new_page()
        answer = stranger.request.get(f"{up.facts['ray_dashboard']}/logical/actors")
        assert answer.status in (401, 403)
        stranger.goto(up.facts["ray_dashboard"])
        stranger.get_by_role("heading", name="Authentication Token Required").wait_for()


def test_the_actors_page_has_our_actors_by_name_and_says_what_they_are(page, up):
    page.goto(f"{up.facts['ray_dashboard']}/#/actors")
    _, _, nonce = up.workers()[0]["id"].rpartition("-")
    page.get_by_text(f"dspool:default:worker:0:{nonce}").first.wait_for()
    page.get_by_text("dspool worker default[0]").first.wait_for()
    for role in ("supervisor", "metrics", "store"):
        page.get_by_text(f"dspool:default:{role}").first.wait_for()
    seen(page, "actors")


def test_the_serve_page_has_the_service(page, up):
    page.goto(f"{up.facts['ray_dashboard']}/#/serve")
    page.get_by_text("dspool-default").first.wait_for()
    page.get_by_text("RUNNING").first.wait_for()
    seen(page, "serve")


def test_the_metrics_tab_shows_our_panels_without_grafana(page, up):
    page.goto(f"{up.facts['ray_dashboard']}/#/metrics")
    frame = page.frame_locator("iframe").first
    for title in ("Throughput", "Latency", "Workers"):
        frame.locator("svg .title", has_text=title).first.wait_for()
    frame.locator("svg polyline").first.wait_for(state="attached")
    seen(page, "metrics")
