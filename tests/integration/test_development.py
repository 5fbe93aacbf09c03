"""`dspool dev` as a user meets it: a process in a project's directory, files saved in it, requests to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from dspool.cli.new import write_project

PATIENCE_S = 60.0
SOURCES = [{"title": "France", "text": "Paris is the capital of France."}]
INPUTS = {"sources": SOURCES, "question": "What is the capital of France?"}
SAYS = "answer=found.answer"
PROMPTS = """
from pathlib import Path

GREETING = Path(__file__).with_name("greeting.txt").read_text().strip()
"""


class Dev:
    """A `dspool dev` in `directory`."""

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        self.directory = directory
        self.log = directory.parent / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dspool.cli", "dev", *arguments, "--port", "0"],
                cwd=directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        self.url = ""

    def until(self, true: Any, what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (value := true()):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"{what}: {self.said()}"
            time.sleep(0.02)
        return value

    def said(self) -> str:
        return self.log.read_text()

    def ready(self) -> Dev:
        def url() -> str:
            lines = [line for line in self.said().splitlines() if " serving " in line]
            return lines[-1].partition(" at ")[2].split()[0] if lines else ""

        self.url = self.until(url, "it is not ready")
        return self

    def get(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            return json.load(refused)

    def answer(self) -> Any:
        body = self.get("/v1/pools/default/programs/answer/execute", {"inputs": INPUTS})
        return body["outputs"]["answer"] if "outputs" in body else body

    def until_answer(self, wanted: str) -> None:
        self.until(lambda: self.answer() == wanted, f"it does not answer {wanted!r}")

    def edit(self, old: str, new: str, file: str = "shop/answers.py") -> None:
        path = self.directory / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dev space ÿ") / "shop"
    write_project(directory)
    (directory / "shop" / "greeting.txt").write_text("hello")
    (directory / "shop" / "prompts.py").write_text(PROMPTS)
    dev = Dev(directory, "shop.answers:Answer", "other=shop.answers:Answer").ready()
    yield dev
    dev.end()


@pytest.fixture
def source(dev):
    """The program as it was, before and after a test."""
    files = {path: path.read_text() for path in (dev.directory / "shop").glob("*.*")}
    yield files[dev.directory / "shop" / "answers.py"]
    for path, text in files.items():
        path.write_text(text)
    dev.until_answer("text: Paris")
    dev.until(lambda: dev.get("/v1/pools/default")["state"] == "ready", "it is not well again")


def test_a_saved_file_is_what_the_next_requests_run(dev, source):
    before = dev.get("/v1/pools/default")["programs"]
    dev.edit(SAYS, "answer='edited'")
    dev.until_answer("edited")
    after = dev.get("/v1/pools/default")["programs"]
    # Another code, another number, for every program that is made of it.
    assert all(after[name] > before[name] for name in ("answer", "other"))


def test_editors_write_by_renaming_in_bursts_and_with_files_of_their_own(dev, source):
    path = dev.directory / "shop" / "answers.py"
    for number in range(5):
        beside = path.with_name(f".answers.py.{number}.swp")
        beside.write_text(source.replace(SAYS, f"answer='burst {number}'"))
        os.replace(beside, path)
    dev.until_answer("burst 4")


def test_what_a_module_imports_and_new_files_count(dev, source):
    (dev.directory / "shop" / "fresh.py").write_text("WORD = 'fresh'\n")
    dev.edit("import dspy\n", "import dspy\n\nfrom shop.fresh import WORD\n")
    dev.edit(SAYS, "answer=WORD")
    dev.until_answer("fresh")
    dev.edit("fresh", "fresher", "shop/fresh.py")
    dev.until_answer("fresher")


def test_a_data_file_beside_the_source_counts(dev, source):
    dev.edit("import dspy\n", "import dspy\n\nfrom shop.prompts import GREETING\n")
    dev.edit(SAYS, "answer=GREETING")
    dev.until_answer("hello")
    (dev.directory / "shop" / "greeting.txt").write_text("good day")
    dev.until_answer("good day")


def test_a_program_may_start_processes(dev, source):
    dev.edit("import dspy\n", "import dspy\nimport multiprocessing\nimport os\n")
    dev.edit(
        SAYS, "answer=multiprocessing.get_context('spawn').Pool(1).apply(os.path.basename, ('a/child',))"
    )
    dev.until_answer("child")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def __init__(self) -> None:", "def __init__(self) -> None", "SyntaxError"),
        ("import dspy\n", "import dspy\nimport no_such_module\n", "no_such_module"),
        (
            "super().__init__()",
            "super().__init__()\n        raise RuntimeError('the index is gone')",
            "RuntimeError",
        ),
        ("class Answer(", "class Renamed(", "Answer"),
    ],
)
def test_the_last_good_version_serves_on_when_new_code_does_not_load(dev, source, old, new, said):
    dev.edit(SAYS, "answer='good'")
    dev.until_answer("good")
    began = len(dev.said())
    dev.edit(old, new)
    dev.until(lambda: "the last good version serves on" in dev.said()[began:], "it says nothing")
    assert said in dev.said()[began:]
    assert dev.answer() == "good"
    status = dev.get("/v1/pools/default")
    assert (status["state"], status["ready"]) == ("degraded", True)
    assert said in status["reason"]
    (dev.directory / "shop" / "answers.py").write_text(source.replace(SAYS, "answer='mended'"))
    dev.until_answer("mended")
    assert dev.get("/v1/pools/default")["state"] == "ready"


def test_requests_under_way_finish_on_the_code_they_began_with(dev, source):
    from concurrent.futures import ThreadPoolExecutor

    slow = (
        "import asyncio; await asyncio.sleep(3); return dspy.Prediction(answer='old', certain=True)\n        "
    )
    dev.edit("found = await", f"{slow}found = await")
    dev.until_answer("old")
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(dev.answer)
        dev.until(lambda: dev.get("/v1/pools/default")["workers"][0]["running"] == 1, "it does not run")
        (dev.directory / "shop" / "answers.py").write_text(source.replace(SAYS, "answer='new'"))
        assert asked.result() == "old"
    dev.until_answer("new")


def test_an_error_of_the_program_is_shown_whole_in_the_terminal(dev, source):
    dev.edit("found = await", "raise KeyError('PINECONE_API_KEY')\n        found = await")
    dev.until(lambda: isinstance(dev.answer(), dict), "it does not fail")
    dev.until(lambda: "raise KeyError('PINECONE_API_KEY')" in dev.said(), "no traceback")


def test_the_pages_to_look_at_it_are_there(dev):
    assert "/dashboard#/default/try/answer" in dev.said()
    with urllib.request.urlopen(f"{dev.url}/dashboard") as page:
        assert page.status == 200


def test_a_program_that_is_broken_from_the_start_is_served_once_it_is_mended_and_nothing_is_left(tmp_path):
    directory = tmp_path / "shop"
    write_project(directory)
    (directory / ".env").write_text("GREETING=from the file\n")
    path = directory / "shop" / "answers.py"
    good = path.read_text().replace(SAYS, "answer=__import__('os').environ['GREETING']")
    path.write_text(good.replace("super().__init__()", "super().__init__()\n        1 / 0"))
    dev = Dev(directory, "--config", "pool.yaml", PYTHONUNBUFFERED="1")
    try:
        dev.until(lambda: "ZeroDivisionError" in dev.said(), "it does not say what is wrong")
        path.write_text(good)
        dev.ready().until_answer("from the file")
        (directory / ".env").write_text("GREETING=from the edited file\n")
        dev.until_answer("from the edited file")
        (directory / "pool.yaml").write_text((directory / "pool.yaml").read_text() + "slots_per_worker: 3\n")
        dev.until(
            lambda: dev.get("/v1/pools/default").get("workers", [{}])[0].get("slots") == 3, "old settings"
        )
        children = psutil.Process(dev.process.pid).children(recursive=True)
        assert children
    finally:
        dev.end()
    assert dev.process.returncode == 0
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert alive == []
