"""A secret in the configuration is repeated neither where it is refused nor where it is shown."""

from __future__ import annotations

import pytest

from dspool.config import load_config
from dspool.errors import ConfigError
from tests.unit.refused_config import CANARY, refused


@pytest.mark.parametrize(
    "keys",
    [
        {"lm_profiles": {"a": {"model": "m", "api_key": CANARY}}},
        {"lm_profiles": {"a": {"model": "m", "api_key_env": f"sk-{CANARY}"}}},
        {"lm_profiles": {"a": {"model": "m", "extra": {"api_key": CANARY}}}},
        {"lm_profiles": {"a": {"model": "m", "extra": {"Authorization": CANARY}}}},
        {"lm_profiles": {"a": {"model": "m", "endpoint": f"http://user:{CANARY}@host/v1"}}},
        {"store_url": f"mysql://user:{CANARY}@host/db"},
    ],
)
def test_a_secret_in_the_configuration_is_refused_and_not_repeated(keys):
    error = refused(**keys)
    assert CANARY not in error.message
    assert CANARY not in repr(error.details)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_a_secret_in_the_file_or_environment_is_not_repeated(tmp_path):
    file = tmp_path / "pool.yaml"
    file.write_text(f"lm_profiles:\n  a: {{model: m, api_key: {CANARY}\n")
    for sources in (
        {"file": file, "environ": {}},
        {"environ": {"DSPOOL_LM_PROFILES": f'{{"a": {CANARY}'}},
        {"environ": {"DSPOOL_LM_PROFILES__A__API_KEY": CANARY}},
        {"environ": {"DSPOOL_API_KEY": CANARY}},
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(**sources)
        assert CANARY not in caught.value.message
        assert CANARY not in repr(caught.value.details)


def test_of_a_mapping_in_the_wrong_place_only_the_keys_are_repeated():
    error = refused(name={"secret": CANARY}, default_lm=[{"key": CANARY}])
    assert CANARY not in repr(error.to_wire())
    assert "name='mapping with secret'" in error.message


def test_a_database_url_without_a_password_is_printed_as_it_is():
    (row,) = [
        row
        for row in load_config(code={"store_url": "sqlite:////tmp/x.db"}, environ={}).rows()
        if row.key == "store_url"
    ]
    assert row.value == "sqlite:////tmp/x.db"


def test_the_password_of_a_database_is_used_but_never_printed():
    loaded = load_config(code={"store_url": "postgresql://me:pa%20ss@db:5432/x"}, environ={})
    assert loaded.config.store_url == "postgresql://me:pa%20ss@db:5432/x"
    (row,) = [row for row in loaded.rows() if row.key == "store_url"]
    assert row.value == "postgresql://me:***@db:5432/x"
