"""The configuration: what is refused and how it is said, which source wins, and where a value came from."""

import json
import pickle
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from dspool.config import (
    CustomCode,
    ImportModules,
    LMProfile,
    PoolConfig,
    Probe,
    ProgramConfig,
    RetryConfig,
    ServiceConfig,
    WarmupConfig,
    links,
    load_config,
    reference_table,
)
from dspool.config.environment import OTHER_VARIABLES
from dspool.errors import ConfigError, from_wire

FAST = {"fast": {"model": "openai/some-model"}}
QA = {"qa": {"spec": {"signature": "question -> answer"}}}
CANARY = "canary-7f3a"


def refused(**keys) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        PoolConfig(**keys)
    return caught.value


@pytest.mark.parametrize(
    ("keys", "key", "value"),
    [
        # one key
        ({"pool_size": 0}, "pool_size", 0),
        ({"pool_size": "many"}, "pool_size", "many"),
        ({"pool_size": 2.5}, "pool_size", 2.5),
        ({"pool_size": True}, "pool_size", True),
        ({"session_ttl_s": True}, "session_ttl_s", True),
        ({"operation_timeout_s": 0}, "operation_timeout_s", 0),
        ({"operation_timeout_s": float("inf")}, "operation_timeout_s", "inf"),
        ({"target_utilization": 0.0}, "target_utilization", 0.0),
        ({"target_utilization": 1.0}, "target_utilization", 1.0),
        ({"strategy": "random"}, "strategy", "random"),
        ({"affinity": "loose"}, "affinity", "loose"),
        ({"name": "a b"}, "name", "a b"),
        ({"name": "a/b"}, "name", "a/b"),
        ({"slots_per_worker": 0}, "slots_per_worker", 0),
        ({"max_queue": -1}, "max_queue", -1),
        ({"spares": -1}, "spares", -1),
        ({"stream_window": 0}, "stream_window", 0),
        ({"service": {"port": 70000}}, "service.port", 70000),
        ({"service": {"host": ""}}, "service.host", ""),
        ({"telemetry": {"sampling": 1.5}}, "telemetry.sampling", 1.5),
        ({"telemetry": {"otlp_endpoint": "collector:4318"}}, "telemetry.otlp_endpoint", "collector:4318"),
        ({"retry": {"attempts": 0}}, "retry.attempts", 0),
        ({"retry": {"jitter": -0.1}}, "retry.jitter", -0.1),
        ({"recycle": {"max_memory_mb": 0}}, "recycle.max_memory_mb", 0),
        ({"restart": {"intensity": 0}}, "restart.intensity", 0),
        ({"allowed_imports": ["my-package"]}, "allowed_imports.0", "my-package"),
        # A Cyrillic letter that looks like a Latin one.
        ({"allowed_imports": ["sh\u043ep"]}, "allowed_imports.0", "sh\u043ep"),
        (
            {"allowed_imports": ["a"], "programs": {"p": {"import_path": "a:B\u0430"}}},
            "programs.p.import_path",
            "a:B\u0430",
        ),
        ({"lm_profiles": {"a": {"model": ""}}}, "lm_profiles.a.model", ""),
        ({"lm_profiles": {"a": {"model": "m", "endpoint": "ftp://x"}}}, "lm_profiles.a.endpoint", "ftp://x"),
        ({"lm_profiles": {"a": {"model": "m", "endpoint": "http://"}}}, "lm_profiles.a.endpoint", "http://"),
        (
            {"lm_profiles": {"a": {"model": "m", "endpoint": "http://h:0"}}},
            "lm_profiles.a.endpoint",
            "http://h:0",
        ),
        ({"lm_profiles": {"a": {"model": "m", "engine": "curl"}}}, "lm_profiles.a.engine", "curl"),
        ({"programs": {"p": {"import_path": "pkg.module"}}}, "programs.p.import_path", "pkg.module"),
        ({"warmup": {"steps": [{"step": "import_modules", "modules": []}]}}, "warmup.steps.0.modules", "[]"),
        # keys that must fit together
        ({"pool_size": 9}, "pool_size", 9),
        ({"pool_size": 2, "min_pool_size": 3}, "pool_size", 2),
        ({"max_overflow": 9}, "max_overflow", 9),
        ({"spares": 9}, "spares", 9),
        ({"checkout_timeout_s": 31}, "checkout_timeout_s", 31.0),
        ({"health_check_timeout_s": 6}, "health_check_timeout_s", 6.0),
        ({"max_wait_s": 11}, "max_wait_s", 11.0),
        ({"metrics_flush_interval_s": 2}, "metrics_flush_interval_s", 2.0),
        ({"warmup": {"worker_deadline_s": 61}}, "warmup.worker_deadline_s", 61.0),
        ({"warmup": {"min_ready": 3}}, "warmup.min_ready", 3),
        ({"warmup": {"min_ready": 0}}, "warmup.min_ready", 0),
        (
            {"warmup": {"worker_deadline_s": 5, "steps": [{"step": "load_programs", "timeout_s": 6}]}},
            "warmup.steps.0.timeout_s",
            6.0,
        ),
        ({"retry": {"backoff_s": 2.0}}, "retry.backoff_s", 2.0),
        ({"restart": {"backoff_s": 20.0}}, "restart.backoff_s", 20.0),
        ({"history": {"fine_span_s": 3600.5}}, "history.fine_span_s", 3600.5),
        ({"history": {"coarse_span_s": 86405.0}}, "history.coarse_span_s", 86405.0),
        ({"history": {"coarse_interval_s": 2.5}}, "history.coarse_interval_s", 2.5),
        ({"history": {"fine_span_s": 90000.0}}, "history.fine_span_s", 90000.0),
        (
            {
                "metrics_interval_s": 0.01,
                "metrics_flush_interval_s": 0.01,
                "history": {"fine_interval_s": 0.01},
            },
            "history.fine_span_s",
            3600.0,
        ),
        ({"metrics_interval_s": 2.0}, "history.fine_interval_s", 1.0),
        ({"default_lm": "fast"}, "default_lm", "fast"),
        ({"programs": {"qa": {"spec": {}, "lm": "fast"}}}, "programs.qa.lm", "fast"),
        ({"programs": {"qa": {"spec": {"lm": "fast"}}}}, "programs.qa.spec.lm", "fast"),
        ({"programs": {"qa": {"spec": {"lm": ["fast"]}}}}, "programs.qa.spec.lm", "['fast']"),
        ({"programs": {"qa": {}}}, "programs.qa.import_path", None),
        ({"programs": {"qa": {"spec": {}, "import_path": "a:B"}}}, "programs.qa.import_path", "a:B"),
        ({"programs": {"qa": {"import_path": "a:B"}}}, "programs.qa.import_path", "a:B"),
        (
            {"programs": {"qa": {"import_path": "abc:B"}}, "allowed_imports": ["ab"]},
            "programs.qa.import_path",
            "abc:B",
        ),
        ({"programs": {"qa": {"spec": {}, "kwargs": {"k": 1}}}}, "programs.qa.kwargs", "['k']"),
        (
            {"warmup": {"steps": [{"step": "configure_lm", "profile": "x"}]}},
            "warmup.steps.0.profile",
            "x",
        ),
        ({"warmup": {"steps": [{"step": "probe", "program": "x"}]}}, "warmup.steps.0.program", "x"),
        (
            {"warmup": {"steps": [{"step": "custom_code", "import_path": "os:getcwd"}]}},
            "warmup.steps.0.import_path",
            "os:getcwd",
        ),
        (
            {"lm_profiles": {"a": {"model": "m", "timeout_s": 31}}},
            "lm_profiles.a.timeout_s",
            31.0,
        ),
        # names of programs and profiles
        ({"programs": {"a b": {"spec": {}}}}, "programs.a b.[key]", "a b"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_key_and_the_value(keys, key, value):
    error = refused(**keys)
    assert error.details["key"] == key
    assert error.details.get("value") == value
    assert error.details["rule"]
    assert key in error.message
    assert error.outcome == "client_error"


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"poolsize": 2}, "poolsize"),
        ({"warmup": {"stratgy": "staged"}}, "warmup.stratgy"),
        ({"programs": {"p": {"spec": {}, "module": "Predict"}}}, "programs.p.module"),
        ({"lm_profiles": {"a": {"model": "m", "api_key": CANARY}}}, "lm_profiles.a.api_key"),
        ({"warmup": {"steps": [{"step": "load_programs", "paid": True}]}}, "warmup.steps.0.paid"),
    ],
)
def test_an_unknown_key_is_refused_by_its_dotted_name(keys, key):
    error = refused(**keys)
    assert error.details["key"] == key
    assert "no such key" in error.message


