"""The import contracts hold on the tree, and each of them fails when it is broken."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.structure import structure

ROOT = Path(__file__).parents[2]
RAY = "Only runtime and pool import Ray"
CORE = "core decides with the standard library and msgspec alone"
LAYERS = "Imports point down"
CHECKING = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
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


def test_every_module_has_its_layer_and_no_import_runs_in_a_circle():
    found = structure(ROOT)
    assert len(found.layers) == 6
    # The package itself names what is at its top and loads it when it is asked for.
    assert found.unlayered == ["dspool"]
    assert found.upward == []
    assert found.cycles == []


@pytest.mark.parametrize(
    ("module", "statement", "broken"),
    [
        ("dspool/core/metrics/histogram.py", "import ray", RAY),
        ("dspool/core/metrics/histogram.py", "from ray.util import metrics", RAY),
        ("dspool/store/store.py", "def later():\n    import ray", RAY),
        ("dspool/core/metrics/histogram.py", "import dspy", "Only programs import DSPy"),
        ("dspool/telemetry/metrics.py", "import dspy", "Only programs import DSPy"),
        ("dspool/core/metrics/histogram.py", "import asyncio", CORE),
        ("dspool/core/metrics/histogram.py", "import pydantic", CORE),
        ("dspool/core/metrics/histogram.py", "import dspool.wire.frames", LAYERS),
        ("dspool/errors.py", "import dspool.core.metrics.histogram", LAYERS),
        ("dspool/worker/worker.py", f"{CHECKING}    import dspool.runtime.workers", LAYERS),
        ("dspool/store/store.py", "import dspool.worker.worker", "The actors do not know each other's code"),
        ("dspool/pool.py", "import dspool_serve", LAYERS),
        ("dspool_serve/ingress/service.py", "import dspool_console", LAYERS),
        (
            "dspool_serve/http/requests.py",
            "import dspool_serve.api",
            "Imports within dspool_serve point down",
        ),
    ],
)
def test_a_deliberate_break_is_found(tree, module, statement, broken):
    source = "actors" if module.startswith("dspool/") else "serve_app"
    with (tree / source / module).open("a") as file:
        file.write(f"\n{statement}\n")
    done = lint(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{broken} BROKEN" in done.stdout
