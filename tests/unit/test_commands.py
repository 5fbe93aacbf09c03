"""What crosses the socket comes back equal, and what is not a command is refused."""

from typing import get_args

import msgspec
import pytest

from dspool import messages as commands
from dspool.errors import InvalidRequest
from dspool.messages import (
    CREATES_SESSION,
    NEEDS_SESSION,
    READ_ONLY,
    AnyCommand,
    Change,
    Command,
    Deployment,
    Failure,
    Lease,
    Member,
    Membership,
    Operation,
    PoolStatus,
    Result,
    SessionInfo,
    StreamEvent,
    WorkerStatus,
    command_from,
)

NESTED = {"text": "ä€😀", "list": [1, 2.5, None, True, {"deep": []}], "empty": {}, "": "empty key"}

FULL = [
    commands.Ping(),
    commands.ExecuteProgram("qa", NESTED, version=3),
    commands.StreamProgram("qa", NESTED, version=3),
    commands.ConfigureLM("fast", {"temperature": 0.5}),
    commands.CreateProgram("p", spec=NESTED, state=NESTED, replace=True),
    commands.CreateProgram("p", import_path="pkg.mod:Name", kwargs=NESTED),
    commands.GetProgramInfo("p"),
    commands.ListPrograms(),
    commands.DeleteProgram("p"),
    commands.SetVariable("v", NESTED),
    commands.GetVariable("v"),
    commands.ListVariables(),
    commands.DeleteVariable("v"),
    commands.GetHistory(limit=7),
    commands.GetStats(),
    commands.ResetSession(),
    commands.EndSession(),
    commands.ExecuteCode("print(1)"),
    commands.ExecuteSandboxed("print(1)"),
]


def name_of(command: Command) -> str:
    return str(type(command).__struct_config__.tag)


every_command = pytest.mark.parametrize("command", FULL, ids=name_of)


def through_msgpack(value, kind):
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind)


def test_the_table_has_every_command():
    assert {type(command) for command in FULL} == set(get_args(AnyCommand))


def test_every_command_class_is_one_that_can_be_sent():
    assert set(Command.__subclasses__()) == set(get_args(AnyCommand))


@every_command
def test_a_command_goes_through_msgpack_unchanged(command):
    copy = through_msgpack(command, AnyCommand)
    assert type(copy) is type(command)
    assert copy == command


@every_command
def test_a_command_goes_through_its_public_form_unchanged(command):
    public = msgspec.to_builtins(command)
    assert public["command"] == name_of(command)
    assert command_from(public) == command


@every_command
def test_an_operation_carries_any_command(command):
    full = Operation("op-1", command, 2.5, session="s", principal="p", traceparent="00-a-b-01")
    assert through_msgpack(full, Operation) == full
    bare = Operation("op-1", command, 2.5)
    assert through_msgpack(bare, Operation) == bare


@pytest.mark.parametrize(
    "value",
    [
        Result("op-1", value={"outputs": NESTED}, run_s=0.1, wait_s=0.2, offline=True, program_version=3),
        Failure("op-1", error={"code": "cancelled", "message": "m", "details": {}}),
        Result("op-1", usage={"m": {"total_tokens": 3}}),
        StreamEvent("token", "answer", "bl"),
        Change("program", "p", NESTED),
        Change("variable", "*"),
        Deployment("qa", 2, spec=NESTED, state=NESTED),
        Member("w", 0, "10.0.0.1", 4000, 8, 17, "node"),
        Membership(4, (Member("w", 0, "h", 1, 8),), paused=True, closed=True, programs={"qa": 2}),
        WorkerStatus("w", 0, "ready", sessions=1, running=2, rss_mb=1.5, overflow=True, reason="r"),
        PoolStatus("p", "ready", True, 2, 2, 0, 4, (WorkerStatus("w", 0, "ready"),), {"qa": 1}),
        SessionInfo("s", None, 1, 2.0, 3.0, ("p",), 4, "me"),
        Lease("s", True, "w", 5, (Change("lm", "fast", {}),), "me"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_everything_else_that_crosses_goes_through_msgpack_unchanged(value):
    assert through_msgpack(value, type(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"command": "dance"},
        {"command": 3},
        {"command": "execute_program"},
        {"command": "execute_program", "program": "qa"},
        {"command": "execute_program", "program": 3, "inputs": {}},
        {"command": "execute_program", "program": "qa", "inputs": []},
        {"command": "get_history", "limit": "all"},
    ],
    ids=repr,
)
def test_what_is_not_a_command_is_refused(data):
    with pytest.raises(InvalidRequest, match="not a command"):
        command_from(data)


def test_commands_are_frozen():
    with pytest.raises(AttributeError):
        commands.GetVariable("v").name = "w"


def test_a_read_only_command_never_creates_a_session():
    assert not READ_ONLY & CREATES_SESSION
    assert CREATES_SESSION <= NEEDS_SESSION
