"""Which source of the configuration wins, which variables and files are refused or ignored, and what is said of it."""

from __future__ import annotations

import json

import pytest

from dspool.config import LMProfile, PoolConfig, ServiceConfig, WarmupConfig, links, load_config
from dspool.errors import ConfigError
from tests.unit.refused_config import refused


def test_each_source_wins_over_the_one_below_it(tmp_path):
    file = tmp_path / "pool.yaml"
    file.write_text("pool_size: 3\nmax_queue: 30\nslots_per_worker: 3\nspares: 3\n")
    loaded = load_config(
        code={"pool_size": 6},
        cli={"pool_size": 5, "max_queue": 50, "spares": None},
        file=file,
        environ={"DSPOOL_POOL_SIZE": "4", "DSPOOL_MAX_QUEUE": "40", "DSPOOL_SLOTS_PER_WORKER": "4"},
    )
    config, sources = loaded
    keys = ("pool_size", "max_queue", "slots_per_worker", "spares", "strategy")
    assert [getattr(config, key) for key in keys] == [6, 50, 4, 3, "least_loaded"]
    assert [sources[key] for key in keys] == [
        "code",
        "cli",
        "env:DSPOOL_SLOTS_PER_WORKER",
        f"file:{file}",
        "default",
    ]


def test_groups_are_merged_key_by_key_and_each_key_knows_its_source(tmp_path):
    file = tmp_path / "pool.yaml"
    file.write_text("warmup: {strategy: staged, worker_deadline_s: 9}\nlm_profiles: {fast: {model: m}}\n")
    config, sources = load_config(
        code={"service": ServiceConfig(port=1)},
        cli={"warmup.worker_deadline_s": 8, "service.host": "h", "service.port": 2},
        file=file,
        environ={
            "DSPOOL_WARMUP__MIN_READY": "2",
            "DSPOOL_LM_PROFILES__FAST__MAX_TOKENS": "7",
            "DSPOOL_RETRY": '{"attempts": 5}',
            "dspool_default_lm": "fast",
        },
    )
    assert config.warmup == WarmupConfig(strategy="staged", worker_deadline_s=8, min_ready=2)
    assert config.lm_profiles["fast"] == LMProfile(model="m", max_tokens=7)
    assert (config.service.host, config.service.port, config.retry.attempts) == ("h", 1, 5)
    expected = {
        "warmup.strategy": f"file:{file}",
        "warmup.worker_deadline_s": "cli",
        "warmup.min_ready": "env:DSPOOL_WARMUP__MIN_READY",
        "warmup.steps": "default",
        "lm_profiles.fast.model": f"file:{file}",
        "lm_profiles.fast.max_tokens": "env:DSPOOL_LM_PROFILES__FAST__MAX_TOKENS",
        "service.port": "code",
        "service.host": "cli",
        "retry.attempts": "env:DSPOOL_RETRY",
        "retry.jitter": "default",
        "default_lm": "env:dspool_default_lm",
    }
    assert {key: sources[key] for key in expected} == expected


def test_profiles_given_as_objects_in_code_merge_with_other_sources():
    config, sources = load_config(
        code={"lm_profiles": {"fast": LMProfile(model="m")}},
        environ={"DSPOOL_LM_PROFILES__FAST__MAX_TOKENS": "7"},
    )
    assert config.lm_profiles["fast"] == LMProfile(model="m", max_tokens=7)
    assert sources["lm_profiles.fast.max_tokens"] == "env:DSPOOL_LM_PROFILES__FAST__MAX_TOKENS"


def test_every_key_has_a_row_with_a_source():
    loaded = load_config(environ={})
    rows = loaded.rows()
    assert {row.key for row in rows} == set(loaded.sources)
    assert {row.source for row in rows} == {"default"}
    assert {row.key.split(".")[0] for row in rows} == set(PoolConfig.model_fields)
    json.dumps(rows)


