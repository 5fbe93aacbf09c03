"""docs/promises.md names tests that exist, and times that are those of the configuration."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dspool import PoolConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text()
ROWS = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][1:]
NAMED = sorted(set(re.findall(r"`(tests/\S+?\.py)::(\w+)`", PAGE)))


def names_in(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_the_page_names_exists(file, name):
    assert name in names_in(ROOT / file)


def test_each_promise_has_tests_or_says_that_it_has_none():
    promises = [row for row in ROWS if not row[0].startswith("| ---")]
    assert len(promises) >= 18
    for promise, tests in promises:
        named = re.findall(r"`tests/\S+?::\w+`", tests)
        assert named or tests.startswith("no test yet"), promise
        assert re.sub(r"`tests/\S+?::\w+`|<br>| \|$", "", tests) in ("", "no test yet"), promise


def test_the_time_that_a_hung_worker_has_is_that_of_the_defaults():
    default = PoolConfig.default()
    longest_s = default.max_health_failures * default.health_check_interval_s + default.health_check_timeout_s
    assert f"{longest_s:g} s with the defaults" in PAGE
