"""What is done from the dashboard: asked about first, refused with its reason, and few clicks away from a fault."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from tests.browser.chromium import Looking, needs_chromium, serious

pytestmark = [pytest.mark.browser, needs_chromium]


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


# --- deployments ---


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


# --- from a fault to its remedy ---


COUNT_CLICKS = "globalThis.clicks = 0; addEventListener('click', e => { clicks += e.isTrusted }, true)"


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
