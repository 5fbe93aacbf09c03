"""Whether one installation may take the place of another's: every reason says what to do instead."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from dspool.core.lifecycle.upgrades import Installation, is_same, why_not, why_not_node, why_not_schema
from dspool.release import VERSION

OLD = Installation(
    dspool="0.2.0", python="3.11", ray="2.60.0", exchange=2, environment="/opt/old", code="/opt/old/dspool"
)
NEW = msgspec.structs.replace(OLD, dspool="0.3.0", environment="/opt/new", code="/opt/new/dspool")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, ""),
        ({"dspool": "0.2.0"}, ""),
        ({"dspool": "0.10.0rc1"}, ""),
        ({"dspool": "0.1.9"}, "newer"),
        ({"python": "3.12"}, "Python 3.11"),
        ({"ray": "2.61.0"}, "Ray 2.60.0"),
        ({"exchange": 3}, "cannot talk"),
    ],
)
def test_a_newer_or_equal_version_with_the_same_python_ray_and_exchange_may_take_the_place(changed, says):
    why = why_not(OLD, msgspec.structs.replace(NEW, **changed))
    assert says in why
    assert bool(says) == bool(why) == ("dspool down" in why)


def test_a_service_that_does_not_say_what_it_is_cannot_be_upgraded():
    assert "dspool down" in why_not(Installation(), NEW)


def test_the_same_version_in_the_same_environment_is_the_same():
    assert is_same(OLD, msgspec.structs.replace(OLD, ray="other"))
    assert not is_same(OLD, NEW)
    assert not is_same(OLD, msgspec.structs.replace(OLD, environment="/opt/new"))


@pytest.mark.parametrize(("found", "says"), [(4, ""), (3, ""), (5, "knows 4"), (2, "dspool store migrate")])
def test_tables_are_migrated_while_a_service_runs_only_from_a_version_that_allows_it(found, says):
    why = why_not_schema(found, known=4, running_from=3)
    assert says in why
    assert bool(says) == bool(why)


def test_each_node_must_have_the_same_at_the_same_place():
    assert why_not_node("n1", NEW, NEW) == ""
    other = msgspec.structs.replace(NEW, code="/home/ada/dspool")
    assert "takes dspool from /home/ada/dspool" in why_not_node("n1", other, NEW)
    assert "node n1 has dspool 0.2.0" in why_not_node("n1", OLD, NEW)
    assert "no such file" in why_not_node("n1", "no such file", NEW)


def test_the_version_of_the_package_is_that_of_the_product():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert tomllib.loads(text)["project"]["version"] == VERSION
