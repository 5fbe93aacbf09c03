"""Files that share a service run in one process, one after the other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.side_by_side import LONGEST, TOGETHER, Order

SERVE = Path(__file__).parents[1] / "serve"


def item(file: str, *fixtures: str) -> SimpleNamespace:
    return SimpleNamespace(path=SERVE / f"{file}.py", fixturenames=["up", *fixtures])


def test_a_file_that_uses_a_shared_service_without_a_place_in_its_row_is_refused():
    with pytest.raises(pytest.UsageError, match=r"test_new\.py uses 'guarded'"):
        Order().pytest_collection_modifyitems([item("test_new", "guarded")])
    with pytest.raises(pytest.UsageError, match=r"test_service\.py uses 'guarded'"):
        Order().pytest_collection_modifyitems([item("test_service", "plain", "guarded")])


def test_they_run_in_the_order_in_which_they_are_named():
    items = [item(file, service) for file, service in TOGETHER.items()]
    shuffled = [*items[::-1], item("test_of_no_service"), item(LONGEST[-1])]
    Order().pytest_collection_modifyitems(shuffled)
    assert shuffled[: len(items)] == items
    assert shuffled[-1].path.stem == "test_of_no_service"


def test_every_file_named_here_exists():
    tests = {path.stem for path in SERVE.parent.rglob("test_*.py")}
    assert tests.issuperset(LONGEST)
