"""The table of corrections: versions, the switch, and that each piece heeds it."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
from uvicorn import config as uvicorn_config
from uvicorn.server import Server

import dspool.corrections
from dspool.corrections import (
    RELIANCES,
    TABLE,
    VARIABLE,
    active,
    chosen,
    dspy_calls,
    dspy_settings,
    dspy_threads,
    haproxy_script,
    serve_replica,
    serve_requests,
    states,
    uvicorn_connections,
)
from dspool.errors import ConfigError
from dspool.programs.models import lm
from dspool.runtime.forkserver import node_parent, start_method
from dspool_serve.ingress import haproxy

NAMES = {correction.name for correction in TABLE}
INSTALLED = {
    "python": "3.11.7",
    "dspy": "3.4.1",
    "ray": "2.60.0",
    "uvicorn": "0.54.0",
    "httptools": "0.9.0",
}


def on(environ=None, **versions):
    return {
        state.correction.name
        for state in states(environ or {}, (INSTALLED | versions).__getitem__)
        if state.on
    }


@pytest.fixture
def fresh():
    """Nothing is remembered from before, nor afterwards."""
    dspool.corrections._state.cache_clear()
    yield
    dspool.corrections._state.cache_clear()


def test_all_are_on_with_the_versions_that_they_hold_for():
    assert on() == NAMES
    assert len(NAMES) == len(TABLE)


@pytest.mark.parametrize(
    ("package", "version", "left"),
    [
        (
            "dspy",
            "3.5.0",
            {"dspy-attempt-output", "dspy-answer-repair", "dspy-list-items", "dspy-signature-text"},
        ),
        ("uvicorn", "0.55.0", set()),
        ("uvicorn", "0.33.0", set()),
        ("ray", "2.61.0", {"uvicorn-accept", "uvicorn-one-write"}),
    ],
)
def test_a_version_that_a_correction_does_not_know_turns_it_off(package, version, left):
    of_package = {correction.name for correction in TABLE if package in correction.versions}
    assert on(**{package: version}) == (NAMES - of_package) | (left & NAMES)


def test_a_package_that_is_not_installed_turns_off_what_corrects_it():
    def version_of(package):
        raise PackageNotFoundError(package)

    assert not any(state.on for state in states({}, version_of))


def test_a_version_that_turns_a_correction_off_is_warned_of_once(monkeypatch, caplog, fresh):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(
        dspool.corrections.states,
        "__defaults__",
        (
            {},
            lambda package: "99.0",
            TABLE,
        ),
    )
    with caplog.at_level(logging.WARNING, "dspool.corrections"):
        assert not active("uvicorn-accept")
        assert not active("uvicorn-accept")
    (record,) = caplog.records
    assert "uvicorn-accept is off" in record.getMessage()
    assert "99.0 is installed" in record.getMessage()


def test_one_that_is_switched_off_is_not_warned_of(monkeypatch, caplog, fresh):
    monkeypatch.setenv(VARIABLE, "none")
    with caplog.at_level(logging.WARNING, "dspool.corrections"):
        assert not active("uvicorn-accept")
    assert not caplog.records


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_can_be_left_out_and_kept_alone(name):
    assert on({VARIABLE: f"-{name}"}) == NAMES - {name}
    assert on({VARIABLE: name}) == {name}


def test_all_none_and_several_names():
    assert chosen("all") == chosen("") == NAMES
    assert chosen("none") == frozenset()
    assert chosen("haproxy-leash, uvicorn-accept") == {"haproxy-leash", "uvicorn-accept"}
    assert chosen("-haproxy-leash,-uvicorn-accept") == NAMES - {"haproxy-leash", "uvicorn-accept"}


@pytest.mark.parametrize("value", ["uvicorn", "-uvicorn-accept,haproxy-leash", "all,none", "-", "none,"])
def test_a_value_that_cannot_be_read_is_refused_with_the_names_that_there_are(value):
    with pytest.raises(ConfigError, match="uvicorn-one-write"):
        chosen(value)


def test_each_name_is_asked_for_somewhere():
    modules = (
        dspy_calls,
        dspy_settings,
        dspy_threads,
        uvicorn_connections,
        serve_replica,
        serve_requests,
        haproxy_script,
        node_parent,
        lm,
    )
    code = "".join(map(inspect.getsource, modules))
    assert all(f'"{name}"' in code for name in NAMES)


def test_the_other_list_names_versions_and_what_follows():
    assert all(one.versions and one.reason and one.otherwise for one in RELIANCES)


def test_workers_are_not_forked_with_a_ray_that_the_fork_server_does_not_know(monkeypatch, tmp_path):
    from dspool.config import PoolConfig

    monkeypatch.setattr(node_parent, "unknown_version", lambda versions: "ray 9 is installed")
    how = start_method(PoolConfig(state_dir=tmp_path), {}, platform="linux")
    assert how.py_executable is None
    assert "ray 9 is installed" in how.why_not


# --- each piece heeds its switch --------------------------------------------------------------------

UNTOUCHED = """
import asyncio, importlib, sys, threading
from multiprocessing.pool import ThreadPool
from concurrent.futures import ThreadPoolExecutor
import dspool.programs.modules, dspool.programs.models.lm as lm
from dspool.corrections import dspy_calls, dspy_threads

def of(module, name):
    return getattr(importlib.import_module(module), name)

