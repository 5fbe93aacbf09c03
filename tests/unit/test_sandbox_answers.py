"""What is made of a sandbox's words: they come from the code in it and are believed nothing."""

from __future__ import annotations

import asyncio
import json

import pytest

from dspool.config import PoolConfig
from dspool.errors import InvalidRequest, NotAllowed, PoolError, ProgramError, SandboxUnavailable
from dspool.messages import Change, ExecuteSandboxed
from dspool.programs.sessions import sandbox
from dspool.programs.sessions.host import Session, SessionHost
from dspool.programs.sessions.sandbox import deno, inside


@pytest.fixture
def host():
    return SessionHost(PoolConfig(service={"execute_code": True}))


def answer(host, said):
    session = Session(host, "s")
    session.variables["old"] = 1
    return sandbox._answer(said, session), session


def test_variables_that_changed_are_stored_and_those_that_are_gone_deleted(host):
    found, session = answer(host, {"stdout": "hi\n", "result": 5, "variables": {"new": [1]}})
    assert found.value == {"stdout": "hi\n", "result": 5}
    assert found.changes == (Change("variable", "old"), Change("variable", "new", {"value": [1]}))
    assert session.variables == {"new": [1]}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"variables": []},
        {"raised": "a secret sentence", "line": "7"},
        {"raised": ["x"] * 1000},
        {"variables": {"*": 1}},
        {"variables": {"a\nb": 1}},
        {"variables": {"": 1}},
        {"variables": dict.fromkeys(map(str, range(1001)))},
        {"refused": "everything"},
    ],
)
def test_nonsense_from_the_sandbox_is_one_of_our_errors_and_changes_nothing(host, said):
    session = Session(host, "s")
    session.variables["old"] = 1
    with pytest.raises((ProgramError, InvalidRequest)) as error:
        sandbox._answer(said, session)
    assert "secret sentence" not in str(error.value.to_wire())
    assert len(str(error.value.to_wire())) < 400
    assert session.variables == {"old": 1}


def run(source, variables=None):
    return json.loads(asyncio.run(inside.run(source, variables or {}, 100)))


def test_inside_the_last_value_and_what_was_printed_are_told():
    said = run("print('hi')\nvariables['x'] = 1\n[1, 2]", {"y": 2})
    assert said == {"stdout": "hi\n", "result": [1, 2], "variables": {"x": 1, "y": 2}}
    assert run("x = 5")["result"] is None
    assert run("")["result"] is None
    assert run("import asyncio\nawait asyncio.sleep(0, 7)")["result"] == 7
    assert run("{1, 2}")["result"] == "{1, 2}"
    assert len(run("print('x' * 1000)")["stdout"]) == 100


def test_inside_what_fails_is_told_by_kind_and_line():
    assert run("x = 1\ny = x / 0") == {"raised": "ZeroDivisionError", "line": 2}
    assert run("def f():\n    raise SystemExit\nf()") == {"raised": "SystemExit", "line": 2}
    assert run("x =") == {"refused": 1}
    assert run("variables['f'] = print")["raised"] == "TypeError"


def test_without_deno_it_says_what_is_missing(host, monkeypatch):
    monkeypatch.setattr(deno, "find", lambda: None)
    with pytest.raises(SandboxUnavailable, match="pip install deno") as error:
        host.run_thread(ExecuteSandboxed("1"), Session(host, "s"))
    assert isinstance(error.value, PoolError)


def test_what_is_no_deno_is_refused(host, monkeypatch):
    monkeypatch.setattr(deno, "find", lambda: "/bin/true")
    with pytest.raises(SandboxUnavailable, match="Deno 2"):
        host.run_thread(ExecuteSandboxed("1"), Session(host, "s"))


def test_it_needs_the_configuration_and_a_session(host):
    closed = SessionHost(PoolConfig())
    with pytest.raises(NotAllowed, match=r"service\.execute_code"):
        closed.run_thread(ExecuteSandboxed("1"), Session(closed, "s"))
    with pytest.raises(InvalidRequest, match="session"):
        host.run_thread(ExecuteSandboxed("1"), None)
    assert host.plan(ExecuteSandboxed("1"), None) == "thread"