def test_a_refusal_says_which_source_it_came_from(tmp_path):
    with pytest.raises(ConfigError, match=r"pool_size=99 \(from env:DSPOOL_POOL_SIZE\)"):
        load_config(environ={"DSPOOL_POOL_SIZE": "99"})
    file = tmp_path / "pool.yaml"
    file.write_text("warmup: {steps: [{step: probe, program: nowhere}]}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file=file, environ={})
    assert caught.value.details["source"] == f"file:{file}"


def test_a_default_that_does_not_fit_what_was_given_is_called_the_default():
    with pytest.raises(ConfigError, match=r"checkout_timeout_s=10\.0 \(the default\)"):
        load_config(code={"operation_timeout_s": 5}, environ={})


def test_a_missing_key_is_named_without_a_value():
    with pytest.raises(ConfigError) as caught:
        load_config(code={"lm_profiles": {"fast": {"max_tokens": 1}}}, environ={})
    assert caught.value.message == "lm_profiles.fast.model: Field required"


@pytest.mark.parametrize("name", ["DSPOOL_POOLSIZE", "DSPOOL_WARMUP_STRATEGY", "DSPOOL_", "dspool_pool"])
def test_an_unknown_variable_is_refused(name, monkeypatch):
    with pytest.raises(ConfigError) as caught:
        load_config(environ={name: "1", "PATH": "/bin"})
    assert caught.value.details["key"] == name
    monkeypatch.setenv(name, "1")
    assert refused().details["key"] == name


KUBERNETES = {
    "DSPOOL_PORT": "tcp://10.96.3.4:8000",
    "DSPOOL_SERVICE_HOST": "10.96.3.4",
    "DSPOOL_SERVICE_PORT": "8000",
    "DSPOOL_SERVICE_PORT_HTTP_API": "8000",
    "DSPOOL_PORT_8000_TCP": "tcp://10.96.3.4:8000",
    "DSPOOL_PORT_8000_TCP_PROTO": "tcp",
    "DSPOOL_PORT_8000_TCP_PORT": "8000",
    "DSPOOL_PORT_8000_TCP_ADDR": "10.96.3.4",
}


@pytest.mark.parametrize(
    "service", ["DSPOOL", "DSPOOL_POOL_SIZE", "DSPOOL_INGRESS", "DSPOOL_SERVICE", "DSPOOL__X"]
)
def test_variables_that_kubernetes_sets_for_a_service_are_ignored_and_said(service, caplog):
    variables = {name.replace("DSPOOL", service, 1): value for name, value in KUBERNETES.items()}
    links.say_ignored.cache_clear()

    config = load_config(environ={**variables, "DSPOOL_SERVICE__PORT": "8123"}).config
    load_config(environ=variables)

    assert config.service.port == 8123
    said = [one.message for one in caplog.records if "ignored" in one.message]
    assert len(said) == 1
    assert all(name in said[0] for name in variables)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DSPOOL_DB_PORT_5432_UDP", "udp://[fd00::4]:5432"),
        ("DSPOOL_DB_SERVICE_HOST", "fd00::4"),
        ("DSPOOL_DB_PORT_5432_SCTP_PROTO", "sctp"),
        ("DSPOOL_DB_NAME", "/web/dspool-db"),
        ("DSPOOL_NAME", "/web/dspool"),
        ("DSPOOL_PORT_8000_TCP_START", "tcp://172.17.0.5:8000"),
        ("DSPOOL_PORT_8000_TCP_PORT_END", "8010"),
        ("DSPOOL_ENV_PYTHON_VERSION", "3.12.1"),
        ("DSPOOL_API_ENV_LANG", "C.UTF-8"),
    ],
)
def test_other_service_links_are_ignored_too(name, value):
    assert load_config(environ={name: value}).config.pool_size == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DSPOOL_PORT", "9000"),
        ("DSPOOL_SERVICE_HOST", "everywhere"),
        ("DSPOOL_SERVICE_PORT", "tcp"),
        ("DSPOOL_PORTS", "tcp://10.96.3.4:8000"),
        ("DSPOOL_NAME", "web/dspool"),
        ("DSPOOL_PORT_8000_TCP_SIZE", "8000"),
    ],
)
def test_a_misspelt_variable_that_is_no_service_link_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        load_config(environ={name: value})


def test_an_argument_of_a_program_is_no_service_link():
    told = {"DSPOOL_PROGRAMS__A__IMPORT_PATH": "shop:A", "DSPOOL_ALLOWED_IMPORTS": '["shop"]'}
    config = load_config(environ={**told, "DSPOOL_PROGRAMS__A__KWARGS__MODEL_NAME": "/models/x"}).config
    assert config.programs["a"].kwargs == {"model_name": "/models/x"}


def test_an_unknown_key_within_a_group_is_refused_from_the_environment_too():
    with pytest.raises(ConfigError, match=r"warmup\.stratgy \(from env:DSPOOL_WARMUP__STRATGY\)"):
        load_config(environ={"DSPOOL_WARMUP__STRATGY": "staged"})


def test_a_variable_that_is_not_json_where_json_is_due_is_refused():
    with pytest.raises(ConfigError, match=r"DSPOOL_ALLOWED_IMPORTS is no JSON"):
        load_config(environ={"DSPOOL_ALLOWED_IMPORTS": "a,b"})


def test_it_is_refused_as_well_where_code_builds_the_configuration(monkeypatch):
    monkeypatch.setenv("DSPOOL_ALLOWED_IMPORTS", "a,b")
    assert "JSON" in refused().message


def test_an_empty_variable_is_a_value_and_refused_where_it_does_not_fit():
    with pytest.raises(ConfigError, match="pool_size=''"):
        load_config(environ={"DSPOOL_POOL_SIZE": ""})


def test_a_config_in_code_reads_the_environment_below_its_arguments(monkeypatch):
    monkeypatch.setenv("DSPOOL_POOL_SIZE", "3")
    monkeypatch.setenv("DSPOOL_MAX_QUEUE", "5")
    config = PoolConfig(pool_size=4)
    assert (config.pool_size, config.max_queue) == (4, 5)


def test_a_given_environment_replaces_that_of_the_process(monkeypatch):
    monkeypatch.setenv("DSPOOL_MAX_QUEUE", "5")
    assert load_config(environ={}).config.max_queue == 1000
    assert load_config().config.max_queue == 5


def test_the_file_may_be_named_by_a_variable(tmp_path):
    (tmp_path / "pool.yaml").write_text("name: from-file\n")
    loaded = load_config(environ={"DSPOOL_CONFIG": str(tmp_path / "pool.yaml")})
    assert loaded.config.name == "from-file"


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "pool.yaml").write_text("# nothing yet\n")
    assert load_config(file=tmp_path / "pool.yaml", environ={}).config == PoolConfig.default()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pool_size: 2\npool_size: 3\n", "line 2.*'pool_size' stands twice"),
        ("- pool_size\n", "mapping"),
        ("1: 2\n", "line 1.*no text"),
        ("pool_size: [\n", "line 2"),
        ("pool_size: !!python/name:os.system\n", "line 1"),
        ("? [a]\n: 1\n", "line 1"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path, text, says):
    file = tmp_path / "pool.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(file=file, environ={})
    assert str(file) in caught.value.message


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\n")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(ConfigError, match="cannot read"):
            load_config(file=path, environ={})
