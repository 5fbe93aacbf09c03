"""What the configuration names is imported before anything starts, in a process of its own."""

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner

from dspool.cli import app, trial_import
from dspool.cli.doctor.service import imports
from dspool.cli.trial_import import named_in, refuse_what_cannot_be_imported, try_imports
from dspool.config import PoolConfig
from dspool.errors import InvalidRequest, ProgramError, WorkerStartFailed

MODULES = {
    "fine": 'import dspy\nprint(\'{"fails": "fine:Answer"}\')\nclass Answer(dspy.Module):\n  def forward(self): ...\n',
    "needs_key": "import os\nKEY = os.environ['TRIAL_KEY_OF_NOBODY']\n",
    "needs_part": "\nimport trialshop.part_of_nobody\n",
    "away": "raise ConnectionRefusedError('no database')\n",
    "ends": "import os\nos._exit(3)\n",
    "hangs": "import time\ntime.sleep(1000)\n",
}


@pytest.fixture(autouse=True, scope="module")
def trialshop(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "trialshop").mkdir()
    (home / "trialshop" / "__init__.py").write_text("")
    for name, body in MODULES.items():
        (home / "trialshop" / f"{name}.py").write_text(body)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{home}{os.pathsep}{before}"
    yield home
    os.environ["PYTHONPATH"] = before


def config(*modules: str, **more) -> PoolConfig:
    programs = {name: {"import_path": f"trialshop.{name}:Answer"} for name in modules}
    return PoolConfig(name="t", programs=programs, allowed_imports=("trialshop",), **more)


def test_all_that_names_code_is_tried():
    made = config(
        "fine",
        preload=("trialshop.fine",),
        setup="trialshop.fine:set_up",
        warmup={
            "steps": [
                {"step": "import_modules", "modules": ["trialshop.fine"]},
                {"step": "custom_code", "import_path": "trialshop.fine:warm"},
            ]
        },
        allowed_callables={"tools": ["trialshop.fine:tool"]},
    )
    assert named_in(made) == {
        "trialshop.fine": ["preload", "warmup.steps.0.modules"],
        "trialshop.fine:set_up": ["setup"],
        "trialshop.fine:warm": ["warmup.steps.1.import_path"],
        "trialshop.fine:Answer": ["programs.fine.import_path"],
        "trialshop.fine:tool": ["allowed_callables.tools"],
    }
    assert named_in(PoolConfig.default()) == {}


def test_each_that_cannot_be_imported_is_told_with_exception_text_and_line():
    found = {
        failure.path: failure.error
        for failure in try_imports(config("fine", "needs_key", "needs_part", "nowhere"))
    }
    assert set(found) == {f"trialshop.{name}:Answer" for name in ("needs_key", "needs_part", "nowhere")}
    key = found["trialshop.needs_key:Answer"]
    assert type(key) is ProgramError
    assert (key.exception, key.at, key.text) == ("KeyError", "trialshop.needs_key:2", "'TRIAL_KEY_OF_NOBODY'")
    assert found["trialshop.needs_part:Answer"].text == "No module named 'trialshop.part_of_nobody'"
    assert type(found["trialshop.nowhere:Answer"]) is InvalidRequest


@pytest.mark.parametrize(
    ("names", "limit_s", "how"),
    [(("fine", "ends"), 300.0, "exit code 3"), (("hangs",), 2.0, "longer than 2 s")],
)
def test_a_module_that_ends_the_process_or_never_ends_is_named(names, limit_s, how):
    (failure,) = try_imports(config(*names), timeout_s=limit_s)
    assert type(failure.error) is WorkerStartFailed
    assert failure.path == f"trialshop.{names[-1]}:Answer"
    assert how in failure.error.message


def test_a_start_is_refused_by_a_module_that_ends_its_process():
    with pytest.raises(WorkerStartFailed, match=r"trialshop.ends:Answer did not end: .* exit code 3"):
        refuse_what_cannot_be_imported(config("ends"))


def test_who_waits_for_a_long_import_hears_of_it_until_the_start_is_over(monkeypatch):
    monkeypatch.setattr(trial_import, "SAY_AFTER_S", 0.2)
    heard: list[str] = []
    hangs = config("hangs", init_timeout_s=3.0, warmup={"worker_deadline_s": 3.0})
    refuse_what_cannot_be_imported(hangs, heard.append)
    assert len(heard) > 2
    assert all("importing what the configuration names" in text for text in heard)


def test_what_may_pass_is_left_to_the_workers():
    refuse_what_cannot_be_imported(config("away"))
    with pytest.raises(
        ProgramError, match=r"programs.needs_key.import_path: importing .* 'TRIAL_KEY_OF_NOBODY'"
    ):
        refuse_what_cannot_be_imported(config("away", "needs_key"))


def test_doctor_says_what_cannot_be_imported():
    (finding,) = imports(config("fine", "needs_key"))
    assert finding.level == "fail"
    assert "programs.needs_key.import_path" in finding.found
    assert "raised KeyError at trialshop.needs_key:2: 'TRIAL_KEY_OF_NOBODY'" in finding.found
    assert imports(config("fine"))[0].level == "ok"
    assert imports(PoolConfig.default())[0].level == "ok"


def test_up_refuses_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("dspool.cli.start.service_module", lambda: pytest.fail("it was started"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brokenshop.py").write_text("import pinecone_of_nobody\nclass Answer: ...\n")
    said = CliRunner().invoke(
        app, ["up", "brokenshop:Answer", "--port", "0", "--state-dir", str(tmp_path / "s")]
    )
    assert said.exit_code == 1
    assert "raised ModuleNotFoundError at brokenshop:1: No module named 'pinecone_of_nobody'" in said.stderr
