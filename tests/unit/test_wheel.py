"""The wheel: the same bytes from the same files, all of ours in it and nothing else, for the Pythons that it names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from benchmarks.common import ROOT
from benchmarks.installed import build_wheel, needed, requirements

SOURCES = ("actors/dspool", "serve_app/dspool_serve", "serve_app/dspool_console")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(content.read(name).decode())


def test_the_same_files_give_the_same_bytes_whoever_checked_them_out_and_when(tmp_path, wheel):
    copy = tmp_path / "another checkout"
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", *SOURCES):
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    for path in copy.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    (copy / "actors/dspool/__pycache__").mkdir(exist_ok=True)
    (copy / "actors/dspool/__pycache__/junk.cpython-311.pyc").write_bytes(b"compiled by whom?")
    assert build_wheel(tmp_path / "again", checkout=copy).read_bytes() == wheel.read_bytes()


def test_every_file_of_ours_is_in_it_and_no_other(wheel):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *SOURCES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    expected = {file.partition("/")[2] for file in listed if (ROOT / file).exists()}
    with zipfile.ZipFile(wheel) as content:
        found = {name for name in content.namelist() if ".dist-info/" not in name}
    assert found == expected
    # What is easily left out is of no use to name alone: pages, templates, rules, the marker of types.
    for kind in (".js", ".css", ".html", ".svg", ".json", ".yaml", ".txt", "py.typed"):
        assert any(name.endswith(kind) for name in found), kind


def test_it_names_the_pythons_that_it_is_for(metadata):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = SpecifierSet(metadata["Requires-Python"])
    named = re.findall(
        r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.M
    )
    assert named[0] == str(asked).removeprefix(">="), "the least Python and the first one named are the same"
    assert all(version in asked for version in named)
    assert [int(version.partition(".")[2]) for version in named] == list(range(11, 11 + len(named)))


def test_what_it_needs_is_here_at_the_versions_that_it_asks_for(wheel):
    asked = requirements(wheel)
    found = needed(asked)
    for requirement in asked:
        version = found[re.sub(r"[-_.]+", "-", requirement.name).lower()].version
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)
