"""What crosses between clients, workers, the supervisor, the store and the metrics actor.

All of it is plain data (`msgspec` structs of JSON-like values): it goes over a socket as msgpack without pickle, over
a Ray actor call, or into a test, with the same meaning.
"""

from dspool.messages.commands import (
    CREATES_SESSION,
    JSON,
    NEEDS_SESSION,
    READ_ONLY,
    AnyCommand,
    Command,
    ConfigureLM,
    CreateProgram,
    DeleteProgram,
    DeleteVariable,
    EndSession,
    ExecuteCode,
    ExecuteProgram,
    ExecuteSandboxed,
    GetHistory,
    GetProgramInfo,
    GetStats,
    GetVariable,
    ListPrograms,
    ListVariables,
    Ping,
    ResetSession,
    SetVariable,
    StreamProgram,
    command_from,
)
from dspool.messages.members import (
    Member,
    Membership,
    PoolStatus,
    WorkerState,
    WorkerStatus,
)
from dspool.messages.operations import (
    Finished,
    Operation,
    Result,
    StreamEvent,
    Usage,
)
from dspool.messages.programs import (
    Deployment,
    VersionNumbers,
)
from dspool.messages.sessions import (
    Change,
    Lease,
    SessionInfo,
)

__all__ = [
    "CREATES_SESSION",
    "JSON",
    "NEEDS_SESSION",
    "READ_ONLY",
    "AnyCommand",
    "Change",
    "Command",
    "ConfigureLM",
    "CreateProgram",
    "DeleteProgram",
    "DeleteVariable",
    "Deployment",
    "EndSession",
    "ExecuteCode",
    "ExecuteProgram",
    "ExecuteSandboxed",
    "Finished",
    "GetHistory",
    "GetProgramInfo",
    "GetStats",
    "GetVariable",
    "Lease",
    "ListPrograms",
    "ListVariables",
    "Member",
    "Membership",
    "Operation",
    "Ping",
    "PoolStatus",
    "ResetSession",
    "Result",
    "SessionInfo",
    "SetVariable",
    "StreamEvent",
    "StreamProgram",
    "Usage",
    "VersionNumbers",
    "WorkerState",
    "WorkerStatus",
    "command_from",
]