def test_every_refusal_is_reported_not_only_the_first():
    error = refused(pool_size=-1, max_queue=-2, nonsense=1)
    assert [one["key"] for one in error.details["refusals"]] == ["pool_size", "max_queue", "nonsense"]


def test_a_program_may_be_called_like_a_warmup_step():
    error = refused(programs={"probe": {"spec": {}, "idempotent": "perhaps"}})
    assert error.details["key"] == "programs.probe.idempotent"


def test_a_part_built_on_its_own_refuses_with_its_own_keys():
    with pytest.raises(ConfigError) as caught:
        RetryConfig(attempts=0)
    assert caught.value.details["key"] == "attempts"


def test_a_refusal_survives_the_wire_and_pickle():
    error = refused(operation_timeout_s=float("nan"), warmup={"steps": [{"step": "dance"}]})
    assert from_wire(json.loads(json.dumps(error.to_wire(), allow_nan=False))).details == error.details
    assert pickle.loads(pickle.dumps(error)).message == error.message


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


@pytest.fixture
def homeless(monkeypatch):
    """As in a container whose user has neither a HOME nor an entry among the users."""

    def unknown(user):
        raise KeyError(user)

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_without_a_home_a_state_directory_has_to_be_named(homeless, tmp_path):
    for build in (PoolConfig, PoolConfig.default, load_config):
        with pytest.raises(ConfigError, match="home directory") as caught:
            build()
        assert (caught.value.key, caught.value.value) == ("state_dir", "~/.local/state/dspool")
    assert PoolConfig(state_dir=tmp_path).state_dir == tmp_path


