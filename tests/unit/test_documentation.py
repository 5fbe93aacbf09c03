"""What the documentation says and shows is what the code is and does. `make docs-check` builds the site besides."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import pytest
import typer
import yaml

import dspool
from docs._generators import errors
from docs._generators.pages import BLOCKS, DOCS, blocks_in, filled, pages
from dspool.cli import app
from dspool.config import PoolConfig, load_config
from dspool.errors import InvalidRequest
from dspool.programs.modules import build_module
from dspool.programs.signatures import build_signature
from dspool_serve.api import ROUTES
from dspool_serve.api.schema import ExecuteRequest
from dspool_serve.http.problems import TABLE

ROOT = DOCS.parent
_FENCE = re.compile(r"^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str, pages_of: list[Path] | None = None) -> list[Block]:
    return [
        Block(page, text[: found.start()].count("\n") + 1, found["language"], found["text"])
        for page in pages_of or [*pages(), ROOT / "README.md"]
        for text in [page.read_text()]
        for found in _FENCE.finditer(text)
        if found["language"] in languages
    ]


def name_of(path: Path) -> str:
    return str(path.relative_to(DOCS))


# --- what is generated ---


@pytest.mark.parametrize("page", [page for page in pages() if blocks_in(page.read_text())], ids=name_of)
def test_the_generated_parts_of_a_page_are_what_the_code_says(page):
    text = page.read_text()
    assert filled(text) == text, "run: make generated"


def test_each_generated_part_is_on_exactly_one_page():
    assert sorted(name for page in pages() for name in blocks_in(page.read_text())) == sorted(BLOCKS)


def test_every_error_says_what_to_do():
    assert set(errors.ADVICE) == set(TABLE)


def test_every_public_name_is_on_the_page_of_python():
    page = (DOCS / "reference" / "python.md").read_text()
    elsewhere = {
        "PoolConfig": "python-config.md",
        "load_config": "python-config.md",
        "PoolError": "python-errors.md",
    }
    for name in dspool.__all__:
        text = (DOCS / "reference" / elsewhere[name]).read_text() if name in elsewhere else page
        assert f"dspool.{name}\n" in text or name == "PoolError", name


def test_the_modules_of_a_spec_are_those_that_can_be_built():
    page = (DOCS / "reference" / "program-specs.md").read_text()
    table = page.partition("## Modules")[2].partition("## ")[0]
    named = re.findall(
        r"`(\w+)`", "".join(row.split(" | ")[0] for row in table.splitlines() if row[:3] == "| `")
    )
    with pytest.raises(InvalidRequest) as refused:
        build_module("Nothing", build_signature("a -> b"), {}, PoolConfig.default())
    assert sorted(named) == sorted(refused.value.message.partition("known are ")[2].split(", "))


# --- what is shown ---


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_that_is_shown_can_be_compiled(block):
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize(
    "block", [block for block in blocks("yaml") if not block.text.startswith("tokens:")], ids=str
)
def test_a_configuration_that_is_shown_is_accepted(block, tmp_path):
    known = (
        {"lm_profiles": {"fast": {"model": "openai/gpt-4o-mini"}}} if "lm_profiles" not in block.text else {}
    )
    file = tmp_path / "pool.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(block.text) | known))
    if "probe" in block.text and "programs:" not in block.text:
        file.write_text(
            file.read_text() + 'programs: {qa: {spec: {signature: "context, question -> answer"}}}\n'
        )
    load_config(file=file, environ={})


@pytest.mark.parametrize(
    "block", blocks("json", pages_of=[*DOCS.glob("tutorial/*.md"), ROOT / "README.md"]), ids=str
)
def test_json_that_is_shown_can_be_read(block):
    assert json.loads(block.text)


def commands_shown() -> list[tuple[str, list[str]]]:
    """Each `dspool VERB ...` of the shell blocks, with its words."""
    found = []
    for block in blocks("sh", "text", ""):
        for line in block.text.replace("\\\n", " ").splitlines():
            if at := re.search(r"(?:^\$ |^ *)dspool (?P<rest>[a-z].*)", line):
                words = shlex.split(at["rest"].split("   #")[0], comments=True)
                found.append((str(block), words))
    return found


@pytest.mark.parametrize(("where", "words"), commands_shown(), ids=str)
def test_a_command_that_is_shown_has_that_verb_and_those_options(where, words):
    command: Any = typer.main.get_command(app)
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        assert words, where
        assert words[0] in command.commands, f"{where}: dspool {words[0]}"
        command = command.commands[words.pop(0)]
    options = {name for option in command.params for name in option.opts}
    assert {word for word in words if word.startswith("-")} <= options, where


def requests_shown() -> list[tuple[str, str, str | None]]:
    found = []
    for block in blocks("sh", ""):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.startswith("curl") and "127.0.0.1" in line:
                words = shlex.split(line)
                body = words[words.index("-d") + 1] if "-d" in words else "form" if "-F" in words else None
                found.append((str(block), next(word for word in words if word.startswith("http")), body))
    return found


@pytest.mark.parametrize(("where", "url", "body"), requests_shown(), ids=str)
def test_a_request_that_is_shown_has_a_route_that_takes_it(where, url, body):
    asked = ("POST" if body else "GET", "/" + url.split("/", 3)[3])
    taking = [
        route
        for route in ROUTES
        if asked[0] == route.method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route.path), asked[1])
    ]
    assert taking, where
    if body == "form":
        assert taking[0].takes_form, where
    elif body:
        assert taking[0].takes is ExecuteRequest, where
        msgspec.json.decode(body, type=ExecuteRequest)


# --- what is named ---

SPAN = re.compile(r"(?<!`)`(?P<code>[^`\n]+)`(?!`)")
NOT_OURS = {
    "ask.py",
    "first.py",
    "second.py",
    "setup_worker.py",
    # Of a project that `dspool new` writes.
    "pool.yaml",
    "shop/answers.py",
    "tests/test_answers.py",
}
LOGGERS = {"dspool.audit", "dspool.http"}
ATTRIBUTES = {"dspool.caller.trace_id", "dspool.principal.hash"}


def named(pattern: str) -> list[tuple[str, str]]:
    """(page, name) of each name that a page writes as code. The changelog tells of what was."""
    return sorted(
        {
            (name_of(page), found["code"])
            for page in pages()
            for found in SPAN.finditer(page.read_text())
            if re.fullmatch(pattern, found["code"])
        }
    )


def test_every_file_that_a_page_names_exists():
    folders = ("actors", "benchmarks", "deploy", "docs", "examples", "requirements", "serve_app", "tests")
    files = [f"/{path}" for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [f"/{path}" for path in ROOT.glob("*")]
    gone = [
        (page, name)
        for page, name in named(r"[\w./-]+\.(?:py|yaml|toml|txt)")
        if name not in NOT_OURS and not any(file.endswith(f"/{name}") for file in files)
    ]
    assert gone == []


def test_every_module_that_a_page_names_exists():
    gone = [
        (page, name)
        for page, name in named(r"dspool(?:_\w+)?(?:\.\w+)+")
        if name not in LOGGERS | ATTRIBUTES and not exists(name)
    ]
    assert gone == []


def exists(name: str) -> bool:
    """Whether `name` is a module, or something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return bool(module) and exists(module) and hasattr(importlib.import_module(module), attribute)
    return True


# --- the map ---


def test_llms_txt_names_every_page_and_nothing_else():
    links = re.findall(r"\]\(([^)]+)\)", (DOCS / "llms.txt").read_text())
    named = {re.sub(r"\.html$", ".md", link) for link in links}
    own = {name_of(page) for page in pages() if page.name not in ("index.md", "changes.md", "promises.md")}
    assert named - {"promises.md"} == {name for name in own if "/adr/0" not in name}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
