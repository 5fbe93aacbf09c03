"""Configuration that does not fit is refused with its key, its value and the rule, never repaired."""

from __future__ import annotations

import json
import pickle
import pwd

import pytest

from dspool.config import PoolConfig, RetryConfig, load_config
from dspool.errors import ConfigError, from_wire
from tests.unit.refused_config import CANARY, refused


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
