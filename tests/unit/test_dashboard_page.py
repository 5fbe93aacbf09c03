"""The dashboard's own files, read as text: what they must never do, and that they fit together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dspool.core.metrics.measures import POOL_COLUMNS
from dspool_console.dashboard import files
from dspool_console.dashboard.files import STATIC

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(STATIC.rglob("*.js"))
WEB = sorted(
    path for kind in ("js", "css", "html") for path in (ROOT / "serve_app").rglob(f"static/**/*.{kind}")
)
SHELL = (STATIC / "index.html").read_text()


def name(path):
    return path.relative_to(STATIC).as_posix()


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_name_can_never_become_markup_or_code(script):
    made = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
        r"|\beval\(|new Function"
    )
    assert re.findall(made, script.read_text()) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_module_imports_only_what_is_there(script):
    imported = re.findall(r'(?:from|import) ?\(?"(\.[^"]+)"', script.read_text())
    assert [one for one in imported if not (script.parent / one).is_file()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_module_is_read_in_one_sitting(script):
    assert len(script.read_text().splitlines()) <= 400


@pytest.mark.parametrize("file", WEB, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_line_has_at_most_120_characters(file):
    lines = enumerate(file.read_text().splitlines(), start=1)
    assert [number for number, line in lines if len(line) > 120] == []


def test_nothing_is_asked_of_another_host():
    for path in (*SCRIPTS, *STATIC.rglob("*.css"), STATIC / "index.html"):
        hosts = set(re.findall(r"https?://[\w.-]+", path.read_text())) - {"http://www.w3.org"}
        assert hosts == set(), name(path)


def test_the_shell_has_no_inline_script_and_no_inline_style():
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", SHELL) == []


def test_everything_that_the_shell_names_is_there():
    named = re.findall(r"\{\{static\}\}/([^\"]+)", SHELL)
    assert named
    # Who looks is asked before any file: the one thing here that is none.
    named.remove("../../me")
    assert [one for one in named if one not in files.files()] == []


def test_the_shell_names_every_module_that_the_first_page_needs():
    """Or the browser would learn of it only from another module, one way to the service and back later."""
    needed, unread = set(), ["app.js", "views/overview.js"]
    while unread:
        needed.add(module := unread.pop())
        path = STATIC / module
        named = re.findall(r'^(?:import|export)[^;]*? from "(\.[^"]+)"', path.read_text(), flags=re.M)
        unread += {name((path.parent / one).resolve()) for one in named} - needed
    assert needed - set(re.findall(r'modulepreload" href="\{\{static\}\}/([^"]+)', SHELL)) == set()


def test_every_column_that_a_chart_of_the_pool_draws_is_asked_for_of_a_week_too():
    drawn = re.search(r"DRAWN = \[(.*?)^\];", (STATIC / "pool.js").read_text(), flags=re.M | re.S)[1]
    views = "".join(
        (STATIC / "views" / f"{view}.js").read_text() for view in ("overview", "overview_cards", "charts")
    )
    assert set(re.findall(r'column: "(\w+)"', views)) == set(re.findall(r'"(\w+)"', drawn))
    assert set(re.findall(r'"(\w+)"', drawn)) <= set(POOL_COLUMNS)


def test_every_sheet_of_the_page_is_in_the_one_that_it_loads():
    sheets = [name(path) for path in STATIC.rglob("*.css")]
    assert sorted(files.SHEETS) == sorted(sheets)
    assert files.files()["css/page.css"].body == b"".join((STATIC / one).read_bytes() for one in files.SHEETS)


def test_each_view_of_the_navigation_has_its_module():
    views = re.findall(r'^  \["(\w+)", "\w+"\],$', (STATIC / "shell.js").read_text(), flags=re.M)
    assert views[0] == "overview"
    assert [view for view in views if not (STATIC / "views" / f"{view}.js").is_file()] == []
