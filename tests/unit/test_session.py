"""The session host: commands, sessions, isolation, bounded memory, and operations side by side."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from dspool.config import PoolConfig
from dspool.corrections.dspy_calls import Threads
from dspool.errors import (
    Cancelled,
    Conflict,
    InvalidRequest,
    NotAllowed,
    ProgramError,
    UnknownName,
    UnknownProgram,
)
from dspool.messages import (
    Change,
    ConfigureLM,
    CreateProgram,
    DeleteProgram,
    DeleteVariable,
    Deployment,
    EndSession,
    ExecuteCode,
    ExecuteProgram,
    GetHistory,
    GetProgramInfo,
    GetStats,
    GetVariable,
    ListPrograms,
    ListVariables,
    Ping,
    ResetSession,
    SetVariable,
    StreamEvent,
    StreamProgram,
)
from dspool.programs.adapters import adapter_named
from dspool.programs.sessions.host import CommandResult, Session, SessionHost
from dspool.programs.sessions.session import MAX_ENTRY_BYTES

QA = {"signature": "context, question -> answer"}
PARIS = {"context": "Paris is the capital of France.", "question": "What is the capital of France?"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def host(clock: Clock) -> SessionHost:
    host = SessionHost(
        PoolConfig(
            history_limit=5,
            allow_execute_code=True,
            allowed_imports=("sample_programs",),
            allowed_callables={"tools": ["sample_programs:lookup_later"]},
        ),
        clock=clock,
    )
    host.deploy(Deployment("qa", 1, spec=QA))
    return host


@pytest.fixture
def session(host: SessionHost) -> Session:
    return Session(host, "s1")


def value(host: SessionHost, command: Any, session: Session | None) -> Any:
    return host.run_inline(command, session).value


# --- pool programs ---


def test_a_pool_program_answers_without_a_session_and_is_marked_offline(host: SessionHost):
    command = ExecuteProgram("qa", PARIS)
    assert host.plan(command, None) == "inline"
    assert host.run_inline(command, None) == CommandResult({"outputs": {"answer": "Paris"}}, (), {}, True, 1)


def test_a_higher_version_becomes_current_and_an_old_one_can_be_asked_for(host: SessionHost):
    host.deploy(Deployment("qa", 3, spec={**QA, "module": "ChainOfThought"}))
    host.deploy(Deployment("qa", 2, spec=QA))
    assert host.current("qa") == 3
    assert "reasoning" in value(host, ExecuteProgram("qa", PARIS), None)["outputs"]
    assert host.run_inline(ExecuteProgram("qa", PARIS, version=1), None).program_version == 1
    host.activate("qa", 1)
    assert host.run_inline(ExecuteProgram("qa", PARIS), None).program_version == 1


def test_the_current_version_is_retired_last(host: SessionHost):
    host.deploy(Deployment("qa", 2, spec=QA))
    with pytest.raises(Conflict):
        host.retire("qa", 2)
    host.retire("qa", 1)
    host.retire("qa", 2)
    with pytest.raises(UnknownProgram, match="there are: none"):
        host.current("qa")


@pytest.mark.parametrize(("program", "version"), [("nope", 0), ("qa", 9)])
def test_an_unknown_program_or_version_is_refused_by_name(host: SessionHost, program: str, version: int):
    command = ExecuteProgram(program, PARIS, version)
    assert host.plan(command, None) == "inline"
    with pytest.raises(UnknownProgram):
        host.run_inline(command, None)


def test_a_failed_deployment_leaves_the_current_version(host: SessionHost):
    with pytest.raises(InvalidRequest):
        host.deploy(Deployment("qa", 2, spec={"signature": "a -> b: nope"}))
    assert host.current("qa") == 1


def test_text_that_no_back_end_can_receive_is_the_caller_s_error(host: SessionHost):
    with pytest.raises(InvalidRequest, match="valid Unicode"):
        host.run_inline(ExecuteProgram("qa", {**PARIS, "context": "\ud800"}), None)


def test_wrong_inputs_never_reach_the_program(host: SessionHost):
    with pytest.raises(InvalidRequest, match="'question' is missing"):
        host.run_inline(ExecuteProgram("qa", {"context": "x"}), None)


# --- sessions ---


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("variables['a'] = 2\nvariables['b'] = 3\nexit()", ProgramError),
        ("variables['a'] = 2\nvariables['b'] = object()", InvalidRequest),
        ("variables['a'] = 2\nvariables['b'] = float('nan')", InvalidRequest),
        ("class B:\n def __reduce__(self): exit()\nvariables['a'] = 2\nvariables['b'] = B()", InvalidRequest),
    ],
)
def test_code_that_fails_or_leaves_what_cannot_be_stored_changes_no_variable(
    host: SessionHost, session: Session, code: str, kind: type[Exception]
):
    value(host, SetVariable("a", 1), session)
    with pytest.raises(kind):
        value(host, ExecuteCode(code), session)
    assert session.variables == {"a": 1}


def test_code_that_is_nested_too_deeply_is_the_callers_error(host: SessionHost, session: Session):
    with pytest.raises(InvalidRequest, match="does not parse"):
        value(host, ExecuteCode("-" * 100_000 + "1"), session)


def test_a_created_program_runs_and_is_a_change_to_store(host: SessionHost, session: Session):
    done = host.run_inline(CreateProgram("mine", spec=QA), session)
    assert done.value["created"] is True
    assert [(c.kind, c.name, c.payload) for c in done.changes] == [("program", "mine", {"spec": QA})]
    assert value(host, ExecuteProgram("mine", PARIS), session) == {"outputs": {"answer": "Paris"}}


def test_creating_the_same_twice_changes_nothing_and_another_needs_replace(
    host: SessionHost, session: Session
):
    host.run_inline(CreateProgram("mine", spec=QA), session)
    again = host.run_inline(CreateProgram("mine", spec=QA), session)
    assert again.changes == ()
    other = {"signature": "text -> summary"}
    with pytest.raises(Conflict):
        host.run_inline(CreateProgram("mine", spec=other), session)
    replaced = host.run_inline(CreateProgram("mine", spec=other, replace=True), session)
    assert replaced.value["replaced"] is True
    assert value(host, GetProgramInfo("mine"), session)["signature"]["outputs"][0]["name"] == "summary"


def test_sessions_do_not_see_each_other(host: SessionHost, session: Session):
    other = Session(host, "s2")
    host.run_inline(CreateProgram("mine", spec=QA), session)
    host.run_inline(SetVariable("x", 1), session)
    with pytest.raises(UnknownProgram):
        host.run_inline(ExecuteProgram("mine", PARIS), other)
    with pytest.raises(UnknownName):
        host.run_inline(GetVariable("x"), other)
    assert value(host, ListVariables(), other) == {"variables": []}


def test_a_session_also_reaches_pool_programs_but_its_own_come_first(host: SessionHost, session: Session):
    assert host.run_inline(ExecuteProgram("qa", PARIS), session).program_version == 1
    host.run_inline(CreateProgram("qa", spec={**QA, "module": "ChainOfThought"}), session)
    assert "reasoning" in value(host, ExecuteProgram("qa", PARIS), session)["outputs"]
    scopes = [(p["program"], p["scope"]) for p in value(host, ListPrograms(), session)["programs"]]
    assert scopes == [("qa", "session"), ("qa", "pool")]


def test_a_session_is_rebuilt_from_its_stored_items(host: SessionHost, session: Session):
    changes = []
    for command in (
        CreateProgram("mine", spec=QA),
        CreateProgram("gone", spec=QA),
        DeleteProgram("gone"),
        SetVariable("x", {"a": [1]}),
        SetVariable("y", 2),
        DeleteVariable("y"),
        ConfigureLM("offline", {"temperature": 0.5}),
    ):
        changes += host.run_inline(command, session).changes
    for items in (tuple(changes), session.items()):
        again = Session.rebuild(host, "s1", items, "ann")
        assert again.items() == session.items()
        assert again.principal == "ann"
        assert value(host, ExecuteProgram("mine", PARIS), again)["outputs"]["answer"] == "Paris"
        assert value(host, GetVariable("x"), again)["value"] == {"a": [1]}


def test_a_stored_null_is_a_value_and_no_deletion(host: SessionHost, session: Session):
    changes = host.run_inline(SetVariable("x", None), session).changes
    assert value(host, GetVariable("x"), Session.rebuild(host, "s1", changes))["value"] is None


def test_reset_forgets_everything_and_says_so_to_the_store(host: SessionHost, session: Session):
    host.run_inline(CreateProgram("mine", spec=QA), session)
    host.run_inline(SetVariable("x", 1), session)
    done = host.run_inline(ResetSession(), session)
    assert {(c.kind, c.name, c.payload) for c in done.changes} == {
        ("program", "*", None),
        ("lm", "*", None),
        ("variable", "*", None),
    }
    assert session.items() == ()
    assert Session.rebuild(host, "s1", [Change("variable", "x", {"value": 1}), *done.changes]).items() == ()
    assert value(host, EndSession(), session) == {"ended": True}


def test_commands_that_need_a_session_say_so(host: SessionHost):
    for command in (SetVariable("x", 1), CreateProgram("p", spec=QA), GetHistory(), ConfigureLM("offline")):
        with pytest.raises(InvalidRequest, match="needs a session"):
            host.run_inline(command, None)


def test_ping_and_stats_work_with_and_without_a_session(host: SessionHost, session: Session):
    assert value(host, Ping(), None)["pong"] is True
    assert value(host, GetStats(), None)["programs"] == {"qa": 1}
    host.run_inline(ExecuteProgram("qa", PARIS), session)
    assert value(host, GetStats(), session)["operations"] == 1


def test_an_unknown_profile_or_setting_is_refused(host: SessionHost, session: Session):
    with pytest.raises(UnknownName, match="known are offline"):
        host.run_inline(ConfigureLM("fast"), session)
    with pytest.raises(InvalidRequest, match="api_base"):
        host.run_inline(ConfigureLM("offline", {"api_base": "http://evil"}), session)
    assert session.lm is None


# --- history ---


def test_history_is_bounded_and_newest_last(host: SessionHost, session: Session, clock: Clock):
    for number in range(8):
        clock.now = 1000.0 + number
        host.run_inline(SetVariable(f"v{number}", number), session)
    names = [entry["name"] for entry in value(host, GetHistory(), session)["operations"]]
    assert names == ["v3", "v4", "v5", "v6", "v7"]
    assert [e["name"] for e in value(host, GetHistory(limit=2), session)["operations"]] == ["v6", "v7"]
    assert session.last_used == 1007.0


def test_history_holds_inputs_and_outputs_of_moderate_size_only(host: SessionHost, session: Session):
    host.run_inline(ExecuteProgram("qa", PARIS), session)
    host.run_inline(ExecuteProgram("qa", {**PARIS, "context": "x" * MAX_ENTRY_BYTES}), session)
    small, large = value(host, GetHistory(), session)["operations"]
    assert small["inputs"] == PARIS
    assert small["outputs"] == {"answer": "Paris"}
    assert "inputs" not in large
    assert large["left_out"] == ["inputs", "outputs"]


def test_a_failure_is_remembered_with_its_code(host: SessionHost, session: Session):
    with pytest.raises(UnknownProgram):
        host.run_inline(ExecuteProgram("nope", {}), session)
    (entry,) = value(host, GetHistory(), session)["operations"]
    assert (entry["outcome"], entry["error"]) == ("client_error", "unknown_program")
    assert value(host, GetStats(), session)["errors"] == 0


# --- code ---


def test_code_is_off_unless_allowed(session: Session):
    closed = SessionHost(PoolConfig())
    assert closed.plan(ExecuteCode("1"), session) == "inline"
    with pytest.raises(NotAllowed):
        closed.run_inline(ExecuteCode("1"), session)


def test_code_gives_what_it_prints_and_its_last_value_and_stores_variables(
    host: SessionHost, session: Session
):
    host.run_inline(SetVariable("x", 2), session)
    assert host.plan(ExecuteCode("1"), session) == "thread"
    done = host.run_thread(
        ExecuteCode("print('hi')\nvariables['y'] = variables['x'] * 3\nvariables['y']"), session
    )
    assert done.value == {"stdout": "hi\n", "result": 6}
    assert done.changes == (Change("variable", "y", {"value": 6}),)
    assert host.run_thread(ExecuteCode("y = 5"), session).value["result"] is None
    assert host.run_thread(ExecuteCode("y"), session).value["result"] == 5


def test_failing_code_says_what_and_where_and_its_text_beside_the_message(
    host: SessionHost, session: Session
):
    with pytest.raises(ProgramError) as error:
        host.run_thread(ExecuteCode("x = 1\nraise ValueError('secret')"), session)
    assert error.value.details == {"exception": "ValueError", "line": 2, "text": "secret"}
    assert "secret" not in error.value.message
    with pytest.raises(InvalidRequest, match="line 1"):
        host.run_thread(ExecuteCode("x ="), session)


# --- side by side ---


async def test_async_runs_give_the_same_as_inline_ones(host: SessionHost, session: Session):
    command = ExecuteProgram("qa", PARIS)
    assert await host.run_async(command, None) == host.run_inline(command, None)
    assert (await host.run_async(SetVariable("x", 1), session)).value == {"name": "x"}


async def test_many_tasks_and_threads_never_mix_their_answers_or_usage(host: SessionHost):
    def command(number: int) -> ExecuteProgram:
        return ExecuteProgram(
            "qa", {"context": f"Town{number} is the capital.", "question": "What is the capital?"}
        )

    asyncio.get_running_loop().set_default_executor(Threads(4))
    tasks = [asyncio.create_task(host.run_async(command(n), Session(host, str(n)))) for n in range(40)]
    with ThreadPoolExecutor(4) as threads:
        blocking = list(threads.map(lambda n: host.run_thread(command(n), None), range(40)))
    for number, done in enumerate([*await asyncio.gather(*tasks), *blocking]):
        assert done.value["outputs"]["answer"] == f"Town{number % 40}"
        assert done.offline


def test_running_changes_no_global_setting(host: SessionHost):
    before = dict(dspy.settings.config)
    host.run_inline(ExecuteProgram("qa", PARIS), None)
    assert dict(dspy.settings.config) == before
    assert dspy.settings.lm is None
    assert dspy.settings.disable_history is True


# --- streams ---


async def test_a_stream_sends_tokens_then_whole_fields(host: SessionHost):
    events: list[StreamEvent] = []

    async def emit(event: StreamEvent) -> None:
        events.append(event)

    inputs = {"context": "The capital is New York City.", "question": "What is the capital?"}
    command = StreamProgram("qa", inputs)
    assert host.plan(command, None) == "async"
    done = await host.run_async(command, None, emit)
    tokens = [e.value for e in events if e.kind == "token"]
    assert len(tokens) > 1
    assert "".join(tokens) == done.value["outputs"]["answer"] == "New York City"
    assert events[-1] == StreamEvent("field", "answer", "New York City")


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
async def test_every_adapter_streams(host: SessionHost, adapter: str):
    host.deploy(Deployment("s", 1, spec={**QA, "adapter": adapter, "module": "ChainOfThought"}))
    events: list[StreamEvent] = []

    async def emit(event: StreamEvent) -> None:
        events.append(event)

    done = await host.run_async(StreamProgram("s", PARIS), None, emit)
    fields = {e.field: e.value for e in events if e.kind == "field"}
    assert fields == done.value["outputs"]
    reasoning = "".join(e.value for e in events if e.kind == "token" and e.field == "reasoning")
    assert reasoning == fields["reasoning"]


async def test_an_agent_says_which_tool_it_calls(host: SessionHost, monkeypatch: pytest.MonkeyPatch):
    host.deploy(
        Deployment(
            "agent",
            1,
            spec={
                **QA,
                "module": "ReAct",
                "settings": {"tools": ["sample_programs:lookup_later"], "max_iters": 1},
            },
        )
    )
    monkeypatch.setattr("dspool.programs.offline.values._choice", lambda options, name, reading: options[0])
    events: list[StreamEvent] = []

    async def emit(event: StreamEvent) -> None:
        events.append(event)

    await host.run_async(StreamProgram("agent", PARIS), None, emit)
    assert StreamEvent("status", "", "calling lookup_later") in events


def test_a_blocking_program_streams_from_its_thread(host: SessionHost):
    host.deploy(Deployment("shout", 1, import_path="sample_programs:Shout"))
    events: list[StreamEvent] = []
    done = host.run_thread(
        StreamProgram("shout", {"question": "Rome is big. What is big?"}), None, events.append
    )
    assert events[-1] == StreamEvent("field", "answer", done.value["outputs"]["answer"])
    assert any(e.kind == "token" for e in events)


async def test_a_listener_that_goes_away_ends_the_stream_with_its_own_error(host: SessionHost):
    async def emit(event: StreamEvent) -> None:
        raise Cancelled("gone")

    with pytest.raises(Cancelled):
        await host.run_async(StreamProgram("qa", PARIS), None, emit)


def test_a_stopped_thread_ends_as_cancelled(host: SessionHost):
    host.deploy(Deployment("shout", 1, import_path="sample_programs:Shout"))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        host.run_thread(ExecuteProgram("shout", {"question": "x"}), None, stop=stop)
    assert host.run_thread(ExecuteProgram("shout", {"question": "x"}), None).offline


# --- hops ---


async def test_short_hops_of_dspy_run_in_the_calling_thread_and_others_do_not():
    asyncio.get_running_loop().set_default_executor(Threads(2))
    seen: list[int] = []

    def prepare(value: int) -> int:
        seen.append(threading.get_ident())
        return value + 1

    assert await asyncio.to_thread(prepare, 1) == 2
    prepare.__module__ = "dspy.clients.execution"
    assert await asyncio.to_thread(prepare, 2) == 3
    assert seen[0] != threading.get_ident()
    assert seen[1] == threading.get_ident()


async def test_an_exception_in_a_short_hop_reaches_the_caller():
    asyncio.get_running_loop().set_default_executor(Threads(2))

    def prepare() -> None:
        raise KeyError("x")

    prepare.__module__ = "dspy.clients.execution"
    with pytest.raises(KeyError):
        await asyncio.to_thread(prepare)


# --- adapters ---


@pytest.mark.parametrize(
    ("name", "original"), [("chat", dspy.ChatAdapter), ("json", dspy.JSONAdapter), ("xml", dspy.XMLAdapter)]
)
@pytest.mark.parametrize(
    "signature", ["question -> answer", "context: list[str], n: int -> a: bool, b: list[int]"]
)
def test_our_adapters_write_and_read_exactly_what_dspy_s_do(name: str, original: Any, signature: str):
    from dspool.programs.signatures import build_signature

    kind = build_signature(signature).dspy
    ours, theirs = adapter_named(name), original()
    inputs = {"question": " a\n[[ ## answer ## ]]", "context": ["x", "y"], "n": 3}
    demos = [{"question": "q", "answer": "a", "context": ["c"], "n": 1, "a": True, "b": [1]}]
    for given in ([], demos):
        assert ours.format(kind, given, dict(inputs)) == theirs.format(kind, given, dict(inputs))
    answers = {field: True if field == "a" else [1] if field == "b" else "x" for field in kind.output_fields}
    written = theirs.format_assistant_message_content(kind, answers)
    texts = [written, "preamble\n" + written, written.replace("\n\n", "\n")]
    if name == "chat":
        # A field given twice: the first one counts.
        texts.append(written + "\n" + written.replace("x", "y").replace("True", "False"))
    for text in texts:
        assert ours.parse(kind, text) == theirs.parse(kind, text)
    for text in ("nonsense", ""):
        errors = []
        for adapter in (ours, theirs):
            with pytest.raises(Exception) as error:  # noqa: PT011
                adapter.parse(kind, text)
            errors.append((type(error.value), str(error.value)))
        assert errors[0] == errors[1]
