"""The files around the code agree with each other."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[2]


def test_make_never_hands_on_the_switch_that_makes_workers_start_slowly(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    done = subprocess.run(
        ["make", "-f", "Makefile", "-f", "-", "probe-env"],
        cwd=ROOT,
        input="probe-env: ; @env",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PATH=" in done.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in done.stdout


@pytest.mark.parametrize(
    "target",
    [
        "up",
        "serving",
        "install",
        "wheel",
        "test",
        "test-cluster",
        "check",
        "bench",
        "bench-quick",
        "bench-smoke",
        "docs",
        "generated",
    ],
)
def test_every_target_that_the_documents_name_can_be_made(target):
    shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr


def test_every_benchmark_that_make_runs_exists():
    makefile = (ROOT / "Makefile").read_text()
    (all_of_them,) = re.findall(r"^BENCHMARKS \?= (.*)$", makefile, re.MULTILINE)
    assert tuple(all_of_them.split()) == report.NAMES
    for name in report.NAMES:
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), name


def test_the_short_form_runs_every_benchmark():
    shown = subprocess.run(
        ["make", "-n", "bench-quick"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in report.NAMES:
        assert f"-m benchmarks.{name} --json --quick" in shown.stdout, name


def test_the_ci_script_runs_the_targets_that_people_run_in_surroundings_as_good_as_new():
    script = (ROOT / ".ci" / "run").read_text()
    fresh = ".venv/bin/python -m tests.fresh "
    assert [line.strip() for line in script.splitlines() if line.startswith(("make", fresh))] == [
        "make install",
        f"{fresh}make check",
    ]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_licence_is_the_one_the_package_declares():
    licence = (ROOT / "LICENSE").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_every_link_between_the_documents_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page}: {link}"
