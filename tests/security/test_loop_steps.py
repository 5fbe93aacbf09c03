"""Nothing that a caller sends holds the event loop of a worker or of an ingress process for more than 50 ms."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dspool.config import PoolConfig
from dspool.errors import suggestion
from dspool.messages import Deployment, ExecuteProgram
from dspool.programs.offline.extractive import sentences_of
from dspool.programs.sessions.host import SessionHost
from tests.security.corpus import CORPUS, of
from tests.security.loop_steps import LIMIT_S, Clock, speed

ROOT = Path(__file__).parents[2]


def test_no_step_of_a_loop_is_long_whatever_a_caller_sends():
    # In a process of its own: what other tests left in this one, collections of garbage have to look through.
    command = [sys.executable, "-m", "tests.security.loop_steps"]
    measured = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert measured.returncode == 0, measured.stdout[-3000:] + measured.stderr[-3000:]
    assert len(measured.stdout.splitlines()) > len(CORPUS)


def test_the_measurement_sees_a_step_that_is_long():
    """What took 1.3 s before the parser became linear, on the loop as it was."""
    clock = Clock()

    async def main() -> None:
        import re

        quadratic = re.compile(r"\s*([A-Za-z_]\w*)\s*(?::\s*(.+?))?\s*", re.DOTALL)
        assert quadratic.fullmatch("a" + " " * 6_000 + "! ") is None

    with clock.watching():
        asyncio.new_event_loop().run_until_complete(main())
    assert clock.longest_s > LIMIT_S / 2
    assert of("signature")[0].name == "spaces before a mark that is no type"


@pytest.mark.parametrize(
    ("name", "known"),
    [("ba" * 64, "abc" * 40), ("ba" * 64, "ab" * 60), ("ab" * 16 + "x", "ba" * 16), ("a" * 128, "a" * 120)],
)
def test_a_name_that_is_not_there_is_compared_with_few(name: str, known: str):
    """A session may have a thousand variables, whose names callers choose."""
    names = [f"{known}{number:04d}" for number in range(1_000)] + [
        f"{number:04d}{known}" for number in range(1_000)
    ]
    began = time.thread_time()
    suggestion(name, names)
    assert (time.thread_time() - began) / speed() < LIMIT_S


@pytest.mark.parametrize("unit", ["A. ", "Dr. ", "e.g. "])
def test_a_text_of_abbreviations_is_read_in_one_go(unit: str):
    began = time.thread_time()
    assert len(sentences_of(unit * (15_000 // len(unit)))) == 1
    assert (time.thread_time() - began) / speed() < LIMIT_S


def test_what_many_outputs_read_is_no_work_for_the_loop():
    host = SessionHost(PoolConfig())
    fields = {"inputs": ["context", "question"], "outputs": [f"o{number}" for number in range(64)]}
    host.deploy(Deployment("wide", 1, spec={"signature": fields}))
    host.deploy(Deployment("narrow", 1, spec={"signature": "context, question -> answer"}))
    inputs = {"context": "9:00. " * 2_000, "question": "Who?"}
    assert host.plan(ExecuteProgram("wide", inputs), None) == "async"
    assert host.plan(ExecuteProgram("narrow", inputs), None) == "inline"
    inputs["context"] = "9:00. " * 40
    began = time.thread_time()
    assert host.plan(ExecuteProgram("wide", inputs), None) == "inline"
    host.run_inline(ExecuteProgram("wide", inputs), None)
    assert (time.thread_time() - began) / speed() < LIMIT_S
