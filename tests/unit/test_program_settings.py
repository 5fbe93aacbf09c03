"""`dspy.configure` works as in a script, and its settings are those of the program whose code called it."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from dspool.config import PoolConfig
from dspool.messages import Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.sessions.host import SessionHost

ASKED = {"question": "What is big?"}


@pytest.fixture
def host() -> SessionHost:
    return SessionHost(PoolConfig(allowed_imports=("script_like",)))


def deploy(host: SessionHost, path: str, **more: Any) -> None:
    host.deploy(Deployment(path, 1, import_path=f"script_like.{path}", **more))


async def ran(host: SessionHost, path: str, question: str = "What is big?") -> dict[str, Any]:
    command = ExecuteProgram(path, {"question": question})
    plan = host.plan(command, None)
    if plan in ("async", "apart"):
        return (await host.run_async(command, None)).value["outputs"]
    run: Callable[..., Any] = host.run_thread if plan == "thread" else host.run_inline
    return run(command, None).value["outputs"]


async def answer(host: SessionHost, path: str, question: str = "What is big?") -> str:
    return (await ran(host, path, question))["answer"]


async def test_a_program_runs_on_what_its_module_configured_and_no_other_does(host: SessionHost):
    for path in ("first:Answers", "second:Answers", "plain:Reports", "first:Reports"):
        deploy(host, path)
    assert await answer(host, "first:Answers") == "first"
    assert await answer(host, "second:Answers") == "second"
    assert await answer(host, "first:Answers") == "first"
    assert (await ran(host, "first:Reports"))["lm"] == "first"
    plain = await ran(host, "plain:Reports")
    assert plain["lm"] == "offline/extractive"
    assert plain["adapter"] == "ChatAdapter"
    assert plain["max_errors"] == dspy.settings.max_errors
    assert dspy.settings.lm is None, "nobody else's"


async def test_all_of_dspys_settings_hold_save_those_that_keep_user_data(host: SessionHost):
    before = dspy.cache
    deploy(host, "first:Reports")
    reported = await ran(host, "first:Reports")
    assert reported == {
        "lm": "first",
        "adapter": "JSONAdapter",
        "max_errors": 3,
        "num_threads": 2,
        "style": "terse",
        "keeps_history": False,
        "trace": 0,
        "callbacks": 0,
        "retrieved": 2,
    }
    assert dspy.cache is before, "the cache is the pool's"


async def test_a_module_reads_what_it_configured_while_it_is_imported(host: SessionHost):
    for path in ("first:Answers", "third:Answers", "fourth:program"):
        deploy(host, path)
    modules: dict[str, Any] = dict(sys.modules)
    assert modules["script_like.first"].seen_at_import == "first"
    assert modules["script_like.third"].seen_at_import == "shared"
    assert modules["script_like.fourth"].seen_in_a_context == 1


async def test_settings_of_a_module_that_several_import_are_those_of_each(host: SessionHost):
    """Python runs the module once, for the first that imports it."""
    for path in ("third:Answers", "fourth:program"):
        deploy(host, path)
    assert await answer(host, "third:Answers") == "shared"
    assert await answer(host, "fourth:program") == "shared"
    assert (await ran(host, "third:Answers"))["callbacks"] == 2, "it added one to the shared one"


async def test_a_constructor_configures_the_program_that_it_makes(host: SessionHost):
    deploy(host, "second:Configures")
    host.deploy(Deployment("other", 1, import_path="script_like.second:Configures", kwargs={"name": "other"}))
    deploy(host, "second:Answers")
    assert await answer(host, "second:Configures") == "mine, made under mine"
    assert await answer(host, "other") == "other, made under other"
    assert await answer(host, "second:Answers") == "second"


async def test_a_call_within_an_operation_holds_until_its_end_and_for_nobody_else(host: SessionHost):
    deploy(host, "second:ConfiguresWhileRunning")
    path = "second:ConfiguresWhileRunning"
    assert await answer(host, path, "change") == "second, changed"
    assert await answer(host, path, "keep") == "second, second"


async def test_a_call_in_a_thread_ends_nothing(host: SessionHost):
    deploy(host, "second:ConfiguresInAThread")
    assert await answer(host, "second:ConfiguresInAThread") in ("second", "threaded")
    deploy(host, "second:Answers")
    assert await answer(host, "second:Answers") == "second"


async def test_the_profile_that_the_configuration_names_beats_the_program(host: SessionHost):
    deploy(host, "first:Reports", spec={"lm": "offline", "adapter": "xml"})
    reported = await ran(host, "first:Reports")
    assert (reported["lm"], reported["adapter"]) == ("offline/extractive", "XMLAdapter")
    assert reported["max_errors"] == 3


async def test_a_model_set_on_the_module_beats_all(host: SessionHost):
    deploy(host, "plain:OwnModel", spec={"lm": "offline"})
    assert await answer(host, "plain:OwnModel") == "set on the module"


def test_a_program_with_a_model_of_its_own_may_cost_something(host: SessionHost):
    for path in ("first:Answers", "plain:OwnModel", "plain:Reports"):
        deploy(host, path)
    assert not host.is_offline("first:Answers")
    assert not host.is_offline("plain:OwnModel")
    assert host.is_offline("plain:Reports")


async def test_a_program_says_what_its_code_configured(host: SessionHost):
    deploy(host, "first:Answers")
    info = host.pool_programs.get("first:Answers")[0].describe()
    assert info["lm"] is None
    assert info["own_lm"] == "first"
    assert info["adapter"] == "JSONAdapter"
    assert info["configured"] == ["adapter", "house_style", "lm", "max_errors", "num_threads", "rm"]
    deploy(host, "plain:Reports")
    info = host.pool_programs.get("plain:Reports")[0].describe()
    assert (info["own_lm"], info["configured"], info["adapter"]) == (None, [], "chat")
    json.dumps(info)


async def test_a_stream_runs_under_the_programs_settings_too(host: SessionHost):
    for path in ("third:Answers", "fourth:program", "first:Answers"):
        deploy(host, path)
    events: list[StreamEvent] = []

    async def emit(event: StreamEvent) -> None:
        events.append(event)

    command = StreamProgram("third:Answers", ASKED)
    done = await host.run_async(command, None, emit)
    assert done.value["outputs"]["answer"] == "shared"
    done = await asyncio.to_thread(
        host.run_thread, StreamProgram("fourth:program", ASKED), None, events.append
    )
    assert done.value["outputs"]["answer"] == "shared"
    done = await asyncio.to_thread(
        host.run_thread, StreamProgram("first:Answers", ASKED), None, events.append
    )
    assert done.value["outputs"]["answer"] == "first"


async def test_callbacks_hear_of_each_operation_and_of_no_other_programs(host: SessionHost):
    for path in ("third:Answers", "fourth:program", "second:Answers"):
        deploy(host, path)
    notes = sys.modules["script_like.shared"].notes.seen  # type: ignore[attr-defined]
    notes.clear()
    await ran(host, "second:Answers")
    assert notes == []
    await ran(host, "fourth:program")
    assert notes == ["Predict begins", "asks shared", "module ends"]
    notes.clear()
    await ran(host, "third:Answers")
    assert notes == ["Answers begins", "Predict begins", "asks shared", "module ends", "module ends"]
    notes.clear()
    await asyncio.to_thread(host.run_thread, StreamProgram("fourth:program", ASKED), None, lambda event: None)
    assert notes == ["Predict begins", "asks shared", "module ends"]


async def test_a_callback_that_fails_ends_no_operation(host: SessionHost):
    deploy(host, "fourth:Traced")
    assert await answer(host, "fourth:Traced") == "shared"


async def test_programs_of_sessions_have_their_modules_settings_too(host: SessionHost):
    from dspool.messages import CreateProgram
    from dspool.programs.sessions.session import Session

    session = Session(host, "s")
    host.run_thread(CreateProgram("mine", import_path="script_like.first:Answers"), session)
    assert host.run_thread(ExecuteProgram("mine", ASKED), session).value["outputs"]["answer"] == "first"


def test_a_definition_that_crosses_processes_holds_no_model(host: SessionHost):
    deploy(host, "first:Answers")
    program, _ = host.pool_programs.get("first:Answers")
    assert b"first" not in pickle.dumps(program.definition).replace(b"script_like.first", b"")


PRELOADED = """
import sys
from dspool.runtime.forkserver.preload import import_for_workers
import_for_workers("script_like.third")
import_for_workers("script_like.second")
import asyncio, dspy
assert dspy.settings.lm is None
from dspool.config import PoolConfig
from dspool.messages import Deployment, ExecuteProgram
from dspool.programs.sessions.host import SessionHost
host = SessionHost(PoolConfig(allowed_imports=("script_like",)))
asked = {"question": "What is big?"}
for path in ("third:Answers", "second:Answers"):
    host.deploy(Deployment(path, 1, import_path="script_like." + path))