lm.LMs({}, None, concurrency=300)
changed = {
    "dspy-model-table": hasattr(of("dspy.clients.costs", "model_info"), "__wrapped__"),
    "dspy-engine-choice": hasattr(of("dspy.clients.execution", "select_backend"), "__wrapped__"),
    "dspy-proxy-route": hasattr(of("dspy._vendor.lm15.transports._async", "proxy_route_for"), "__wrapped__"),
    "dspy-free-connection": hasattr(
        of("dspy._vendor.lm15.transports._async", "_AsyncConnectionPool").acquire_slot, "__wrapped__"),
    "dspy-transport": of("dspy._vendor.lm15.transports", "StdlibAsyncTransport").__name__ == "LeanTransport",
    "dspy-lean-call": all(hasattr(one, "__wrapped__") for one in (
        of("dspy.clients.engines.lm15_engine", "_Routing").resolve, of("dspy.clients.execution", "timeouts_for"),
        of("dspy._vendor.lm15.providers.openai_chat", "resolve_openai_chat_compat"),
        of("dspy.clients.costs", "re").search))
        and of("dspy.streaming.streaming_listener", "Queue") is dspy_calls.TokenQueue,
    "dspy-connection-limit": hasattr(of("dspy.clients.execution", "RouterConfig"), "func"),
    "dspy-attempt-output": hasattr(importlib.import_module("dspy.predict.refine"), "print"),
    "dspy-program-settings": hasattr(type(of("dspy", "settings")).configure, "__wrapped__"),
    "dspy-settings-context": not hasattr(of("dspy", "context"), "__wrapped__"),
    "dspy-signature-text": hasattr(of("dspy.signatures.signature", "_parse_type_node"), "__wrapped__"),
    "dspy-answer-repair": hasattr(of("json_repair.json_repair", "JSONParser"), "__wrapped__"),
    "dspy-list-items": hasattr(of("dspy.adapters.utils", "_format_blob"), "__wrapped__"),
    "dspy-short-hops": hasattr(asyncio.to_thread, "__wrapped__"),
    "dspy-stream-threads": hasattr(of("dspy.clients.execution", "_attempt"), "_dspool"),
    "dspy-plain-tools": hasattr(of("dspy", "Tool").acall, "_dspool"),
    "thread-context": all(hasattr(one, "_dspool") for one in (
        threading.Thread.start, ThreadPoolExecutor.submit, *(getattr(ThreadPool, name) for name in dspy_threads._SUBMIT)
    )),
}
print(*sorted(name for name, yes in changed.items() if yes))
"""


@pytest.mark.parametrize(
    "choice",
    ["all", "none", "dspy-model-table,dspy-short-hops", "-dspy-connection-limit", "-thread-context"],
)
def test_dspy_is_changed_as_far_as_the_switch_says(choice, monkeypatch):
    monkeypatch.setenv(VARIABLE, choice)
    run = subprocess.run(
        [sys.executable, "-c", UNTOUCHED], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.split() == sorted(
        name for name in chosen(choice) if name.startswith(("dspy-", "thread-"))
    )


def install_with(choice, monkeypatch):
    monkeypatch.setenv(VARIABLE, choice)
    monkeypatch.setitem(uvicorn_config.HTTP_PROTOCOLS, "auto", uvicorn_config.HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(Server, "startup", Server.startup)
    startup = Server.startup
    installed = uvicorn_connections.install()
    return installed, Server.startup is not startup


def test_uvicorn_is_left_alone_without_its_corrections(monkeypatch, fresh):
    protocol = uvicorn_config.HTTP_PROTOCOLS["auto"]
    assert install_with("none", monkeypatch) == (False, False)
    assert uvicorn_config.HTTP_PROTOCOLS["auto"] == protocol


def script_with(choice, tmp_path, monkeypatch, **more):
    monkeypatch.setenv(VARIABLE, choice)
    options = {"metrics_port": 1, "stats_port": 2, "request_s": 30.0, "tls": None} | more
    script = haproxy_script.write(tmp_path, "/bin/haproxy", **options)
    return "" if script is None else script.read_text()


@pytest.mark.parametrize(
    ("choice", "marks"),
    [
        ("none", set()),
        ("haproxy-loopback", {"127.0.0.1:1"}),
        ("haproxy-leash", {"prctl", "haproxy.pids"}),
        ("haproxy-frontend", {"frontend.cfg"}),
        ("all", {"127.0.0.1:1", "prctl", "haproxy.pids", "frontend.cfg"}),
    ],
)
def test_the_script_in_haproxys_place_holds_what_is_on(choice, marks, tmp_path, monkeypatch, fresh):
    script = script_with(choice, tmp_path, monkeypatch)
    assert {m for m in ("127.0.0.1:1", "prctl", "haproxy.pids", "frontend.cfg") if m in script} == marks
    if script:
        subprocess.run(["sh", "-n", str(tmp_path / "haproxy")], check=True)


def test_tls_without_the_correction_that_brings_it_is_refused(tmp_path, monkeypatch, fresh):
    with pytest.raises(ConfigError, match="haproxy-frontend"):
        script_with("none", tmp_path, monkeypatch, tls=(tmp_path, tmp_path))


def test_a_serve_on_anothers_cluster_is_told_the_switch():
    assert haproxy.joined_environment({VARIABLE: "none"})[VARIABLE] == "none"
    with pytest.raises(ConfigError, match="nonsense"):
        haproxy.joined_environment({VARIABLE: "nonsense"})
