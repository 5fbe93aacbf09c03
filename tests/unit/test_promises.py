"""The pages that name tests for what they say, name some for each thing, and those exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from dspool import PoolConfig

ROOT = Path(__file__).parents[2]
PROMISES = "docs/promises.md"
SECURITY = "docs/explanation/security.md"
_NAMED = re.compile(r"`(tests/\S+?\.py)::(\w+)`")


def rows(page: str, columns: int) -> list[list[str]]:
    """Of the tables with so many columns, without their heads."""
    found: list[list[str]] = []
    for line in (ROOT / page).read_text().splitlines():
        cells = line.strip().removeprefix("| ").removesuffix(" |").split(" | ")
        if line.startswith("| ") and len(cells) == columns:
            # What stood above the line of dashes was the head.
            found = found[:-1] if set(cells) == {"---"} else [*found, cells]
    return found


@functools.cache
def names_in(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("page", [PROMISES, SECURITY])
def test_the_tests_that_a_page_names_exist(page):
    named = _NAMED.findall((ROOT / page).read_text())
    assert len(named) >= 30
    assert [f"{file}::{name}" for file, name in named if name not in names_in(ROOT / file)] == []


@pytest.mark.parametrize(
    ("page", "columns", "at_least", "without"),
    [(PROMISES, 2, 18, ("no test yet",)), (SECURITY, 4, 21, ()), (SECURITY, 3, 23, ())],
)
def test_each_row_has_tests_and_only_a_promise_may_say_that_it_has_none(page, columns, at_least, without):
    found = rows(page, columns)
    assert len(found) >= at_least
    for *_, said, tests in found:
        assert _NAMED.search(tests) or tests in without, said
        assert re.sub(_NAMED, "", tests).replace("<br>", "") in ("", *without), said


def test_each_finding_of_the_review_has_become_a_rule():
    assert [finding for finding, _, _ in rows(SECURITY, 3)] == [f"S{number}" for number in range(1, 24)]


def test_the_time_that_a_hung_worker_has_is_that_of_the_defaults():
    default = PoolConfig.default()
    longest_s = default.max_health_failures * default.health_check_interval_s + default.health_check_timeout_s
    assert f"{longest_s:g} s with the defaults" in (ROOT / PROMISES).read_text()
