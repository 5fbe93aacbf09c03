"""The page "Try it" in a real browser, on a real service and worker: what a form sends, and what is shown of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from dspool.tokens import TokenSource, issue
from dspool_serve.access.security import Security
from tests.browser.chromium import PHONE, Looking, needs_chromium, serious
from tests.serve.local_service import LocalService

pytestmark = [pytest.mark.browser, needs_chromium]

HOSTILE = '</pre><img src=x onerror="window.hacked=1">'
PIXEL = bytes.fromhex("89504e470d0a1a0a0000000d49484452")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    programs = {
        name: {"import_path": f"tests.browser.tried:{name.capitalize()}"} for name in ("typed", "failing")
    }
    programs["summary"] = {"spec": {"signature": "text -> summary"}}
    with LocalService(
        tmp_path_factory.mktemp("tried"), programs=programs, allowed_imports=["tests.browser.tried"]
    ) as service:
        yield service


def test_the_form_has_a_field_for_each_input_and_the_answer_comes_with_its_facts(look, tmp_path):
    page = look.go("try/typed")
    page.get_by_label("note").fill(HOSTILE)
    page.get_by_label("tone").select_option("formal")
    page.get_by_label("order").fill('{"number": 4711, "lines": ["lamp"]}')
    page.get_by_label("count").fill("3")
    (tmp_path / "photo.png").write_bytes(PIXEL)
    page.get_by_label("photo", exact=False).first.set_input_files(tmp_path / "photo.png")
    page.get_by_role("button", name="Run").click()
    page.get_by_text("Done in").wait_for()
    answer = page.get_by_label("answer", exact=True).inner_text()
    assert answer == f"{HOSTILE}/formal/4711/3/data:image/png;base64,"
    assert json.loads(page.get_by_label("lines", exact=True).inner_text()) == ["lamp"]
    assert (
        page.get_by_text("default-w0-abcdef").first.get_attribute("href")
        == "#/default/workers/default-w0-abcdef"
    )
    operation = page.locator(".answer a.id").last
    assert operation.get_attribute("href") == f"#/default/operations/{operation.inner_text()}"
    assert page.evaluate("window.hacked") is None
    assert look.troubles == []


def test_an_input_that_is_missing_or_no_value_is_named_before_anything_is_sent(look):
    page = look.go("try/typed")
    page.get_by_label("note").fill("x")
    page.get_by_label("order").fill("{")
    look.asked.clear()
    page.get_by_role("button", name="Run").click()
    page.get_by_text("order is not JSON").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true"
    page.get_by_label("order").fill('{"number": 1, "lines": []}')
    page.get_by_label("count").fill("many")
    page.get_by_role("button", name="Run").click()
    page.get_by_text("count is no whole number").wait_for()
    assert not [url for url in look.asked if url.endswith("/stream")]


def test_what_the_service_refuses_and_what_the_program_raises_is_shown_with_its_message(look):
    page = look.go("try/typed")
    page.get_by_label("note").fill("x")
    page.get_by_label("order").fill('{"number": "none", "lines": []}')
    page.get_by_role("button", name="Run").click()
    alert = page.get_by_role("alert").filter(has_text="invalid_request")
    alert.wait_for()
    assert "order" in alert.inner_text()
    page = look.go("try/failing")
    page.get_by_label("order").fill("1234")
    page.get_by_label("order").press("Control+Enter")
    alert = page.get_by_role("alert").filter(has_text="program_error")
    alert.wait_for()
    assert "ValueError" in alert.inner_text()
    page.get_by_text("Failed", exact=True).wait_for()


def test_an_answer_appears_token_by_token_under_its_field(look):
    page = look.go("try/summary")
    page.get_by_label("text").fill(
        "The order left the house on Tuesday. It comes on Friday. Nobody knows why."
    )
    page.evaluate(
        """() => {
          window.tokens = [];
          const keep = (node) => node.nodeType === 3 && node.parentNode?.ariaLabel === "summary";
          new MutationObserver((records) => {
            for (const { addedNodes } of records) window.tokens.push(...[...addedNodes].filter(keep).map(String));
          }).observe(document.querySelector(".answer"), { childList: true, subtree: true });
        }"""
    )
    page.get_by_role("button", name="Run").click()
    page.get_by_text("Done in").wait_for()
    assert page.get_by_label("summary", exact=True).inner_text() == "The order left the house on Tuesday."
    assert page.evaluate("window.tokens.length") >= 5
    page.get_by_text("offline", exact=True).wait_for()


def test_the_lines_for_a_shell_and_for_python_ask_the_same(look, demo):
    page = look.go("try/qa")
    page.get_by_label("context").fill("It's said that Paris is the capital of France.")
    page.get_by_label("question").fill('What is "the" capital of France? $HOME')
    page.get_by_role("button", name="Run").click()
    page.get_by_text("Done in").wait_for()
    answer = page.get_by_label("answer", exact=True).inner_text()
    shell = page.get_by_label("Shell code").inner_text()
    said = subprocess.run(
        ["bash", "-c", f"{shell} -s"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(said.stdout)["outputs"]["answer"] == answer
    python = page.get_by_label("Python code").inner_text()
    said = subprocess.run(
        [sys.executable, "-c", python], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer in said.stdout


def test_the_page_is_sound_for_readers_of_screens_and_fits_a_phone(browser, demo):
    for options in ({"color_scheme": "dark"}, {"viewport": PHONE}):
        looking = Looking(browser, demo.url, reduced_motion="reduce", **options)
        page = looking.go("try/qa")
        page.get_by_label("context").fill("Paris is the capital of France. " + "x" * 400)
        page.get_by_label("question").fill("What?")
        page.get_by_role("button", name="Run").click()
        page.get_by_text("Done in").wait_for()
        assert serious(page) == []
        assert looking.widest() == looking.page.viewport_size["width"]
        looking.close()


def test_a_reader_sees_the_form_and_why_it_does_nothing_and_a_caller_runs_it(browser, tmp_path):
    tokens = {
        name: issue(tmp_path / "tokens.yaml", name, role)[0]
        for name, role in (("eve", "reader"), ("ada", "caller"))
    }
    with LocalService(tmp_path, Security(TokenSource(tmp_path / "tokens.yaml"))) as service:
        for name, token in tokens.items():
            looking = Looking(browser, service.url)
            looking.sign_in(token)
            page = looking.go("try/qa")
            page.get_by_label("context").fill("Paris is the capital of France.")
            page.get_by_label("question").fill("What is the capital?")
            page.get_by_role("button", name="Run").click(force=True)
            if name == "eve":
                page.locator(
                    ".toast", has_text="Needs the role caller".replace("Needs", "needs")
                ).first.wait_for()
            else:
                page.get_by_text("Done in").wait_for()
                assert "$DSPOOL_TOKEN" in page.get_by_label("Shell code").inner_text()
                assert token not in page.content()
            looking.close()


def test_a_program_that_is_not_there_is_said_so(look):
    page = look.go("try/nothing")
    page.get_by_role("heading", name="There is no such program").wait_for()
    page.get_by_label("Program").select_option("qa")
    page.get_by_label("question").wait_for()
    assert re.search(r"try/qa$", page.url)