@pytest.mark.parametrize(
    "load",
    [
        lambda path: PoolConfig(state_dir=path),
        lambda path: load_config(environ={"DSPOOL_STATE_DIR": path}),
    ],
    ids=["keyword", "variable"],
)
def test_a_state_directory_in_a_home_that_is_not_known_is_refused(load):
    with pytest.raises(ConfigError, match="home directory") as caught:
        load("~no-such-user/state")
    assert (caught.value.key, caught.value.value) == ("state_dir", "~no-such-user/state")


def test_a_file_in_a_home_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="home directory"):
        load_config(environ={"DSPOOL_CONFIG": "~no-such-user/pool.yaml"})


# --- what it is ------------------------------------------------------------------------------------


def test_the_defaults_are_valid_and_frozen():
    config = PoolConfig()
    assert (config.pool_size, config.min_ready, config.programs) == (2, 1, {})
    with pytest.raises(ValueError, match="frozen"):
        config.pool_size = 3


def test_positional_arguments_are_refused():
    with pytest.raises(TypeError):
        WarmupConfig("staged")
    with pytest.raises(TypeError):
        PoolConfig(3)


def test_it_pickles_with_every_kind_of_part():
    config = PoolConfig(
        programs={"qa": ProgramConfig(import_path="pkg.mod:Program", kwargs={"k": [1]}, lm="fast")},
        allowed_imports=("pkg",),
        lm_profiles={"fast": LMProfile(model="m", extra={"seed": 1})},
        warmup=WarmupConfig(
            steps=(ImportModules(modules=("json",)), Probe(program="qa"), CustomCode(import_path="pkg:warm"))
        ),
        state_dir=Path("/tmp/state"),
    )
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert [type(step) for step in copy.warmup.steps] == [ImportModules, Probe, CustomCode]


def test_it_goes_through_json_unchanged():
    config = PoolConfig(
        programs=QA, lm_profiles=FAST, default_lm="fast", warmup={"steps": [{"step": "load_programs"}]}
    )
    assert PoolConfig(**json.loads(config.model_dump_json())) == config


def test_with_nothing_configured_the_pool_answers_questions():
    assert PoolConfig.default().programs["qa"].spec == {
        "signature": "context, question -> answer",
        "module": "Predict",
    }
    assert load_config(environ={}).config == PoolConfig.default()


def test_an_override_is_held_to_the_rules_and_leaves_the_rest(monkeypatch):
    config = PoolConfig(pool_size=4, warmup={"strategy": "staged", "min_ready": 2})
    monkeypatch.setenv("DSPOOL_MAX_QUEUE", "5")
    changed = config.override(warmup={"min_ready": 3}, service=ServiceConfig(port=1))
    assert (changed.warmup.strategy, changed.min_ready, changed.service.port) == ("staged", 3, 1)
    assert changed.max_queue == config.max_queue
    with pytest.raises(ConfigError, match="pool_size=9"):
        config.override(pool_size=9)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("pkg:X", True), ("pkg.sub.mod:X", True), ("pkgs:X", False), ("other.pkg:X", False), ("", False)],
)
def test_an_import_path_is_allowed_below_a_listed_package_only(path, allowed):
    assert PoolConfig(allowed_imports=("pkg",)).allows_import(path) is allowed


def test_a_lazy_pool_may_be_ready_without_a_worker():
    assert PoolConfig(lazy=True, warmup={"min_ready": 0}).min_ready == 0


def test_spans_that_are_multiples_in_decimals_are_accepted():
    PoolConfig(
        metrics_interval_s=0.1,
        metrics_flush_interval_s=0.1,
        history={"fine_interval_s": 0.3, "fine_span_s": 900, "coarse_interval_s": 0.9, "coarse_span_s": 1800},
    )


def test_importing_it_loads_neither_ray_nor_dspy():
    code = "import sys, dspool.config; print(sorted({'ray', 'dspy', 'litellm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- sources ---------------------------------------------------------------------------------------


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
    with pytest.raises(ConfigError, match=r"allowed_imports.*JSON"):
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


# --- documentation ---------------------------------------------------------------------------------


def test_every_key_is_in_the_reference_with_a_meaning_and_its_variable():
    rows = [line.split(" | ") for line in reference_table().splitlines()[2:]]
    names = [row[0].strip("|` ").split("`<br>`") for row in rows]
    assert {key.split(".")[0] for key, _ in names} == set(PoolConfig.model_fields)
    assert all(variable.startswith("DSPOOL_") for _, variable in names)
    for row in rows:
        assert len(row[3].strip("| ")) > 10, f"no meaning: {row[0]}"


def test_the_settings_page_holds_every_key_and_every_variable_that_is_none():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text()
    assert reference_table() in page, "run: make generated"
    for name, meaning in OTHER_VARIABLES.items():
        assert f"| `{name}` | {meaning}. |" in page


def test_a_variable_that_is_no_key_changes_nothing():
    assert load_config(environ={"DSPOOL_TEST_POSTGRES_URL": "x"}).config == PoolConfig.default()
