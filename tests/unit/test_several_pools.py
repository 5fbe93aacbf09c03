"""One file, several pools: what stands beside `pools` holds for all, a section for its own."""

from __future__ import annotations

import pytest
import yaml

from dspool.config import load_config, load_pools
from dspool.errors import ConfigError


@pytest.fixture
def loaded(tmp_path):
    def of(document, **more):
        (tmp_path / "pool.yaml").write_text(yaml.safe_dump(document))
        return load_pools(file=tmp_path / "pool.yaml", environ={}, **more)

    return of


def test_a_section_counts_more_than_what_stands_beside_it(loaded, tmp_path):
    document = {"pool_size": 2, "service": {"port": 1}, "pools": {"a": {"pool_size": 3}, "b": None}}
    a, b = loaded(document)
    assert [(one.config.name, one.config.pool_size) for one in (a, b)] == [("a", 3), ("b", 2)]
    assert a.config.service == b.config.service
    assert a.sources["pool_size"] == f"file:{tmp_path / 'pool.yaml'}"


def test_a_file_with_one_pool_stays_as_it_is(loaded):
    [one] = loaded({"name": "mine", "pool_size": 3})
    assert (one.config.name, one.config.pool_size) == ("mine", 3)


def test_what_the_command_line_says_holds_for_all_but_not_a_name(loaded):
    found = loaded({"pools": {"a": {}, "b": {}}}, cli={"slots_per_worker": 2, "name": "x"})
    assert [(one.config.name, one.config.slots_per_worker) for one in found] == [("a", 2), ("b", 2)]


def test_one_of_several_is_asked_for_by_name_and_by_default_it_is_the_first(loaded, tmp_path):
    loaded({"pools": {"a": {}, "b": {}}})
    file = tmp_path / "pool.yaml"
    assert load_config(file=file, environ={}).config.name == "a"
    assert load_config(file=file, environ={}, pool="b").config.name == "b"
    with pytest.raises(ConfigError, match="there is: a, b"):
        load_config(file=file, environ={}, pool="c")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"pools": []}, "pools: must be a mapping"),
        ({"pools": {}}, "pools: must be a mapping"),
        ({"pools": {"a": 3}}, "pools.a: must be a mapping"),
        ({"name": "x", "pools": {"a": {}}}, "name: pools have their names in `pools`"),
        ({"pools": {"a": {"service": {}}}}, "pools.a.service: is for the service"),
        ({"pools": {"a": {"state_dir": "/tmp"}}}, "pools.a.state_dir: is for the service"),
        ({"pools": {"a b": {}}}, "name='a b'"),
    ],
)
def test_what_cannot_be_meant_is_refused(loaded, document, said):
    with pytest.raises(ConfigError, match=said):
        loaded(document)
