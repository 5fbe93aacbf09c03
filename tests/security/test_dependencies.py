"""What comes in with us: every package by hash, none that serving does not need, none with a known hole."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
SERVING_EXTRAS = ("postgres", "otlp")
"""Extras of which `make up` installs what they need: a configuration may ask for them at any time."""
SERVING, TESTING = ROOT / "requirements" / "serve.txt", ROOT / "requirements" / "test.txt"
SOURCES = ("actors/dspool", "serve_app/dspool_serve", "serve_app/dspool_console")

_PIN = re.compile(r"^([a-z0-9-]+)==([^ ]+)(?: ; ([^\\]+))? \\$")
_HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")

FIXED = {
    "aiohttp": ("3.13.3", "CVE-2025-69223 to 69230"),
    "filelock": ("3.20.3", "CVE-2025-68146, CVE-2026-22701"),
    "h11": ("0.16.0", "CVE-2025-43859"),
    "h2": ("4.3.0", "CVE-2025-57804"),
    "jinja2": ("3.1.6", "CVE-2025-27516"),
    "orjson": ("3.11.6", "CVE-2025-67221"),
    "protobuf": ("6.33.5", "CVE-2025-4565, CVE-2026-0994"),
    "pyasn1": ("0.6.2", "CVE-2026-23490"),
    "ray": ("2.52.0", "CVE-2025-62593"),
    "requests": ("2.32.4", "CVE-2024-47081"),
    "starlette": ("0.49.1", "CVE-2025-54121, CVE-2025-62727"),
    "urllib3": ("2.6.3", "CVE-2025-66418, CVE-2025-66471, CVE-2026-21441"),
    "virtualenv": ("20.36.1", "CVE-2026-22702"),
    "werkzeug": ("3.1.5", "CVE-2025-66221, CVE-2026-21860"),
}
NOT_IMPORTED = {
    "aiosqlite": "SQLAlchemy's driver for sqlite+aiosqlite",
    "chartkick": "its Chart.js is served as a file",
    "dspy-ai": "another name of dspy",
    "opentelemetry-exporter-otlp-proto-grpc": "imported by its name, when the configuration asks for it",
    "opentelemetry-exporter-otlp-proto-http": "imported by its name, when the configuration asks for it",
    "uvloop": "Ray runs the loops of actors on it where it is installed",
}
BROUGHT_ALONG = {
    "annotated-types": "pydantic is told its bounds in them",
    "dspy": "dspy-ai is this package under another name",
    "pydantic-core": "part of pydantic",
    "pytest": "only pytest loads the plugin that imports it",
    "starlette": "ray[serve] answers with it; corrected where Serve itself does",
    "uvicorn": "ray[serve] serves with it; corrected for the versions that Ray brings",
}
SHARED_TOOLS = {"jsonschema": "ray[default] needs it too"}


def pins(file: Path) -> dict[str, str]:
    """Of a file of pinned packages, by canonical name."""
    found = (_PIN.match(line) for line in file.read_text().splitlines())
    return {match[1]: match[2] for match in found if match}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def needed(requirements: list[str]) -> set[str]:
    """All that these requirements need here, over however many steps, as the installed packages say."""
    environment = {**default_environment(), "extra": ""}
    waiting = [Requirement(one) for one in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        one = waiting.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        for text in distribution(one.name).requires or []:
            inner = Requirement(text)
            asked = [{**environment, "extra": extra} for extra in one.extras] or [environment]
            if inner.marker is None or any(inner.marker.evaluate(of) for of in (environment, *asked)):
                waiting.append(inner)
    return {name for name, _ in seen}


def imported() -> set[str]:
    """The distributions that our code imports, wherever in it."""
    modules: set[str] = set()
    for folder in SOURCES:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    own = {Path(folder).name for folder in SOURCES}
    of_module = packages_distributions()
    found: set[str] = set()
    for module in modules:
        top = module.partition(".")[0]
        if top in own or top in sys.stdlib_module_names or top not in of_module:
            continue
        owners = {canonicalize_name(name) for name in of_module[top]}
        found |= owners if len(owners) == 1 else {owner for owner in owners if has_module(owner, module)}
    return found


def has_module(package: str, module: str) -> bool:
    """Whether a distribution of a shared namespace is where `module` comes from."""
    path = module.replace(".", "/")
    files = {str(file) for file in distribution(package).files or ()}
    return bool(files & {f"{path}.py", f"{path}/__init__.py"})


@pytest.mark.parametrize("file", [SERVING, TESTING], ids=lambda file: file.stem)
def test_each_package_is_pinned_with_hashes_and_no_line_names_a_host_a_path_or_an_option(file):
    lines = file.read_text().splitlines()
    assert lines[:2] == ["# This file was autogenerated by uv via the following command:", "#    make lock"]
    hashes = 0
    for before, line in itertools.pairwise(lines[1:]):
        assert _PIN.match(line) or _HASH.match(line), line
        assert not _PIN.match(line) or not before.endswith("\\"), line
        hashes += bool(_HASH.match(line))
    assert hashes > 5 * len(pins(file)) > 100


def test_what_serves_and_what_tests_have_nothing_twice():
    assert pins(SERVING).keys() & pins(TESTING).keys() == set()


def test_all_that_the_project_asks_for_is_pinned_and_by_the_right_file():
    serving = names(PROJECT["dependencies"] + [one for extra in SERVING_EXTRAS for one in EXTRAS[extra]])
    everything = names(PROJECT["dependencies"] + [one for extra in EXTRAS.values() for one in extra])
    assert serving <= pins(SERVING).keys()
    assert everything <= pins(SERVING).keys() | pins(TESTING).keys()
    assert "dspool" not in pins(SERVING) | pins(TESTING)


def test_the_serving_install_has_no_tool_of_tests_documentation_or_benchmarks():
    tools = names([one for extra in ("dev", "docs", "bench") for one in EXTRAS[extra]])
    assert tools & pins(SERVING).keys() == SHARED_TOOLS.keys()


def test_the_serving_install_has_what_serving_needs_and_nothing_else():
    """The whole closure; what is only for other systems and Pythons cannot be looked into here."""
    asked = PROJECT["dependencies"] + [one for extra in SERVING_EXTRAS for one in EXTRAS[extra]]
    closure = needed(asked + PYPROJECT["build-system"]["requires"])
    here = {
        match[1]
        for match in map(_PIN.match, SERVING.read_text().splitlines())
        if match and (match[3] is None or Requirement(f"x ; {match[3]}").marker.evaluate())
    }
    assert here - closure == set(), "pinned, but nothing needs it: make lock"
    assert closure - here == set(), "needed, but not pinned: make lock"


def test_no_dependency_of_the_serving_install_is_unused_and_none_is_missing():
    asked = names(PROJECT["dependencies"] + [one for extra in SERVING_EXTRAS for one in EXTRAS[extra]])
    used = imported()
    optional = names([one for extra in ("litellm", "sandbox") for one in EXTRAS[extra]])
    assert asked - used - NOT_IMPORTED.keys() == set(), "asked for, but not imported"
    assert used - asked - optional - BROUGHT_ALONG.keys() == set(), "imported, but only there by chance"
    assert NOT_IMPORTED.keys() <= asked - used, "an exception that is none any more"
    assert BROUGHT_ALONG.keys() <= used - asked, "an exception that is none any more"


def test_make_installs_only_by_hash_and_builds_nothing_but_the_project():
    makefile = (ROOT / "Makefile").read_text()
    installs = [
        line.strip() for line in makefile.splitlines() if re.search(r"\$\((LOCKED|PIP_INSTALL)\)", line)
    ]
    assert [line.rpartition(") ")[2] for line in installs] == [
        "--require-hashes --only-binary :all:",
        "-r requirements/serve.txt",
        "--no-build-isolation -e .",
        "-r requirements/test.txt",
    ]
    assert makefile.count("pip install") == 1, "by another way than LOCKED"
    assert makefile.count("-m pip check") == 2


@pytest.mark.parametrize("package", FIXED)
def test_a_pin_is_not_below_the_version_that_fixed_it(package):
    pinned = pins(SERVING) | pins(TESTING)
    fixed, which = FIXED[package]
    # One that is not installed any more is no danger either.
    assert Version(pinned.get(package, fixed)) >= Version(fixed), which