print(asyncio.run(host.run_async(ExecuteProgram("third:Answers", asked), None)).value["outputs"]["answer"])
print(host.run_thread(ExecuteProgram("second:Answers", asked), None).value["outputs"]["answer"])
"""


def test_what_the_fork_parent_imports_configures_the_programs_of_the_workers():
    import os

    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", PRELOADED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["shared", "second"], done.stderr


async def test_what_setup_configures_lies_below_what_each_program_does(host: SessionHost):
    await host.defaults.set_up("script_like.second:setup")
    for path in ("plain:Reports", "first:Reports", "second:Answers"):
        deploy(host, path)
    host.deploy(Deployment("spec", 1, spec={"signature": "question -> answer"}))
    host.deploy(Deployment("profiled", 1, spec={"signature": "question -> answer", "lm": "offline"}))
    plain = await ran(host, "plain:Reports")
    assert (plain["lm"], plain["max_errors"]) == ("from setup", 7)
    first = await ran(host, "first:Reports")
    assert (first["lm"], first["max_errors"]) == ("first", 3)
    assert await answer(host, "second:Answers") == "second"
    assert await answer(host, "spec") == "from setup"
    assert (await answer(host, "profiled")).startswith("unknown")


async def test_setup_may_be_async_and_runs_once_a_worker(host: SessionHost):
    modules: dict[str, Any] = dict(sys.modules)
    deploy(host, "plain:Reports")
    for _ in range(2):
        await host.defaults.set_up("script_like.second:setup_later")
    assert modules["script_like.second"].made == ["once"]
    assert (await ran(host, "plain:Reports"))["lm"] == "from an async setup", "also what was loaded before"
    assert host.pool_programs.get("plain:Reports")[0].describe()["configured"] == []


def test_setup_is_a_step_before_programs_are_loaded():
    from dspool.supervisor.warmup import steps_of

    config = PoolConfig(
        allowed_imports=("shop",),
        setup="shop.tracing:start",
        preload=("shop",),
        warmup={"steps": [{"step": "custom_code", "import_path": "shop.tracing:check"}]},
    )
    assert [step.step for step in steps_of(config)] == [
        "import_modules",
        "setup",
        "load_programs",
        "custom_code",
    ]


def test_setup_outside_of_the_allowed_imports_is_refused():
    from dspool.errors import ConfigError

    with pytest.raises(ConfigError) as refused:
        PoolConfig(allowed_imports=("shop",), setup="os:abort")
    assert refused.value.details["key"] == "setup"


async def test_what_a_session_chose_beats_what_code_configured(host: SessionHost):
    from dspool.messages import ConfigureLM
    from dspool.programs.sessions.session import Session

    deploy(host, "first:Reports")
    deploy(host, "plain:OwnModel")
    session = Session(host, "s")
    asked = ExecuteProgram("first:Reports", ASKED)
    assert host.run_thread(asked, session).value["outputs"]["lm"] == "first"
    host.run_inline(ConfigureLM("offline"), session)
    assert host.run_thread(asked, session).value["outputs"]["lm"] == "offline/extractive"


async def test_modules_are_told_apart_when_they_are_loaded_again(host: SessionHost, tmp_path, monkeypatch):
    """A module that is loaded anew configures anew; what its earlier run configured is gone."""
    import importlib

    module = tmp_path / "edited_settings.py"
    text = (
        "import dspy\nfrom script_like import programs\nfrom script_like.models import SaysItsName\n"
        "dspy.configure(lm=SaysItsName({name!r}))\nclass Answers(programs.Answers):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    host = SessionHost(PoolConfig(allowed_imports=("edited_settings",)))
    for version, (name, line) in enumerate([("old", "\ndspy.configure(num_threads=9)\n"), ("newer", "")], 1):
        module.write_text(text.format(name=name) + line)
        importlib.invalidate_caches()
        sys.modules.pop("edited_settings", None)
        host.deploy(Deployment("edited", version, import_path="edited_settings:Answers"))
        assert await answer(host, "edited") == name
    assert host.pool_programs.get("edited")[0].describe()["configured"] == ["lm"]
    sys.modules.pop("edited_settings", None)
