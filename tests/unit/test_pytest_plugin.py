"""The pytest plugin: pools by fixture and marker, and nothing for those who use neither."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

PLUGIN = "dspool.testing.pytest_plugin"
TESTS = """
import pytest

import dspy


class Shout(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    async def aforward(self, question: str):
        found = await self.answer.acall(question=question)
        return dspy.Prediction(answer=found.answer.upper())


@pytest.mark.dspool(programs={"shout": Shout}, lm=["paris"])
def test_a_marker_says_what_the_pool_serves_and_the_model_answers(dspool_pool, scripted_lm):
    assert dspool_pool.execute("shout", question="capital?").answer == "PARIS"
    assert scripted_lm.calls[0].inputs == {"question": "capital?"}


@pytest.mark.dspool({"shout": Shout}, operation_timeout_s=5.0, checkout_timeout_s=1.0)
def test_a_script_comes_later_too(dspool_pool, scripted_lm):
    scripted_lm.script({"France": "Paris", "Spain": "Madrid"})
    assert dspool_pool.execute("shout", question="Spain?").answer == "MADRID"
    assert dspool_pool.pool.config.operation_timeout_s == 5.0


def test_without_a_marker_the_configuration_file_counts(dspool_pool):
    assert dspool_pool.execute("from_file", q="a?").offline is True


def test_several_pools(dspool_pools):
    one, two = dspool_pools({"p": "q -> x"}, lm=["1"]), dspool_pools({"p": "q -> x"}, lm=["2"])
    assert (one.execute("p", q="?").x, two.execute("p", q="?").x) == ("1", "2")
"""


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    installed = any(entry.value == PLUGIN for entry in entry_points(group="pytest11"))
    plugin = () if installed else ("-p", PLUGIN)
    command = [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, env=dict(os.environ))


def test_tests_of_a_project_get_pools_by_fixture_and_marker(tmp_path):
    (tmp_path / "test_shop.py").write_text(TESTS)
    (tmp_path / "pool.yaml").write_text("programs: {from_file: {spec: {signature: 'q -> x'}}}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\ndspool_config = pool.yaml\naddopts = --strict-markers\n")
    done = run(tmp_path, "-q")
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_tests_that_use_no_pool_do_not_load_anything_for_it(tmp_path):
    (tmp_path / "test_plain.py").write_text(
        "import sys\n\ndef test_it():\n"
        "    assert not {'dspy', 'ray', 'dspool.config', 'pydantic'} & sys.modules.keys()\n"
    )
    done = run(tmp_path, "-q", "-p", "no:hypothesispytest", "-p", "no:schemathesis")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_is_an_entry_point_of_the_distribution():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'[project.entry-points.pytest11]\ndspool = "{PLUGIN}"' in text
