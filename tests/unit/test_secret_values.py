"""Secrets from files and variables: read as they are meant, refused by name, and never shown."""

from __future__ import annotations

import os

import pytest

from dspool import tokens
from dspool.cli import service
from dspool.cli.env_file import take_variables
from dspool.cli.run_file import ServiceRun
from dspool.cli.service import pool_of
from dspool.config import LMProfile, PoolConfig, load_config, secret_values
from dspool.config.secret_values import read_secret, secret_of
from dspool.errors import ConfigError, ModelAuthFailed
from dspool.programs.models.lm import LMs

KEY = "sk-Zanzibar4471"
BAD = [
    "",
    f"{KEY} ",
    f" {KEY}",
    f"{KEY}\n\n",
    f"{KEY}\t",
    f"sk\x00{KEY}",
    f"{KEY}\u00a0",
    f"{KEY}\nsecond line",
    f"sk\u2013{KEY}",
    f"{KEY}ü",
]


def test_the_password_of_a_database_is_in_no_header():
    url = "postgresql://dspool:pässword@db/dspool"
    assert load_config(environ={"DSPOOL_STORE_URL": url}).config.store_url == url


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_may_end_its_line_as_editors_do(tmp_path, end):
    file = tmp_path / "key"
    file.write_bytes(f"{KEY}{end}".encode())
    assert secret_of({"THE_KEY_FILE": str(file)}, "THE_KEY") == KEY
    assert LMProfile(model="openai/x", api_key_file=file).api_key({}) == KEY


@pytest.mark.parametrize("bad", BAD)
def test_what_no_header_takes_is_refused_by_the_name_of_what_holds_it(tmp_path, bad):
    file = tmp_path / "key"
    file.write_text(bad)
    profiles = {
        str(file): LMProfile(model="openai/x", api_key_file=file),
        "THE_KEY": LMProfile(model="openai/x", api_key_env="THE_KEY"),
        "OTHER_FILE": LMProfile(model="openai/x", api_key_env="OTHER"),
    }
    for named, profile in profiles.items():
        with pytest.raises(ConfigError) as refused:
            profile.api_key({"THE_KEY": bad, "OTHER_FILE": str(file)})
        assert named in refused.value.message
        assert "Zanzibar" not in repr(refused.value.details) + refused.value.message


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "long", "not text", "unreadable"])
def test_a_file_that_is_no_secret_is_refused_and_holds_nobody_up(tmp_path, kind):
    file = tmp_path / "key"
    if kind == "directory":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "long":
        file.write_bytes(b"k" * (secret_values.LONGEST + 1))
    elif kind == "not text":
        file.write_bytes(b"\xff\xfe")
    elif kind == "unreadable":
        file.symlink_to("key")
    with pytest.raises(ConfigError, match="api_key_file"):
        read_secret(file, "api_key_file")


def test_a_secret_that_is_given_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="both set"):
        secret_of({"THE_KEY": KEY, "THE_KEY_FILE": str(tmp_path)}, "THE_KEY")
    with pytest.raises(ConfigError, match="instead of api_key_env"):
        LMProfile(model="openai/x", api_key_env="THE_KEY", api_key_file=tmp_path / "key")
    with pytest.raises(ConfigError, match="absolute"):
        LMProfile(model="openai/x", api_key_file="key")


def test_a_model_gets_the_key_in_its_file(tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    profiles = PoolConfig(
        lm_profiles={"m": {"model": "openai/gpt-4o-mini", "api_key_file": str(file)}}
    ).lm_profiles
    assert LMs(profiles, None, environ={}).get("m").kwargs["api_key"] == KEY
    file.unlink()
    with pytest.raises(ModelAuthFailed, match="cannot be read"):
        LMs(profiles, None, environ={}).get("m")


def test_the_database_is_named_by_a_file_and_its_password_is_shown_nowhere(tmp_path):
    file = tmp_path / "store_url"
    file.write_text(f"postgresql://dspool:{KEY}@postgres/dspool\n")
    loaded = load_config(environ={"DSPOOL_STORE_URL_FILE": str(file)})
    assert loaded.config.store_url == f"postgresql://dspool:{KEY}@postgres/dspool"
    (row,) = (row for row in loaded.rows() if row.key == "store_url")
    assert (row.value, row.source) == (
        "postgresql://dspool:***@postgres/dspool",
        "env:DSPOOL_STORE_URL_FILE",
    )


def test_clients_and_the_service_take_tokens_from_files(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(f"{KEY}\n")
    monkeypatch.delenv("DSPOOL_TOKEN", raising=False)
    monkeypatch.setenv("DSPOOL_TOKEN_FILE", str(file))
    run = ServiceRun(pid=1, pid_started=0, pool="p", url="http://127.0.0.1:1")
    monkeypatch.setattr(service, "BlockingRemotePool", dict)
    assert pool_of(run)["token"] == KEY
    file.write_text(f"{KEY} \n")
    with pytest.raises(ConfigError, match="DSPOOL_TOKEN_FILE"):
        pool_of(run)
    text, _ = tokens.issue(tmp_path / "tokens.yaml", "ada", "caller")
    given = tokens.from_environment({"DSPOOL_TOKENS_FILE": str(tmp_path / "tokens.yaml")})
    assert tokens.TokenSource(None, given).current().recognise(text.encode(), now=0.0) is not None


def test_a_secret_that_an_engine_mounted_counts_with_the_mode_that_it_has(tmp_path, monkeypatch):
    file = tmp_path / "dspool_tokens"
    tokens.issue(file, "ada", "caller")
    file.chmod(0o444)
    with pytest.raises(ConfigError, match="opened by others"):
        tokens.read(file)
    monkeypatch.setattr(secret_values, "MOUNTED", (tmp_path,))
    assert [token.name for token in tokens.read(file)] == ["ada"]
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="opened by others"):
        tokens.read(file)


def test_a_file_of_variables_adds_what_is_not_set(tmp_path):
    file = tmp_path / "mÿ .env"
    file.write_text("# comment\nexport ONE='1 2'\nTWO=\"zwei\"\nSET=other\nEMPTY=\nAS_IS=${ONE}\n")
    environ = {"SET": "before"}
    assert take_variables(file, environ) == ["AS_IS", "EMPTY", "ONE", "TWO"]
    assert environ == {"SET": "before", "ONE": "1 2", "TWO": "zwei", "EMPTY": "", "AS_IS": "${ONE}"}


@pytest.mark.parametrize(
    "line", ["'unbalanced", "NAME", f"A='{KEY}", f"A={KEY}\0", f"'A={KEY}'=1", f"A={KEY * 20_000}"]
)
def test_a_line_that_is_none_is_refused_by_its_number(tmp_path, line):
    file = tmp_path / ".env"
    file.write_text(f"ONE=1\n{line}\n")
    environ: dict[str, str] = {}
    with pytest.raises(ConfigError, match="line 2") as refused:
        take_variables(file, environ)
    assert environ == {}
    assert KEY not in refused.value.message
    with pytest.raises(ConfigError, match="cannot read"):
        take_variables(tmp_path, environ)
