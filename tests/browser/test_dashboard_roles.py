"""Who may do what on the dashboard: signing in, looking without acting, acting after a question."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.browser.chromium import SignedDemo, needs_chromium, serious

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    service = SignedDemo(tmp_path_factory.mktemp("demo"), "--workers", "6")
    yield service
    service.stop()


def act(look, view, button, verb, dialog=True):
    """Press `button` on `view`, confirm with `verb`, and return the request that went out."""
    page = look.go(view)
    page.get_by_role("button", name=button, exact=True).first.click()
    with page.expect_response(lambda answer: answer.request.method in ("POST", "DELETE")) as answered:
        page.get_by_role("dialog").get_by_role("button", name=verb, exact=True).click()
    page.wait_for_function("() => !document.querySelector('dialog')")
    page.locator(".toast").first.wait_for()
    assert answered.value.request.headers["x-dspool-csrf"]
    assert answered.value.ok, answered.value.text()
    return answered.value.request


def test_a_wrong_token_is_refused_in_words_and_a_right_one_enters(look, demo):
    page = look.page
    page.goto(f"{demo.url}/dashboard")
    page.get_by_role("heading", name="Sign in").wait_for()
    assert serious(page) == []
    page.get_by_label("Access token").fill("dsp_wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("This token is not known here").wait_for()
    page.get_by_label("Access token").fill(demo.tokens["root"])
    page.keyboard.press("Enter")
    page.get_by_text("root · admin").wait_for()
    assert demo.tokens["root"] not in page.content()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    assert httpx.get(f"{demo.url}/v1/pools").status_code == 401


def test_a_session_that_ended_leads_back_to_signing_in(look, demo):
    look.sign_in(demo.tokens["eve"])
    look.context.clear_cookies()
    # No click: the page may notice by itself before, and shows no menu then.
    look.page.evaluate("location.hash = '#/default/sessions'")
    look.page.get_by_text("You were signed out").wait_for()


def test_a_reader_sees_every_action_and_why_it_does_nothing(look, demo):
    look.sign_in(demo.tokens["eve"])
    why = "Needs the role admin; you are reader."
    for view, name in (
        ("workers", "Drain"),
        ("sessions", "End"),
        ("sizing", "Resize"),
        ("deployments", "Warm up now"),
    ):
        page = look.go(view)
        button = page.get_by_role("button", name=re.compile(f"^{name}")).first
        button.wait_for()
        assert button.get_attribute("aria-disabled") == "true"
        button.press("Enter")
        page.locator(".toast", has_text=why).first.wait_for()
        assert page.locator("dialog").count() == 0
    page = look.go("events")
    page.get_by_text("The audit trail needs the role admin").wait_for()
    page = look.go("workers")
    page.locator("tbody a.id").first.click()
    page.get_by_text("Logs need the role admin").wait_for()


@pytest.mark.parametrize(
    ("view", "button", "verb", "path"),
    [
        ("workers", "Drain", "Drain", r"/workers/[^/]+/drain$"),
        ("workers", "Restart", "Restart", r"/workers/[^/]+/restart$"),
        ("sizing", "Resize", "Resize", r"/resize$"),
        ("sizing", "Pause the pool", "Pause", r"/pause$"),
        ("sizing", "Resume the pool", "Resume", r"/resume$"),
        ("deployments", "Roll back to this", "Roll back", r"/rollback$"),
        ("deployments", "Warm up now", "Warm up", r"/warm$"),
        ("sessions", "End", "End session", r"/pool_sessions/[^/]+$"),
    ],
)
def test_an_admin_acts_after_a_question(look, demo, view, button, verb, path):
    look.sign_in(demo.tokens["root"])
    request = act(look, view, button, verb)
    assert re.search(path, request.url), request.url
    # `look.troubles` holds what the browser says of the 401 that asked for the token, and nothing else.
    assert [trouble for trouble in look.troubles if "401" not in trouble] == []


def test_what_was_done_is_in_the_audit_with_who_did_it(look, demo):
    look.sign_in(demo.tokens["root"])
    act(look, "sizing", "Resize", "Resize")
    page = look.go("events")
    page.locator('section[aria-label="Audit"] tbody tr', has_text="resize").first.wait_for()
    assert (
        "root" in page.locator('section[aria-label="Audit"] tbody tr', has_text="resize").first.inner_text()
    )


def test_a_refused_action_says_why_and_can_be_corrected(look, demo):
    look.sign_in(demo.tokens["root"])
    page = look.go("sizing")
    page.get_by_role("button", name="Resize", exact=True).click()
    size = page.get_by_label(re.compile("Workers, "))
    size.evaluate("e => { e.removeAttribute('max'); e.value = 100000; }")
    page.get_by_role("dialog").get_by_role("button", name="Resize").click()
    page.locator("dialog .problem:visible").wait_for()
    assert page.locator("dialog .problem").inner_text()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()


def test_a_change_without_the_token_against_forgery_is_refused(look, demo):
    page = look.sign_in(demo.tokens["root"])
    status = page.evaluate(
        """async () => {
            const headers = { "content-type": "application/json" };
            return (await fetch("/v1/pools/default/pause", { method: "POST", headers, body: "{}" })).status;
        }"""
    )
    assert status == 403
