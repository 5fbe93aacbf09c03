"""`dspool new`: a project whose tests pass as they are, and names that could not be imported are refused."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli.new import FILES, package_of, write_project
from dspool.config import load_config
from dspool.errors import ConfigError
from tests.unit.test_pytest_plugin import run as run_pytest


@pytest.mark.parametrize("place", ["shop", "my-shop", "mÿ dir/läden/Shop2"])
def test_the_tests_of_a_new_project_pass_as_they_are(tmp_path, place):
    directory = tmp_path / place
    write_project(directory)
    done = run_pytest(directory, "-q")
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_a_new_project_has_all_that_it_needs_and_no_placeholder(tmp_path):
    directory = tmp_path / "my-shop"
    done = CliRunner().invoke(app, ["new", str(directory), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["package"] == "my_shop"
    assert sorted(said["files"]) == sorted(path.replace("$package", "my_shop") for path in FILES)
    for file in said["files"]:
        text = (directory / file).read_text()
        assert "$package" not in text
        assert "$project" not in text
    project = tomllib.loads((directory / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-shop"
    config = load_config(file=directory / "pool.yaml", environ={}).config
    assert config.programs["answer"].import_path == "my_shop.answers:Answer"
    assert ".env" in (directory / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("class", "word of Python"),
        ("match", "word of Python"),
        ("json", "module of Python's own"),
        ("test", "module of Python's own"),
        ("JSON", "module of Python's own"),
        ("dspy", "installed here"),
        ("pytest", "installed here"),
        ("tests", "folder of the project"),
        ("läden", "cannot name a project"),
        ("2shops", "cannot name a project"),
        ("shop.answers", "cannot name a project"),
        ("my shop", "cannot name a project"),
        ("-shop", "cannot name a project"),
        ("shop-", "cannot name a project"),
    ],
)
def test_a_name_that_could_not_be_imported_is_refused_and_nothing_is_written(tmp_path, name, why):
    with pytest.raises(ConfigError, match=why):
        write_project(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "package"), [("a", "a"), ("My-Shop", "my_shop"), ("shop_2-b", "shop_2_b")])
def test_the_package_is_named_after_the_project(name, package):
    assert package_of(name) == package


def test_what_is_there_is_never_written_over(tmp_path):
    (tmp_path / "shop").mkdir()
    assert len(write_project(tmp_path / "shop")) == len(FILES)
    for path in (tmp_path / "shop", tmp_path / "shop" / "pool.yaml"):
        before = sorted(tmp_path.rglob("*"))
        done = CliRunner().invoke(app, ["new", str(path)])
        assert done.exit_code == 2, done.output
        assert sorted(tmp_path.rglob("*")) == before


def test_the_templates_are_in_the_wheel():
    from importlib.resources import files

    for template in filter(None, FILES.values()):
        assert (files("dspool.cli") / "project" / template).is_file()
    root = Path(__file__).parents[2]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    # hatchling takes all files in these folders that git does not ignore.
    assert "actors/dspool" in wheel["packages"]
    assert "exclude" not in wheel
