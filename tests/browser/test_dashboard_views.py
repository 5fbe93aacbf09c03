"""Every page of the dashboard in a real browser, on simulated data: 500 workers, two pools, hostile names."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.browser.chromium import PHONE, VIEWS, Looking, needs_chromium, serious

pytestmark = [pytest.mark.browser, needs_chromium]


# --- all pages ---


def test_every_page_shows_itself_without_a_complaint_of_the_browser(look):
    for view, heading in VIEWS.items():
        page = look.go(view)
        page.get_by_role("heading", name=heading).first.wait_for()
        assert page.locator(f'#nav a[data-view="{view}"]').get_attribute("aria-current") == "page"
        page.locator("#connection", has_text="live").wait_for()
    assert look.troubles == []


def test_everything_comes_from_the_service_itself(look, demo):
    page = look.go("overview")
    page.locator(".canvas canvas[width]").first.wait_for()
    page.wait_for_function("() => globalThis.Chart !== undefined")
    assert [url for url in look.asked if not url.startswith((demo.url, "data:"))] == []


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.long)])
def test_axe_finds_nothing_serious_on_any_page(browser, demo, scheme):
    looking = Looking(browser, demo.url, color_scheme=scheme, reduced_motion="reduce")
    found = {}
    for view in VIEWS:
        page = looking.go(view)
        page.locator("#connection", has_text="live").wait_for()
        if problems := serious(page):
            found[view] = problems
    worker = looking.go("workers").locator("tbody a.id").nth(3)
    worker.click()
    looking.page.get_by_role("heading", name="Warm-up by step").wait_for()
    if problems := serious(looking.page):
        found["worker"] = problems
    looking.close()
    assert found == {}


def test_a_phone_never_scrolls_sideways(browser, demo):
    looking = Looking(browser, demo.url, viewport=PHONE)
    widths = {}
    for view in VIEWS:
        looking.go(view)
        widths[view] = looking.widest()
    looking.close()
    assert set(widths.values()) == {PHONE["width"]}, widths


def test_a_hostile_name_is_text_wherever_it_is_shown(look):
    page = look.go("workers")
    seen = False
    for view in ("workers", "sessions", "overview", "events"):
        look.go(view)
        seen = seen or page.get_by_text(re.compile("<(img|script|b|svg)")).count() > 0
        made = (
            "document.querySelectorAll('#main img, #main script, #main iframe, #main b[onmouseover]').length"
        )
        assert page.evaluate(made) == 0
    assert seen, "the demo has a hostile name"
    assert page.evaluate("typeof globalThis.hacked") == "undefined"
    assert look.troubles == []


def test_the_pool_picker_shows_the_other_pool(look):
    page = look.go("overview")
    names = page.locator("#pool option").all_inner_texts()
    assert len(names) >= 2
    page.locator("#pool").select_option(names[1])
    page.get_by_role("heading", level=1, name=names[1], exact=True).wait_for()
    assert f"#/{names[1]}/overview" in page.url
    page.go_back()
    page.get_by_role("heading", level=1, name=names[0], exact=True).wait_for()


def test_the_link_past_the_menu_moves_the_focus_and_leaves_the_view(look):
    page = look.go("workers")
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Skip to the content")
    assert link.evaluate("e => e === document.activeElement")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.url.endswith("#/default/workers")
    page.get_by_role("heading", level=1, name="Workers").wait_for()


def test_times_are_local_with_utc_on_hover(browser, demo):
    looking = Looking(browser, demo.url, timezone_id="Asia/Kolkata")
    page = looking.go("events")
    moment = page.locator(".feed time").first
    shown_hour, utc = moment.inner_text()[-8:], moment.get_attribute("title")
    looking.close()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$", utc)
    assert int(shown_hour[3:5]) == (int(utc[14:16]) + 30) % 60


# --- workers ---


def test_five_hundred_workers_are_paged_found_and_sorted(look):
    page = look.go("workers")
    page.get_by_text(re.compile(r"50[01]\sworkers")).wait_for()
    rows = page.locator('section[aria-label="Workers"] tbody tr')
    assert rows.count() == 50
    page.get_by_text(re.compile("1 to 50 of 50[01]")).wait_for()
    page.get_by_role("button", name="Next").click()
    page.get_by_text(re.compile("51 to 100 of 50[01]")).wait_for()
    page.get_by_role("button", name="Throughput").click()
    page.get_by_text(re.compile("1 to 50 of 50[01]")).wait_for()
    assert page.locator('th[aria-sort="descending"]').first.inner_text().startswith("Throughput")
    some = rows.nth(7).locator("a.id").inner_text()
    page.get_by_label("Find workers").fill(some)
    page.wait_for_function("() => document.querySelectorAll('table.stacks tbody tr').length < 50")
    assert some in rows.first.inner_text()
    page.get_by_label("Find workers").fill("nobody is called this")
    page.get_by_role("heading", name="No worker fits").wait_for()
    assert look.troubles == []


def test_slots_show_who_runs_what_for_how_long(look):
    page = look.go("workers")
    busy = page.locator('.cells i.on[title*="for "]').first
    busy.wait_for()
    assert re.search(r"for [\d.]+\s(µs|ms|s)", busy.get_attribute("title"))


def test_workers_in_trouble_are_those_in_trouble_now_and_dead_ones_say_why(look):
    page = look.go("workers")
    ended = page.locator("section", has=page.get_by_role("heading", name="Ended lately"))
    ended.get_by_text("killed by SIGKILL").wait_for()
    assert "the spare" in ended.inner_text()
    assert "after 77" in ended.inner_text()
    page.get_by_label("In trouble").check()
    page.get_by_role("heading", name="No worker fits").or_(
        page.get_by_text("more than when it was warm")
    ).wait_for()
    ended.get_by_role("link", name="default-w2-0c41d7").click()
    page.get_by_text("killed by SIGKILL").first.wait_for()
    page.locator("dd", has_text="the spare").wait_for()
    assert look.troubles == []


# --- events, operations, errors, deployments ---


def test_events_are_filtered_by_level_and_text(look):
    page = look.go("events")
    feed = page.locator(".feed li")
    feed.first.wait_for()
    page.get_by_role("radio", name="Errors").check()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.feed li .badge')].every(one => one.textContent === 'error')"
    )
    page.get_by_role("radio", name="All").check()
    page.get_by_label("Find in events").fill("no event says this")
    page.get_by_role("heading", name="No event fits").wait_for()


def test_an_operation_opens_as_a_waterfall(look):
    page = look.go("operations")
    page.locator(".list tbody a.id").first.click()
    page.get_by_role("heading", name="Where the time went").wait_for()
    lanes = page.locator(".waterfall .lane i")
    assert lanes.count() >= 2
    page.locator(".waterfall button").first.click()
    assert page.locator(".waterfall .about:visible").count() == 1
    assert "dspool.worker" in page.locator("section[aria-label=Log] pre.log").inner_text()
    page.get_by_role("link", name="All operations").click()
    page.get_by_role("heading", name="Operations").wait_for()


def test_a_failed_operation_shows_what_was_raised_and_where(look):
    page = look.go("operations?outcome=failed")
    page.locator(".list tbody a.id").first.click()
    facts = page.get_by_role("region", name="Operation", exact=True)
    facts.get_by_text("KeyError").first.wait_for()
    facts.get_by_text("shop.answers:41").wait_for()


def test_operations_are_filtered_as_the_address_says_and_the_way_back_leads_to_what_was_before(look):
    page = look.go("operations")
    rows = page.get_by_role("region", name="Operations", exact=True).locator("tbody tr")
    rows.first.wait_for()
    page.get_by_label("Outcome").select_option("failed")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.list tbody .badge')].every(one => one.textContent === 'KeyError')"
    )
    page.get_by_label("Part of an id").fill("op-2")
    page.wait_for_function("() => location.hash.includes('text=op-2')")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.list tbody a.id')].some(one => one.textContent === 'op-253')"
        " && document.querySelectorAll('.list tbody tr').length < 10"
    )
    link = page.url
    page.get_by_role("button", name="Total").click()
    page.wait_for_function("() => location.hash.includes('sort=duration')")
    page.go_back()
    page.wait_for_function("() => !location.hash.includes('sort')")
    page.go_back()
    page.wait_for_function("() => document.querySelector('[type=search]').value === ''")
    assert "outcome=failed" in page.url
    # Whoever gets the link sees the same.
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_function(
        "() => document.querySelectorAll('.list tbody tr').length in {7: 1, 6: 1, 5: 1, 8: 1}"
    )
    assert page.get_by_label("Part of an id").input_value() == "op-2"
    assert page.get_by_label("Outcome").input_value() == "failed"
    assert serious(page) == []
    page.get_by_role("link", name="Clear").click()
    page.wait_for_function("() => document.querySelectorAll('.list tbody tr').length === 50")
    page.get_by_role("link", name="user-0").first.click()
    page.wait_for_function("() => location.hash.includes('session=user-0')")
    page.get_by_text("No operation fits").wait_for(state="detached")
    running = page.get_by_role("region", name="Running now")
    running.get_by_role("button", name="Cancel").first.click()
    with page.expect_response(lambda answer: answer.url.endswith("/cancel")) as cancelled:
        page.get_by_role("dialog").get_by_role("button", name="Cancel operation", exact=True).click()
    assert cancelled.value.ok
    page.get_by_label("Part of an id").fill("nothing has this")
    page.get_by_role("heading", name="No operation fits").wait_for()
    assert look.troubles == []


def test_operations_on_a_phone_are_two_lines_each(browser, demo):
    phone = Looking(browser, demo.url, viewport=PHONE)
    page = phone.go("operations")
    page.locator(".list tbody tr").nth(24).wait_for()
    assert phone.widest() <= PHONE["width"]
    assert page.evaluate("document.documentElement.scrollHeight") < 2500
    assert serious(page) == []
    phone.close()


def test_errors_are_listed_by_what_they_are_with_their_line_or_model(look):
    page = look.go("errors")
    row = page.locator("tbody tr", has_text="KeyError at shop.answers:42").first
    row.wait_for()
    assert "program_error" in row.inner_text()
    row.locator("a.id").click()
    page.locator("dd", has_text="shop.answers:42").wait_for()
    page.get_by_role("link", name=re.compile(r"default-w\d+-")).first.click()
    page.get_by_role("heading", name="Warm-up by step").wait_for()
    assert look.troubles == []


def test_a_version_that_was_rolled_back_is_said_to_have_been_on_its_canary_alone(look, demo):
    told = httpx.get(f"{demo.url}/v1/pools/default/rollouts").json()
    told["rollouts"] = [one for one in told["rollouts"] if one["phase"] == "rolled back"]
    assert told["rollouts"][0]["workers_total"] == 0
    look.page.route("**/default/rollouts*", lambda route: route.fulfill(json=told))
    # The stream would tell of the one that may be going on.
    look.page.route("**/default/live*", lambda route: route.fulfill(status=204))
    page = look.page
    page.goto(f"{demo.url}/dashboard#/default/deployments")
    page.get_by_text("Only the canary had it; version 1 serves on all workers.").wait_for()
    assert re.findall(r"0 of 0 workers|\b0 ms\b", page.locator("main").inner_text()) == []
