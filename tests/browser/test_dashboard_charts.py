"""The dashboard's charts: which stretch of time they show, how they are read, and what is exported of them."""

from __future__ import annotations

import json
import re

import pytest

from tests.browser.chromium import needs_chromium

pytestmark = [pytest.mark.browser, needs_chromium]

REPLAYED_MS = 40_000
"""An hour of 500 workers: a busy machine does not do it in the time that one request has, and the page asks again."""


# --- their time ---


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


# --- their points ---


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


# --- export ---


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
