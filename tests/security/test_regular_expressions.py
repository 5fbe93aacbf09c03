"""Every regular expression of the product takes time that is linear in what it reads."""

from __future__ import annotations

import ast
import importlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "actors", ROOT / "serve_app")
CALLS = {"compile", "match", "search", "fullmatch", "findall", "finditer", "split", "sub", "subn"}
MAX_ANCHORED = 300
"""Characters of what the expressions in `ANCHORED` read: names, tokens, headers."""

ANCHORED = {
    # Used by `match` and `fullmatch` only. Looked for in the middle of a text, they would begin at each character.
    "actors/dspool/programs/field_types.py: _TOKEN",
    "actors/dspool/messages/members.py: _WORKER_ID",
    "actors/dspool/programs/contents.py: _HOST",
}
NOT_FOUND = {
    # Made while running, and the parts that can differ: names that are identifiers, and the operator's own paths.
    "actors/dspool/programs/offline/prompt_plan.py: self._header": [
        r"^<(question|context)>\n",
        r"^\[\[ ## (question|context) ## \]\]\n",
    ],
    "actors/dspool/cli/doctor/listeners.py: name": [],
    "actors/dspool/cli/doctor/listeners.py: path": [],
}


class Use(NamedTuple):
    where: str
    pattern: Any
    """The text of the expression or the compiled one; None if it is made while running."""
    flags: int = 0


def uses() -> Iterator[Use]:
    for file in sorted(path for source in SOURCES for path in source.rglob("*.py")):
        name = str(file.relative_to(ROOT))
        tree = ast.parse(file.read_text())
        targets = {
            id(node.value): ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "pattern":
                yield _use(name, node.value, ast.unparse(node.value))
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and ast.unparse(node.func).startswith("re.") and node.func.attr in CALLS:
                yield _use(name, node.args[0], targets.get(id(node), ast.unparse(node.args[0])))


def _use(file: str, pattern: ast.expr, name: str) -> Use:
    if isinstance(pattern, ast.Constant):
        return Use(
            f"{file}: {name}", pattern.value, re.MULTILINE | re.DOTALL if "^" in str(pattern.value) else 0
        )
    module = importlib.import_module(".".join(Path(file).with_suffix("").parts[1:]).removesuffix(".__init__"))
    values = vars(module)
    if name in values:
        return Use(f"{file}: {name}", values[name])
    try:
        return Use(f"{file}: {name}", eval(ast.unparse(pattern), dict(values)))
    except NameError:
        return Use(f"{file}: {name}", None)


USES = list(uses())
TESTED = [
    Use(use.where, pattern, use.flags)
    for use in USES
    for pattern in (NOT_FOUND[use.where] if use.pattern is None else [use.pattern])
]


def test_the_expressions_are_found():
    assert len(USES) > 50
    assert {use.where for use in USES if use.pattern is None} == NOT_FOUND.keys()
    assert {use.where for use in USES} >= ANCHORED


def parts_of(text: str) -> set[str]:
    """What an expression may look for, as far as it stands in it word for word, and what is near it."""
    words = re.findall(r"[A-Za-z]+|[^A-Za-z\\]", text)
    return {*words, *(f" {word}" for word in words), *(f"{word} " for word in words)}


LONGER = ("a.", "a-", "a ", "A ", "1,", "1 ", ". ", "A of the ", "by the ", "is a ", "in the ", "\\x")
UNITS = {*" a1A.,-'\"\\<[(_:|\n\t", *LONGER}


def slowest(pattern: re.Pattern[Any], methods: list[str], size: int) -> Iterator[tuple[float, str]]:
    is_bytes = isinstance(pattern.pattern, bytes)
    source = pattern.pattern.decode("latin-1") if is_bytes else pattern.pattern
    for unit in sorted(UNITS | parts_of(source)):
        for before, after in (("", "!"), ("A", "\x00"), ("in", " x"), ("'", "'")):
            text: Any = before + unit * (size // len(unit)) + after
            text = text.encode("utf-8") if is_bytes else text
            for method in methods:
                began = time.thread_time()
                found = getattr(pattern, method)(text)
                if method == "finditer":
                    for _ in found:
                        pass
                yield time.thread_time() - began, f"{method} of {before!r} + {unit!r} * n + {after!r}"


@pytest.mark.parametrize("use", TESTED, ids=lambda use: use.where)
def test_an_expression_is_linear(use: Use):
    pattern = use.pattern if isinstance(use.pattern, re.Pattern) else re.compile(use.pattern, use.flags)
    methods = ["match", "fullmatch"] if use.where in ANCHORED else ["finditer", "match", "fullmatch"]
    suspects = {how for seconds, how in slowest(pattern, methods, 2_000) if seconds > 0.003}
    for _ in range(2):
        if not suspects:
            return
        # Four times as much takes about four times as long; sixteen times would be quadratic.
        short = {how: seconds for seconds, how in slowest(pattern, methods, 1_000) if how in suspects}
        long = {how: seconds for seconds, how in slowest(pattern, methods, 4_000) if how in suspects}
        suspects = {how for how in suspects if long[how] > 9 * short[how]}
    assert not suspects, f"{use.where}: {sorted(suspects)[:3]}"


def test_the_measurement_finds_what_is_quadratic():
    with pytest.raises(AssertionError, match="n"):
        test_an_expression_is_linear(
            Use("the parser as it was", r"\s*([A-Za-z_]\w*)\s*(?::\s*(.+?))?\s*", re.DOTALL)
        )
