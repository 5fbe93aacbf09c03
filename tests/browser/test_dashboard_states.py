"""What the dashboard says when it is not live or not there: paused, waiting, lost, without a pool, page or answer."""

from __future__ import annotations

import re

import pytest

from tests.browser.chromium import Demo, Looking, needs_chromium

pytestmark = [pytest.mark.browser, needs_chromium]


def shown(page):
    return page.locator('section[aria-label="Throughput"].plot .legend b').inner_text()


def test_paused_figures_stand_still_and_resumed_ones_go_on(look):
    page = look.go("overview")
    page.locator("#connection", has_text="live").wait_for()
    page.get_by_role("button", name="Pause").click()
    page.get_by_text(re.compile("Paused at")).wait_for()
    before = shown(page)
    page.wait_for_timeout(2500)
    assert shown(page) == before
    page.get_by_role("button", name="Resume").click()
    page.locator("#connection", has_text="live").wait_for()
    page.wait_for_function(
        "before => document.querySelector('section[aria-label=\"Throughput\"].plot .legend b').textContent !== before",
        arg=before,
    )


def test_a_lost_service_is_told_and_found_again(browser, tmp_path):
    demo = Demo(tmp_path, "--workers", "4")
    looking = Looking(browser, demo.url)
    page = looking.go("overview")
    page.locator("#connection", has_text="live").wait_for()
    demo.stop()
    page.get_by_text(re.compile("No connection to the service since")).wait_for()
    page.locator("#connection", has_text="disconnected").wait_for()
    demo.start()
    page.locator("#connection", has_text="live").wait_for()
    page.wait_for_function("() => document.querySelector('#banner').textContent === ''")
    before = shown(page)
    page.wait_for_function(
        "before => document.querySelector('section[aria-label=\"Throughput\"].plot .legend b').textContent !== before",
        arg=before,
    )
    looking.close()
    demo.stop()


def test_an_answer_older_than_what_the_stream_said_does_not_undo_it(look):
    page = look.go("overview")
    module = page.locator('script[type="module"]').evaluate("one => one.src").replace("app.js", "pool.js")
    seen = page.evaluate(
        """async (module) => {
            const { PoolData } = await import(module);
            const data = new PoolData(location.hash.split("/")[1]);
            const { at, pool } = await data.loadOverview();
            data.tick({ at: at - 5, pool: { paused: "before" } });
            const before = (await data.loadOverview()).pool.paused;
            data.tick({ at: at + 60, pool: { paused: "since" } });
            return [pool.paused, before, (await data.loadOverview()).pool.paused];
        }""",
        module,
    )
    assert seen == [False, False, "since"]


def test_nothing_on_the_page_is_green_before_the_first_figures_come(look):
    page = look.page
    page.route("**/live?*", lambda route: None)
    look.page.goto(look.url + "/dashboard#/default/overview")
    page.get_by_role("heading", name="Utilization").first.wait_for()
    assert page.locator("#connection").inner_text() == "connecting"
    shade = "getComputedStyle(document.querySelector('#main .head .badge')).backgroundColor"
    waiting = page.evaluate(shade)
    page.unroute("**/live?*")
    page.reload()
    page.locator("#connection", has_text="live").wait_for()
    page.locator("#main .head .badge").first.wait_for()
    assert page.evaluate(shade) != waiting


def test_a_page_that_there_is_none_of_says_so(look):
    look.page.goto(f"{look.url}/dashboard#/default/nothing")
    look.page.get_by_role("heading", name="There is no such page").wait_for()
    look.page.get_by_role("link", name="Go to the overview").click()
    look.page.locator('#main[data-shows="overview"]').wait_for()


def test_without_a_pool_the_page_says_how_to_start_one(look, demo):
    nobody = {
        "login_needed": False,
        "principal": "local",
        "role": "admin",
        "csrf": "x",
        "expires_at": None,
        "pools": [],
    }
    look.page.route("**/dashboard/me", lambda route: route.fulfill(json=nobody))
    look.page.goto(f"{demo.url}/dashboard")
    look.page.get_by_role("heading", name="No pool yet").wait_for()


def test_a_pool_that_is_not_there_leads_to_one_that_is(look, demo):
    look.page.goto(f"{demo.url}/dashboard#/nowhere/overview")
    look.page.get_by_role("heading", name="There is no such pool").wait_for()
    look.page.get_by_role("link", name="Go to pool default").click()
    look.page.get_by_role("heading", level=1, name="default").wait_for()


def test_a_view_that_cannot_be_loaded_says_why_and_can_be_tried_again(look, demo):
    away = {
        "title": "not ready",
        "detail": "the supervisor does not answer; try again",
        "code": "pool_not_ready",
    }
    look.page.route("**/pool_sessions?*", lambda route: route.fulfill(status=503, json=away))
    look.page.goto(f"{demo.url}/dashboard#/default/sessions")
    look.page.get_by_text(away["detail"]).wait_for()
    look.page.unroute("**/pool_sessions?*")
    look.page.get_by_role("button", name="Try again").click()
    look.page.get_by_role("heading", level=1, name="Sessions").wait_for()
