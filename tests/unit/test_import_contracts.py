"""The import contracts hold on the tree, and each of them fails when it is broken."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")


@pytest.fixture
def tree(tmp_path):
    """A copy of the packages and their contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in ("actors", "serve_app"):
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    # The copy has to win over the installed package.
    path = os.pathsep.join([str(tree / "actors"), str(tree / "serve_app")])
    return subprocess.run(
        [str(LINT), "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tree_keeps_its_contracts(tree):
    done = lint(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "statement", "broken"),
    [
        ("core/figures/histogram.py", "import ray", "Only runtime and pool import Ray"),
        (
            "core/figures/histogram.py",
            "from ray.util import metrics",
            "Only runtime and pool import Ray",
        ),
        (
            "store/store.py",
            "def later():\n    import ray",
            "Only runtime and pool import Ray",
        ),
        ("core/figures/histogram.py", "import dspy", "Only the modules of sessions and models import DSPy"),
        ("metrics.py", "import dspy", "Only the modules of sessions and models import DSPy"),
        (
            "core/figures/histogram.py",
            "import asyncio",
            "core decides with the standard library and msgspec alone",
        ),
        (
            "core/figures/histogram.py",
            "import pydantic",
            "core decides with the standard library and msgspec alone",
        ),
        ("core/figures/histogram.py", "import dspool.wire.frames", "Imports within dspool point down"),
        ("errors.py", "import dspool.messages", "Imports within dspool point down"),
        ("stray.py", "", "Imports within dspool point down"),
        ("store/store.py", "import dspool.worker.worker", "The actors do not know each other's code"),
        ("pool.py", "import dspool_serve", "dspool never imports dspool_serve"),
    ],
)
def test_a_deliberate_break_is_found(tree, module, statement, broken):
    with (tree / "actors" / "dspool" / module).open("a") as file:
        file.write(f"\n{statement}\n")
    done = lint(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{broken} BROKEN" in done.stdout
