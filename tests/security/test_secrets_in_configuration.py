"""A secret that stands in the configuration is used, and shown by nothing: output, answer, repr or refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli.doctor import service as doctor
from dspool.config import LMProfile, PoolConfig, load_config
from dspool.config.base import without_secrets
from dspool.errors import ConfigError, PoolError
from dspool.store.schema import parse_url
from tests.unit.http_doubles import FakePool, client_of

CANARY = "canary-4711"
EXTRA: dict[str, Any] = {
    "extra_headers": {"X-Api-Secret": CANARY, "deep": [{"deeper": {"still": CANARY}}]},
    "fallbacks": [f"https://user:{CANARY}@host/v1?key={CANARY}"],
    "num_ctx": 4096,
    "proxy": f"http://user:{CANARY}@proxy",
}
KEYS: dict[str, Any] = {
    "lm_profiles": {"a": {"model": "m", "extra": EXTRA}},
    "store_url": f"postgresql://me:{CANARY}@db/x?password={CANARY}&sslpassword={CANARY}",
    "programs": {"p": {"import_path": "shop:make", "kwargs": {"token": CANARY, "more": [CANARY]}}},
    "allowed_imports": ["shop"],
}


def test_no_output_of_a_configuration_shows_a_secret(tmp_path):
    loaded = load_config(code=KEYS, environ={})
    profile = loaded.config.lm_profiles["a"]
    assert profile.extra == EXTRA
    outputs = {
        "rows": repr(loaded.rows()),
        "JSON": loaded.config.model_dump_json(),
        "repr": repr(loaded.config),
        "str": str(loaded.config),
        "loaded": repr(loaded),
        "profile": repr(profile),
    }
    file = tmp_path / "pool.yaml"
    file.write_text(yaml.safe_dump(KEYS))
    for flags in ([], ["--json"]):
        answer = CliRunner().invoke(app, ["config", "--config", str(file), *flags])
        assert answer.exit_code == 0, answer.output
        outputs[f"dspool config {flags}"] = answer.output
    shown = [name for name, text in outputs.items() if CANARY in text]
    assert not shown
    # What is there still shows, by its name.
    assert "X-Api-Secret" in outputs["rows"]
    assert json.loads(outputs["JSON"])["lm_profiles"]["a"]["extra"]["num_ctx"] == "***"


async def test_the_service_shows_a_reader_no_secret():
    pool = FakePool()
    pool.config = load_config(code=KEYS, environ={}).config
    async with client_of(pool) as http:
        answer = await http.get("/v1/pools/default/config")
    assert answer.status_code == 200
    assert CANARY not in answer.text
    assert answer.json()["config"]["programs"]["p"]["kwargs"] == {"token": "***", "more": ["***"]}


@pytest.mark.parametrize(
    "keys",
    [
        {"lm_profiles": {"a": {"model": "m", "extra": CANARY}}},
        {"lm_profiles": {"a": {"model": "m", "extra": [CANARY]}}},
        {"lm_profiles": {"a": {"model": "m", "extra": {"headers": {"X": CANARY}}}}},
        {"lm_profiles": {"a": {"model": "m", "endpoint": f"https://host/v1?key={CANARY}"}}},
        {"lm_profiles": {"a": {"model": "m", "endpoint": f"https://host/v1#{CANARY}"}}},
        {"lm_profiles": {"a": {"model": "m", "endpoint": f"htps://u:{CANARY}@host"}}},
        {"lm_profiles": {"a": {"model": "m", "endpoint": f"host/v1?key={CANARY}"}}},
        {"telemetry": {"otlp_endpoint": f"https://u:{CANARY}@collector"}},
        {"telemetry": {"otlp_endpoint": f"https://collector?api-key={CANARY}"}},
        {"store_url": f"mysql://me:{CANARY}@db/x"},
        {"store_url": [f"postgresql://me:{CANARY}@db/x"]},
        {"programs": {"p": {"import_path": "shop:make", "kwargs": CANARY}}},
        {"programs": {"p": {"spec": {"signature": "a -> b"}, "kwargs": {"token": CANARY}}}},
    ],
)
def test_no_refusal_of_a_configuration_repeats_a_secret(keys: dict[str, Any]):
    with pytest.raises(ConfigError) as refused:
        load_config(code={"allowed_imports": ["shop"], **keys}, environ={})
    told = [refused.value.message, repr(refused.value.details), repr(refused.value.__cause__)]
    assert CANARY not in "".join(told)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        (f"postgresql://me:{CANARY}@host/db", "postgresql://me:***@host/db"),
        (f"postgresql://me:{CANARY}/@:{CANARY}@host/db", "postgresql://me:***@host/db"),
        (f"postgresql://host/db?user=me&password={CANARY}", "postgresql://host/db?user=***&password=***"),
        (f"postgresql://host/db?{CANARY[:6]}", "postgresql://host/db?canary=***"),
    ],
)
def test_a_url_is_shown_without_what_opens_it(url: str, shown: str):
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{CANARY}@host:{CANARY}/db",
        f"sqlite://me:{CANARY}@/:memory:?x={CANARY}",
        f"oracle://me:{CANARY}@host/db?password={CANARY}",
    ],
)
def test_no_refusal_of_the_store_repeats_a_secret(url: str):
    with pytest.raises(PoolError) as refused:
        parse_url(url)
    assert CANARY not in refused.value.message + repr(refused.value.details) + repr(refused.value.__cause__)


def test_the_doctor_shows_no_secret():
    config = PoolConfig(store_url=f"postgresql://me:{CANARY}@127.0.0.1:1/x?application_name={CANARY}")
    assert CANARY not in repr(doctor.store(config))


def test_what_is_given_in_code_still_reaches_the_model():
    assert LMProfile(model="m", extra=EXTRA).extra["extra_headers"]["X-Api-Secret"] == CANARY
