"""The tutorials, as written: their commands run in order in an empty directory, and answer what the pages show.

Only the port differs, since another test may have 8000. A block that starts a service goes on until the next one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorial"
PATIENCE_S = 120.0
_BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SAVED = re.compile(r"(?:Save this|with this) as `(?P<file>[\w./-]+)`")
_SERVICE = re.compile(r"^(?:make up|dspool (?:up|dev))\b")


class Block(NamedTuple):
    kind: str
    text: str
    file: str | None
    """The file that the words before it say to save it as."""


def blocks(page: Path) -> Iterator[Block]:
    text, end = page.read_text(), 0
    for found in _BLOCK.finditer(text):
        saved = _SAVED.findall(text[end : found.start()])
        yield Block(found["kind"], found["text"], saved[-1] if saved else None)
        end = found.end()


class Terminal:
    """Runs what a reader types. `cd` holds for what follows; a service runs in a terminal of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.home = directory, directory.parent / "home"
        self.home.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environ = {
            **os.environ,
            "PATH": path,
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / "state"),
            "DSPOOL_SERVICE__PORT": str(self.port),
            "DSPOOL_INIT_TIMEOUT_S": str(PATIENCE_S),
            # Where the plugin is not installed with the package, as in a checkout that is older than it.
            "PYTEST_ADDOPTS": "" if _has_plugin() else "-p dspool.testing.pytest_plugin",
        }
        self.service: subprocess.Popen[bytes] | None = None
        self.log = self.home / "service.log"

    def run(self, text: str) -> str:
        """What a block of commands says."""
        where = self.home / "cwd"
        script = f"set -e\n{self._here(text)}\npwd > {shlex.quote(str(where))}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}\n{self.said()}"
        self.directory = Path(where.read_text().strip())
        return done.stdout

    def serve(self, text: str) -> None:
        self.stop()
        command = text.strip().splitlines()[0].replace("make up", "dspool up")
        with self.log.open("wb") as log:
            self.service = subprocess.Popen(
                shlex.split(command, comments=True),
                cwd=self.directory,
                env=self.environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            assert self.service.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        if "ready  serving" not in self.said():
            return False
        try:
            pool = httpx.get(f"http://127.0.0.1:{self.port}/v1/pools/default").json()
        except (httpx.HTTPError, ValueError):
            return False
        return bool(pool.get("ready")) and pool["actual"] == pool["desired"]

    def stop(self) -> None:
        if self.service is not None:
            self.service.send_signal(signal.SIGINT)
            assert self.service.wait(PATIENCE_S) == 0, self.said()
            self.service = None

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def _here(self, text: str) -> str:
        return text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}").replace(".venv/bin/python", "python")

    def save(self, file: str, text: str) -> None:
        (self.directory / file).write_text(self._here(text))

    def kill_owner(self) -> None:
        """What `kill -9` of the process that holds the session does."""
        pool = f"http://127.0.0.1:{self.port}/v1/pools/default"
        owner = httpx.get(f"{pool}/sessions/alice").json()["owner"]
        pids = {worker["id"]: worker["pid"] for worker in httpx.get(pool).json()["workers"]}
        os.kill(pids[owner], signal.SIGKILL)


def _has_plugin() -> bool:
    from importlib.metadata import entry_points

    return any(one.value == "dspool.testing.pytest_plugin" for one in entry_points(group="pytest11"))


@pytest.fixture
def terminal(short_path: Path) -> Iterator[Terminal]:
    directory = short_path / "work"
    directory.mkdir()
    terminal = Terminal(directory)
    yield terminal
    if terminal.service is not None:
        terminal.service.send_signal(signal.SIGINT)
        terminal.service.wait(PATIENCE_S)


def follow(page: Path, terminal: Terminal) -> int:
    """Do what the page says; how many blocks were run or compared."""
    done, said = 0, ""
    for block in blocks(page):
        if block.file is not None and block.kind != "text":
            terminal.save(block.file, block.text)
        elif block.kind == "sh" and _SERVICE.match(block.text):
            terminal.serve(block.text)
        elif block.kind == "sh":
            said = terminal.run(block.text)
        elif block.kind == "json" and said.startswith("{"):
            compare(json.loads(said.splitlines()[-1]), json.loads(block.text))
        elif block.kind == "text" and block.text.startswith("$ "):
            type_in(block.text, terminal)
        else:
            continue
        done += 1
    return done


def compare(got: Any, shown: Any) -> None:
    """What does not differ from run to run."""
    assert set(got) == set(shown) | ({"operation_id"} & set(got))
    for key in ("outputs", "offline", "program_version", "status", "code", "detail", "details", "usage"):
        if key in shown:
            assert _without_ids(got[key]) == shown[key], key


def _without_ids(value: Any) -> Any:
    return (
        {key: part for key, part in value.items() if key != "operation_id"}
        if isinstance(value, dict)
        else value
    )


def type_in(text: str, terminal: Terminal) -> None:
    """A block with prompts: each command and, where it is a script of the page, what it prints."""
    for command, _, shown in (part.partition("\n") for part in text.split("$ ")[1:]):
        if command.startswith("kill -9"):
            terminal.kill_owner()
        else:
            said = terminal.run(command)
            if "python" in command:
                assert said == shown


@pytest.mark.serve
@pytest.mark.parametrize(
    ("page", "least"), [pytest.param("first-program", 12, marks=pytest.mark.long), ("first-pool", 7)]
)
def test_the_commands_of_a_tutorial_do_what_it_shows(terminal, page, least):
    assert follow(TUTORIALS / f"{page}.md", terminal) >= least
    terminal.stop()
