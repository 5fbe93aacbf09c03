"""The dashboard's pages in a real browser, on simulated data: 500 workers, two pools, hostile names."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from tests.browser.chromium import PHONE, VIEWS, Demo, Looking, needs_chromium, serious

pytestmark = [pytest.mark.browser, needs_chromium]

REPLAYED_MS = 40_000
"""An hour of 500 workers: a busy machine does not do it in the time that one request has, and the page asks again."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    service = Demo(tmp_path_factory.mktemp("demo"), "--workers", "500")
    yield service
    service.stop()


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


def test_a_range_is_asked_for_and_stands_in_the_address(look):
    page = look.go("overview")
    with page.expect_request(lambda request: "/metrics/table?range=3600" in request.url):
        page.get_by_role("radio", name="1 h").check()
    assert "range=3600" in page.url
    page.reload()
    page.locator("#main h1").wait_for()
    assert page.get_by_role("radio", name="1 h").is_checked()
    page.get_by_role("radio", name="1 min").check()
    page.wait_for_function("() => location.hash.includes('range=60')")
    with page.expect_request(lambda request: "/metrics/table?range=604800&resolution=60" in request.url):
        page.get_by_role("radio", name="7 days").check()
    page.wait_for_function("() => location.hash.includes('range=604800')")
    page.go_back()
    page.wait_for_function("() => location.hash.endsWith('range=60')")
    assert page.get_by_role("radio", name="1 min").is_checked()


def test_a_stretch_of_time_that_was_chosen_is_in_the_address_too(look):
    page = look.go("overview")
    page.get_by_text("Reset zoom").wait_for(state="detached")
    now = page.evaluate("Date.now() / 1000")
    page.goto(f"{look.url}/dashboard#/default/overview?from={now - 200:.1f}&to={now - 100:.1f}")
    page.get_by_role("button", name="Reset zoom").wait_for()
    page.get_by_role("button", name="Reset zoom").click()
    page.wait_for_function("() => !location.hash.includes('from')")
    page.go_back()
    page.get_by_role("button", name="Reset zoom").wait_for()
    assert look.troubles == []


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


