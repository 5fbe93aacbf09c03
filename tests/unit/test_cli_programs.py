"""Programs that are named on the command line of `dspool up`: how they are found, named and refused."""

from __future__ import annotations

import os
import sys

import pytest
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli.programs import flags_for
from tests.unit.service_double import FakeService

run = CliRunner().invoke
SHOP = """
import os
import dspy

class TicketTriage(dspy.Module):
    pass

class Ranked(dspy.Module):
    def __init__(self, model, top=3, *, index, cold=False):
        pass

program = TicketTriage()
LIMIT = 3
NAMES = ["a"]
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A directory with a program file, as the current one."""
    (tmp_path / "shop_here.py").write_text(SHOP)
    (tmp_path / "shop_broken.py").write_text("import dspy\ndef broken(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_programs_named_on_the_command_line_are_served_besides_those_of_the_file(service, shop, monkeypatch):
    file = shop / "pool.yaml"
    (shop / "other.py").write_text("import dspy\nclass B(dspy.Module): pass\n")
    file.write_text("allowed_imports: [other]\nprograms: {b: {import_path: 'other:B'}}\n")
    seen = []

    def init(self, config, **options):
        seen.append(config)
        FakeService.__init__(self, config, **options)

    monkeypatch.setattr(service, "__init__", init)
    named = ["shop_here:TicketTriage", "mine=shop_here:program"]
    result = run(app, ["up", *named, "--config", str(file), "--port", "0", "--state-dir", str(shop / "s")])
    assert result.exit_code == 0, result.output
    (config,) = seen
    paths = {name: program.import_path for name, program in config.programs.items()}
    assert paths == {"ticket_triage": "shop_here:TicketTriage", "mine": "shop_here:program", "b": "other:B"}
    assert config.allowed_imports == ("other", "shop_here")
    assert os.environ["PYTHONPATH"] == f"{shop}{os.pathsep}/elsewhere"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["nowhere.answers:A"], "there is no module 'nowhere'"),
        (["shop_here"], "names no program"),
        (["=shop_here:A"], "names no program"),
        (["shop_here:program", "program=shop_here:TicketTriage"], "two programs would be named 'program'"),
        (["shop_here:a b"], "shop_here has no a b"),
        (["shop_her:program"], "did you mean shop_here?"),
        (["shop_here:TicketTriag"], "did you mean TicketTriage?"),
        (["shop_here:tickettriage"], "did you mean TicketTriage?"),
        (["shop_here:Ranked"], "Ranked needs model, index to be made"),
        (["shop_here:LIMIT"], "LIMIT is a int, which is no program"),
        (["shop_here:NAMES"], "NAMES is a list, which is no program"),
        (["shop_here.inner:A"], "there is no module 'shop_here.inner', in shop_here"),
        (["shop_broken:A"], "shop_broken.py, line 2: "),
        (["a/b=shop_here:program"], "a/b"),
    ],
)
def test_a_program_that_cannot_be_meant_is_refused_before_anything_starts(service, shop, named, said):
    result = run(app, ["up", *named, "--port", "0", "--state-dir", str(shop / "s")])
    assert result.exit_code == 2
    assert said in result.output
    assert service.log == []


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("Answer", "answer"),
        ("TicketTriage", "ticket_triage"),
        ("RAGProgram", "rag_program"),
        ("make_agent", "make_agent"),
        ("Qa2", "qa2"),
    ],
)
def test_a_program_is_named_after_its_class(shop, attribute, name):
    (shop / "shop_here.py").write_text(f"from shop import {attribute}\n")
    assert list(flags_for([f"shop_here:{attribute}"], None, {})["programs"]) == [name]


@pytest.mark.parametrize(
    "source",
    [
        "from elsewhere import *",
        "def __getattr__(name): ...",
        "globals().update(A=1)",
        "if True:\n    A = make()",
    ],
)
def test_a_name_that_only_running_the_module_would_show_is_left_to_the_workers(shop, source):
    (shop / "shop_open.py").write_text(f"{source}\n")
    assert flags_for(["shop_open:A"], None, {})["programs"] == {"a": {"import_path": "shop_open:A"}}


def test_a_configuration_finds_its_programs_in_the_current_directory(service, shop, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(shop)])
    file = shop / "pool.yaml"
    file.write_text("allowed_imports: [shop_here]\nprograms: {b: {import_path: 'shop_here:program'}}\n")
    result = run(app, ["up", "--config", str(file), "--port", "0", "--state-dir", str(shop / "s")])
    assert result.exit_code == 0, result.output
    assert os.environ["PYTHONPATH"] == f"{shop}{os.pathsep}/elsewhere"
