"""What `benchmarks.structure` counts, on made-up projects."""

import json
import sys

import pytest

from benchmarks import structure

PYPROJECT = """
[tool.hatch.build]
dev-mode-dirs = ["src", "web"]

[[tool.importlinter.contracts]]
name = "They do not know each other"
type = "independence"
modules = ["madeup.low", "madeup.middle"]

[[tool.importlinter.contracts]]
name = "Imports point down"
type = "layers"
containers = ["madeup"]
layers = ["(top) : other", "middle", "low", "nowhere"]
"""


@pytest.fixture
def found(tmp_path):
    """What is found in a project whose package `madeup` has these modules, and which has these other files."""

    def of(files=None, **modules):
        (tmp_path / "pyproject.toml").write_text(PYPROJECT)
        sources = {f"src/madeup/{name}.py": text for name, text in {"__init__": "", **modules}.items()}
        for name, text in (sources | (files or {})).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return structure.structure(tmp_path)

    return of


@pytest.mark.parametrize(
    "back",
    [
        "import madeup.low",
        "from madeup import low",
        "from .low import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from madeup.low import x",
        "def later():\n    from madeup.low import x",
    ],
)
def test_two_modules_that_import_each_other_are_a_cycle_wherever_the_import_stands(found, back):
    seen = found(low="import madeup.middle\nx = 1", middle=back)
    assert seen.cycles == [["madeup.low", "madeup.middle"]]
    assert seen.figures()["cycles"] == 1


def test_a_long_way_round_is_one_cycle_and_who_looks_on_is_not_in_it(found):
    seen = found(
        low="import madeup.middle",
        middle="import madeup.top",
        top="import madeup.low",
        other="import madeup.low",
    )
    assert seen.cycles == [["madeup.low", "madeup.middle", "madeup.top"]]


def test_a_name_from_a_package_is_an_import_of_the_package_itself(found):
    seen = found(__init__="from madeup.low import x", low="from madeup import y")
    assert seen.cycles == [["madeup", "madeup.low"]]


def test_imports_in_one_direction_are_no_cycle(found):
    assert found(low="", middle="import madeup.low", top="import madeup.middle, madeup.low").cycles == []


def test_a_module_that_imports_one_of_a_higher_layer_is_named(found):
    seen = found(
        low="def later():\n    import madeup.top",
        middle="import madeup.low",
        top="",
        other="import madeup.top",
    )
    assert seen.upward == [("madeup.low", "madeup.top")]
    assert "upward: madeup.low imports madeup.top" in structure.table(seen)


def test_layers_are_those_of_the_contract_that_have_a_module(found):
    seen = found({"src/madeup/middle/__init__.py": "", "src/madeup/middle/part.py": ""}, low="", stray="")
    assert seen.layers == {"top, other": 0, "middle": 2, "low": 1, "nowhere": 0}
    assert seen.figures()["layers"] == 2
    assert seen.unlayered == ["madeup", "madeup.stray"]


def test_a_class_name_that_two_modules_define_is_named_with_both_places(found):
    seen = found(
        low="class Both:\n    class Inner: ...", middle="\nclass Both: ...\nclass Once:\n    class Inner: ..."
    )
    assert seen.double_class_names == {"Both": ["src/madeup/low.py:1", "src/madeup/middle.py:2"]}
    assert seen.figures()["double_class_names"] == 1


def test_lines_are_those_of_python_and_of_web_files_and_files_are_the_python_ones(found):
    others = {
        "web/page.html": "<p>\n<p>\n",
        "web/style.css": "p {}\n",
        "web/page.js": "1\n2\n3",
        "web/notes.md": "no\n",
    }
    seen = found(others, low="x = 1\n")
    assert seen.figures() | {"lines": 7, "files": 2, "longest_file": 3} == seen.figures()
    assert seen.longest_file == ("web/page.js", 3)


def test_the_program_prints_one_line_of_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["structure", "--json", "--quick"])
    assert structure.main() == 0
    [line] = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    assert list(figures) == ["lines", "files", "cycles", "layers", "longest_file", "double_class_names"]
    assert all(isinstance(figure, int) for figure in figures.values())


def test_what_is_printed_for_people_names_what_is_behind_the_figures(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["structure"])
    assert structure.main() == 0
    said = capsys.readouterr().out
    assert "longest file" in said
    assert ".py" in said


def test_the_product_has_six_layers_no_cycle_no_long_file_and_no_class_name_twice():
    seen = structure.structure(structure.ROOT)
    assert (seen.cycles, seen.double_class_names, seen.upward) == ([], {}, [])
    assert seen.figures()["layers"] == 6
    assert seen.longest_file[1] <= 400, seen.longest_file