def test_all_charts_share_the_cursor_and_the_zoom(look):
    page = look.go("overview")
    box = page.locator(".canvas").first
    page.wait_for_function("() => document.querySelectorAll('.canvas canvas[style]').length > 0")
    place = box.bounding_box()
    middle = place["y"] + 60
    page.mouse.move(place["x"] + 200, middle)
    cursors = page.locator(".canvas .cursor:not([hidden])")
    assert cursors.count() == page.locator(".canvas").count()
    assert re.match(r"\d\d:\d\d:\d\d", page.locator(".tip:not([hidden])").inner_text())
    page.mouse.down()
    page.mouse.move(place["x"] + 320, middle, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Reset zoom").wait_for()
    first, last = (float(box.get_attribute(f"aria-value{end}")) for end in ("min", "max"))
    assert last - first < 200
    # What is exported is what is seen.
    link = page.get_by_role("link", name="Latency as CSV")
    with page.expect_download() as download:
        link.click()
    assert "from=" in link.get_attribute("href")
    assert download.value.path().read_text().count("\n") > 10
    page.get_by_role("button", name="Reset zoom").click()
    page.wait_for_function("() => document.querySelector('.zoomed').hidden")


def test_charts_are_read_and_zoomed_by_keyboard(look):
    page = look.go("overview")
    box = page.get_by_role("slider", name="Latency, time under the cursor")
    box.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    text = box.get_attribute("aria-valuetext")
    assert re.match(r"\d\d:\d\d:\d\d: p50 .*, p95 .*, p99 ", text)
    page.keyboard.press("+")
    page.get_by_role("button", name="Reset zoom").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('.zoomed').hidden")


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


def test_a_page_that_there_is_none_of_says_so(look):
    look.page.goto(f"{look.url}/dashboard#/default/nothing")
    look.page.get_by_role("heading", name="There is no such page").wait_for()
    look.page.get_by_role("link", name="Go to the overview").click()
    look.page.locator('#main[data-shows="overview"]').wait_for()


def test_other_bounds_are_replayed_when_a_slider_moves(look):
    page = look.go("sizing")
    page.get_by_role("row", name=re.compile("Worker-hours")).wait_for(timeout=REPLAYED_MS)
    slider = page.get_by_role("slider", name=re.compile("Largest size"))
    slider.focus()
    with page.expect_request(lambda request: "/whatif?" in request.url) as asked:
        page.keyboard.press("ArrowLeft")
    assert f"max_size={slider.input_value()}" in asked.value.url
    page.get_by_text(re.compile("worker", re.I)).first.wait_for()
    assert look.troubles == []


def test_what_only_the_page_has_is_exported_by_the_page(look):
    page = look.go("sizing")
    page.get_by_role("row", name=re.compile("Worker-hours")).wait_for(timeout=REPLAYED_MS)
    with page.expect_download() as download:
        page.get_by_role("link", name="Load against size as CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert download.value.suggested_filename == "dspool-load.csv"
    assert lines[0] == "time_utc,time_s,load,slots,demand"
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z(,[\d.]+){4}$", lines[1])
    with page.expect_download() as download:
        page.get_by_role("link", name="What if as JSON").click()
    found = json.loads(download.value.path().read_text())
    assert found["columns"].keys() == {"actual", "replayed", "whatif"}
    assert len(found["at"]) == len(found["columns"]["whatif"]) > 10


def test_the_charts_of_a_worker_are_exported_as_its_own(look):
    look.go("workers").locator("tbody a.id").first.click()
    with look.page.expect_download() as download:
        look.page.get_by_role("link", name="Utilization as JSON").click()
    assert re.search(r"worker=default-w0-\w+", download.value.url)
    assert json.loads(download.value.path().read_text())["columns"].keys() == {"utilization"}


def test_the_report_opens_offline_and_the_numbers_parse(look, browser, tmp_path):
    page = look.go("report")
    page.get_by_role("radio", name="15 min").check()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the report").click()
    file = tmp_path / "report.html"
    download.value.save_as(file)
    with page.expect_download() as download:
        page.get_by_role("link", name="throughput as JSON").click()
    assert json.loads(download.value.path().read_text())
    asked = []
    context = browser.new_context(offline=True)
    offline = context.new_page()
    offline.on("request", lambda request: asked.append(request.url))
    offline.goto(file.as_uri())
    assert "default" in offline.inner_text("body")
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_a_confirmation_can_be_left_and_nothing_is_sent(look):
    page = look.go("workers")
    page.get_by_role("button", name="Drain", exact=True).first.click()
    page.get_by_role("dialog").get_by_text("Drain this worker?").wait_for()
    assert (
        page.get_by_role("dialog")
        .get_by_role("button", name="Cancel")
        .evaluate("e => e === document.activeElement")
    )
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('dialog')")
    assert not any("/drain" in url for url in look.asked)


def test_thinned_points_keep_each_peak_and_each_gap(look):
    page = look.go("report")
    module = page.locator('script[type="module"]').evaluate("one => one.src").replace("app.js", "series.js")
    found = page.evaluate(
        """async (module) => {
            const { Series } = await import(module);
            const series = new Series();
            const at = Array.from({ length: 3600 }, (_, index) => index + (index >= 1800 ? 600 : 0));
            series.load({ at, columns: { wait: at.map((_, index) => (index === 777 ? 9 : 1)) }, resolution_s: 1 });
            const points = series.thin("wait", 0, 4200, 400);
            series.append({ at: [4199, 4200], columns: { wait: [5, 6] } });
            return { count: points.length, most: Math.max(...points.map((one) => one.y || 0)),
                     gaps: points.filter((one) => one.y === null).length,
                     last: series.latest("wait"), length: series.length };
        }""",
        module,
    )
    assert found["most"] == 9
    assert found["gaps"] == 1
    assert found["count"] < 900
    # The point that was there already is not taken twice.
    assert (found["last"], found["length"]) == (6, 3601)


# --- acting ---


COUNT_CLICKS = "globalThis.clicks = 0; addEventListener('click', e => { clicks += e.isTrusted }, true)"


def deploy_from_the_page(page, **fields):
    page.get_by_role("button", name="Deploy a version").click()
    dialog = page.get_by_role("dialog")
    for label, value in fields.items():
        dialog.get_by_label(re.compile(label)).fill(value)
    dialog.get_by_role("button", name="Deploy", exact=True).click()
    return dialog


def test_a_version_is_deployed_from_the_page_compared_and_what_is_refused_says_why(look, tmp_path):
    page = look.go("deployments")
    dialog = deploy_from_the_page(page, **{"^Program": "qaa", "Import path": "shop:B"})
    dialog.get_by_text("did you mean qa?").wait_for()
    dialog.get_by_label(re.compile("^Program")).fill("qa")
    dialog.get_by_label(re.compile("Import path")).fill("forbidden:Program")
    dialog.get_by_role("button", name="Deploy", exact=True).click()
    dialog.get_by_text("is not within allowed_imports").wait_for()
    dialog.get_by_label(re.compile("Import path")).fill("")
    state = tmp_path / "tuned.json"
    state.write_text('{"predict": {"demos": [{"question": "1 + 1?"}]}}')
    dialog.get_by_label(re.compile("Saved state")).set_input_files(state)
    with page.expect_request(lambda request: request.url.endswith("/versions?canary_s=10")) as sent:
        dialog.get_by_role("button", name="Deploy", exact=True).click()
    assert sent.value.post_data_json == {"new": False, "state": json.loads(state.read_text())}
    history = page.get_by_role("region", name="Last deployments")
    history.get_by_role("row", name=re.compile("200, 0.5.% failed.*600, 0.3.% failed")).first.wait_for()
    older = page.get_by_role("row", name=re.compile("v3.*Roll back to this")).first
    older.get_by_role("button", name="Compare").click()
    found = page.get_by_role("dialog").get_by_role("row", name=re.compile("Demonstrations"))
    assert "1 + 1?" in found.inner_text()
    assert serious(page) == []
    page.get_by_role("button", name="Close").click()
    # What is refused is an error in the browser's console, too.
    assert [one for one in look.troubles if "404" not in one and "403" not in one] == []


def test_a_bad_deployment_is_found_and_rolled_back_in_four_clicks_at_most(look, demo):
    with httpx.Client(base_url=demo.url, trust_env=False) as http:
        before = http.get("/v1/pools/default/programs/qa/compare?old=1&new=2")
        assert before.status_code == 200
        body = {"import_path": "broken:Answer", "new": False}
        bad = http.post("/v1/pools/default/programs/qa/versions", json=body).json()["version"]
    page = look.go("overview")
    page.evaluate(COUNT_CLICKS)
    # The first look: operations of qa fail, since a version that the page names.
    page.get_by_role("row", name=re.compile(rf"qa v{bad} .*[1-9]\d?(\.\d+)?\s%")).wait_for()
    page.get_by_role("link", name="Deployments", exact=True).click()
    latest = page.get_by_role("region", name="Deployment", exact=True)
    latest.get_by_text(f"v{bad}", exact=False).first.wait_for()
    latest.get_by_role("button", name=re.compile("Roll back to v")).click()
    dialog = page.get_by_role("dialog")
    assert "Operations that run finish with the version they began with" in dialog.inner_text()
    dialog.get_by_role("button", name="Roll back", exact=True).click()
    page.get_by_text(re.compile(r"qa is at version \d+\.")).wait_for()
    assert page.evaluate("clicks") <= 4
    latest.get_by_text("a roll-back").wait_for()
    with httpx.Client(base_url=demo.url, trust_env=False) as http:
        programs = http.get("/v1/pools/default/programs").json()["programs"]
    assert next(one for one in programs if one["program"] == "qa")["version"] != bad


def test_an_alert_is_silenced_with_a_reason_and_an_end_and_says_so(look):
    page = look.go("events")
    row = page.get_by_role("region", name="Alerts").get_by_role("row", name=re.compile("DspoolLatencyP99"))
    row.get_by_role("button", name="Silence").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("the model moves")
    dialog.get_by_label("For").select_option("14400")
    dialog.get_by_role("button", name="Silence", exact=True).click()
    row.get_by_text("the model moves").wait_for()
    page.reload()
    row.get_by_text("the model moves").wait_for()
    row.get_by_role("button", name="End silence").click()
    page.get_by_role("dialog").get_by_role("button", name="End it").click()
    row.get_by_role("button", name="Silence", exact=True).wait_for()
    assert look.troubles == []


def test_all_of_a_workers_row_is_seen_on_a_common_screen_and_who_goes_is_not_sent_away(browser, demo):
    looking = Looking(browser, demo.url, viewport={"width": 1360, "height": 900})
    page = looking.go("workers")
    button = page.get_by_role("button", name="Restart", exact=True).first
    edge = page.locator(".scroll").first.bounding_box()
    box = button.bounding_box()
    assert box["x"] + box["width"] <= edge["x"] + edge["width"]
    module = (
        page.locator('script[type="module"]')
        .evaluate("one => one.src")
        .replace("app.js", "views/worker_actions.js")
    )
    offered = page.evaluate(
        """async (module) => {
            const { workerActions } = await import(module);
            const ctx = { admin: true, me: { role: "admin" }, pool: "default" };
            return ["ready", "draining"].map((state) =>
                [workerActions(ctx, { id: "w", state })].flat().map((one) => one.textContent).join(" "));
        }""",
        module,
    )
    assert offered == ["Drain Restart", "goes by itself"]
    looking.close()


# --- states that a healthy service does not show ---


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


def test_the_figures_stand_before_the_charts_have_their_points(look):
    held = []
    look.page.route("**/metrics/table*", lambda route: held.append(route))
    page = look.go("overview?range=604800")
    page.locator(".card", has_text="Throughput").locator("text=/[0-9]/").first.wait_for()
    assert page.locator('main [data-charts="drawn"]').count() == 0
    held[0].continue_()
    page.locator('main [data-charts="drawn"]').wait_for()


def test_charts_without_their_history_say_so_and_are_asked_for_again(look):
    away = {"title": "not ready", "detail": "the metrics actor is away", "code": "pool_not_ready"}
    look.page.route("**/metrics/table*", lambda route: route.fulfill(status=503, json=away))
    page = look.go("overview")
    page.get_by_text("The charts are not complete: the metrics actor is away").wait_for()
    look.page.unroute("**/metrics/table*")
    page.locator('main [data-charts="drawn"]').wait_for()
    page.get_by_text("The charts are not complete").wait_for(state="hidden")


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


class Clicks:
    """Counts what a person has to click from the first look at the overview on."""

    def __init__(self, page):
        self.page, self.number = page, 0

    def on(self, what):
        what.first.click()
        self.number += 1


def test_a_failing_model_endpoint_is_four_clicks_from_its_remedy(look):
    page = look.go("overview")
    truth = page.get_by_role("status", name="What is wrong")
    fault = truth.locator("p", has_text="openai/gpt-4o-mini does not answer (timeout)")
    fault.wait_for()
    assert re.search(r"since \d\d:\d\d:\d\d", fault.inner_text())
    assert "noticed by callers of qa" in fault.inner_text()
    assert page.locator(".badge.good", has_text="healthy").count() == 0
    clicks = Clicks(page)
    clicks.on(fault.get_by_role("link", name="See the error"))
    for fact in ("openai/gpt-4o-mini", "fast", "openai"):
        page.locator("dd", has_text=fact).first.wait_for()
    page.get_by_role("link", name="op-demo").first.wait_for()
    clicks.on(page.get_by_role("link", name="Versions and roll-back"))
    clicks.on(page.get_by_role("button", name=re.compile("Roll back")))
    page.locator("dialog[open]").wait_for()
    clicks.on(page.locator("dialog[open]").get_by_role("button", name=re.compile("Roll back")))
    page.locator(".toast").first.wait_for()
    assert clicks.number <= 4
    assert look.troubles == []


def test_a_leaking_worker_is_three_clicks_from_its_restart(look):
    page = look.go("overview")
    truth = page.get_by_role("status", name="What is wrong")
    fault = truth.locator("p", has_text="1,450 MB, 1,395 MB more than when it was warm")
    fault.wait_for()
    clicks = Clicks(page)
    clicks.on(fault.get_by_role("link", name="See the worker"))
    page.get_by_text("1,395 MB more than when it was warm").wait_for()
    clicks.on(page.get_by_role("button", name="Restart"))
    clicks.on(page.locator("dialog[open]").get_by_role("button", name="Restart"))
    page.locator(".toast").first.wait_for()
    assert clicks.number <= 4
    look.go("overview")
    page.locator("#connection", has_text="live").wait_for()
    fault.wait_for(state="detached")


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
