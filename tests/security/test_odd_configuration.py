"""Configuration that is odd, broken or meant ill: refused in a sentence, soon, and without a secret."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspool import tokens
from dspool.cli.tokens import app
from dspool.config import load_config
from dspool.config.base import without_secrets
from dspool.config.secret_values import read_secret
from dspool.errors import ConfigError

SECRET = "s3cr@et"


def refusal(tmp_path, text: str = "", **environ: str) -> str:
    file = tmp_path / "pool.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(file=file, environ=environ)
    return refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u@h/d?sslpassword={SECRET}",
        f"postgresql://u:{SECRET}@h/d?user=u",
        f"postgresql://u:x@h/d?user=u&password={SECRET}",
        f"postgresql://h/d#password={SECRET}",
    ],
)
def test_no_part_of_a_database_url_shows_a_secret(url):
    shown = without_secrets(url)
    assert "s3cr" not in shown
    assert "et" not in shown.removeprefix("postgresql://").replace("h/d", "")


@pytest.mark.parametrize("also", ["", ", api_key_env: MODEL_KEY"])
def test_a_key_in_the_place_of_its_file_is_not_shown(tmp_path, also):
    said = refusal(tmp_path, f"lm_profiles: {{a: {{model: openai/x, api_key_file: sk-live-1{also}}}}}")
    assert "api_key_file" in said
    assert "sk-live" not in said


@pytest.mark.parametrize("text", ["dsp_1234_of-ada", "postgresql://u:word@h/d", "a\0b"])
def test_a_secret_in_the_place_of_its_files_name_is_not_shown(text):
    with pytest.raises(ConfigError, match="DSPOOL_TOKEN_FILE") as refused:
        read_secret(Path(text), "DSPOOL_TOKEN_FILE")
    assert text not in refused.value.message
    assert "word" not in refused.value.message


@pytest.mark.parametrize("name", ["on", "no", "~", "010", "1.5", "2020-01-01"])
def test_a_name_that_is_no_text_in_yaml_is_refused(tmp_path, name):
    assert "put it in quotes" in refusal(tmp_path, f"pools: {{{name}: {{}}}}\n")
    load_config(
        file=file_of(tmp_path, f"pools: {{'{name.replace('~', 'tilde').replace('.', '-')}': {{}}}}"),
        environ={},
    )


def file_of(tmp_path, text: str):
    file = tmp_path / "other.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    "variable", ["DSPOOL_POOL_SIZE__X", "DSPOOL_STATE_DIR__X", "DSPOOL_ALLOWED_IMPORTS__X"]
)
def test_a_part_of_a_setting_that_has_none_is_refused(tmp_path, variable):
    assert variable in refusal(tmp_path, **{variable: "3"})
    loaded = load_config(
        environ={"DSPOOL_SERVICE__PORT": "1", "DSPOOL_PROGRAMS__A__SPEC": '{"signature": "q -> a"}'}
    )
    assert loaded.config.service.port == 1
    assert list(loaded.config.programs) == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        'state_dir: ""',
        'service: {tokens_file: ""}',
        'service: {tls_cert: "", tls_key: ""}',
        'state_dir: "/a\\0b"',
    ],
)
def test_an_empty_path_is_not_the_working_directory(tmp_path, text):
    assert "must name a path" in refusal(tmp_path, text)
    assert "must name a path" in refusal(tmp_path, DSPOOL_STATE_DIR="")


def test_the_home_directory_is_meant_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(file=file_of(tmp_path, "service: {tokens_file: ~/t.yaml}"), environ={}).config
    assert config.service.tokens_file == tmp_path / "t.yaml"


@pytest.mark.parametrize("text", ["num_gpus: yes", "num_cpus: true", "placement: {resources: {a: true}}"])
def test_yes_is_no_number(tmp_path, text):
    assert "True" in refusal(tmp_path, text)


BOMB = "allowed_imports:\n- &b0 [" + ", ".join("l" * 9) + "]\n"
BOMB += "".join(f"- &b{level} [{', '.join([f'*b{level - 1}'] * 9)}]\n" for level in range(1, 9))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "too much"),
        ("pool_size: &a [*a]", "within itself"),
        ("programs: {x: {spec: &a {x: *a}}}", "within itself"),
        ("name: 2020-13-45", "cannot be read"),
        ("pool_size: " + "9" * 5_000, "cannot be read"),
        ("{a: " * 2_000, "cannot be read|line"),
    ],
)
def test_what_yaml_makes_without_an_end_or_not_at_all_is_refused(tmp_path, text, says):
    assert re.search(says, refusal(tmp_path, text))


def test_a_variable_that_nests_too_deep_is_refused(tmp_path):
    refusal(tmp_path, DSPOOL_PROGRAMS__X__SPEC="[" * 100_000)


@pytest.mark.parametrize(
    "variable",
    [
        "PROGRAMS",
        "ALLOWED_IMPORTS",
        "PRELOAD",
        "SERVICE",
        "WARMUP__STEPS",
        "LM_PROFILES",
        "LM_PROFILES__A__EXTRA",
    ],
)
@pytest.mark.parametrize(("end", "where"), [("", "line 1, column 1"), ("x", "line 2, column 1")])
def test_a_list_or_mapping_that_is_no_json_is_refused_with_its_variable_and_where(
    tmp_path, variable, end, where
):
    name, text = f"DSPOOL_{variable}", f"{SECRET}" if not end else f'["{SECRET}",\n{end}'
    said = refusal(tmp_path, OTHER=text, **{name: text})
    assert f"{name} is no JSON ({where}: " in said
    assert '["a", "b"]' in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("PROGRAMS", f'"{SECRET}"', "programs (from env:DSPOOL_PROGRAMS): must be a mapping, not text"),
        ("PROGRAMS", f'["{SECRET}"]', "programs (from env:DSPOOL_PROGRAMS): must be a mapping, not a list"),
        ("PROGRAMS__A", SECRET, "programs.a (from env:DSPOOL_PROGRAMS__A): must be a mapping, not text"),
        ("LM_PROFILES__A", SECRET, "lm_profiles.a (from env:DSPOOL_LM_PROFILES__A): must be a mapping, not text"),
        ("SERVICE", f'["{SECRET}"]', "service (from env:DSPOOL_SERVICE): must be a mapping, not a list"),
        ("PRELOAD", f'"{SECRET}"', "preload (from env:DSPOOL_PRELOAD): must be a list, not text"),
        ("WARMUP__STEPS", f'["{SECRET}"]', "warmup.steps.0 (from env:DSPOOL_WARMUP__STEPS): must be a mapping, not te"),
        ("WARMUP__STEPS", "5", "warmup.steps=5 (from env:DSPOOL_WARMUP__STEPS): must be a list"),
    ],
)  # fmt: skip
def test_what_stands_where_a_list_or_mapping_belongs_is_refused_and_not_shown(tmp_path, variable, text, says):
    said = refusal(tmp_path, **{f"DSPOOL_{variable}": text})
    assert says in said
    assert SECRET not in said


def test_a_database_file_may_have_a_blank_in_its_path():
    config = load_config(environ={"DSPOOL_STORE_URL": "sqlite:////my dir/a.db"}).config
    assert config.store_url == "sqlite:////my dir/a.db"


def test_a_fifo_in_the_place_of_the_tokens_is_refused(tmp_path):
    file = tmp_path / "tokens.yaml"
    os.mkfifo(file, 0o600)
    with pytest.raises(ConfigError, match="no plain file"):
        tokens.read(file)


@pytest.mark.parametrize("text", ["tokens: [{expires_at: 2020-13-45}]", "[" * 5_000])
def test_tokens_that_cannot_be_read_are_refused_as_such(text):
    with pytest.raises(ConfigError):
        tokens.parse(text, "tokens.yaml")


def test_a_token_that_outlives_the_calendar_is_listed_and_no_other_is_made(tmp_path):
    file = tmp_path / "tokens.yaml"
    tokens.issue(file, "ada", "caller", days=1e12)
    listed = CliRunner().invoke(app, ["list", "--file", str(file)])
    assert listed.exit_code == 0, listed.output
    assert "ada" in listed.output
    for days in ("1e12", "inf", "nan"):
        assert (
            CliRunner().invoke(app, ["new", "--name", "b", "--file", str(file), "--days", days]).exit_code
            == 2
        )
