"""What goes in and out over HTTP, as `msgspec` structs. The OpenAPI document is made from these.

Pool and session answers are `dspool.commands.PoolStatus` and `SessionInfo` as they are.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from dspool.commands import PoolStatus, SessionInfo

JSONObject = dict[str, Any]
Seconds = Annotated[float, Meta(ge=0, description="seconds")]


class ExecuteRequest(Struct, forbid_unknown_fields=True):
    """Run a program on `inputs`."""

    inputs: Annotated[JSONObject, Meta(description="one value for each input field of the program")]
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="deadline in seconds, queueing included; capped by operation_timeout_s"),
    ] = None


class Timings(Struct):
    wait_s: Seconds
    run_s: Seconds


class ExecuteResponse(Struct):
    """The program's answer. `offline` is true when no language model was asked."""

    outputs: JSONObject
    operation_id: str
    worker: str
    program_version: int
    timings: Timings
    usage: Annotated[dict[str, dict[str, int]], Meta(description="tokens by model name")]
    offline: bool


class ProgramRequest(Struct, forbid_unknown_fields=True):
    """A program: `spec`, with saved DSPy `state` if there is one, or an `import_path` that the pool allows."""

    spec: JSONObject | None = None
    state: JSONObject | None = None
    import_path: str | None = None
    kwargs: JSONObject = {}


class ProgramSpec(Struct):
    """The short form of a program request: the spec itself."""

    signature: Annotated[
        str | JSONObject,
        Meta(
            description='"question -> answer", or an object with "instructions", "inputs" and "outputs", '
            'each a list of {"name", "type", "desc"}'
        ),
    ]
    module: str = "Predict"
    lm: Annotated[str | None, Meta(description="name of a configured LM profile")] = None
    adapter: str | None = None


class ProgramResponse(Struct):
    """A session's program, as its worker describes it."""

    session: str
    program: str
    info: JSONObject


class PoolSummary(Struct):
    name: str
    state: str
    ready: bool
    desired: int
    actual: int
    programs: Annotated[dict[str, int], Meta(description="current version by pool program")]
    reason: str = ""


class PoolList(Struct):
    pools: list[PoolSummary]


class SessionList(Struct):
    sessions: list[SessionInfo]
    next_cursor: Annotated[str | None, Meta(description="pass as `cursor` for the next page")] = None


class Health(Struct):
    status: str
    version: str


class Readiness(Struct):
    ready: bool
    pools: Annotated[dict[str, str], Meta(description="state by pool")]


class Problem(Struct):
    """RFC 9457 problem details."""

    type: Annotated[str, Meta(description="urn:dspool:problem:<code>, stable")]
    title: str
    status: int
    detail: str
    code: str
    details: JSONObject = {}


EXAMPLES: dict[type, JSONObject] = {
    ExecuteRequest: {
        "inputs": {"context": "Ray was started at Berkeley.", "question": "Where was Ray started?"},
        "timeout_s": 30,
    },
    ExecuteResponse: {
        "outputs": {"answer": "Ray was started at Berkeley."},
        "operation_id": "01j8k4m2x7c9",
        "worker": "default-w0-3f9a1c",
        "program_version": 1,
        "timings": {"wait_s": 0.0004, "run_s": 0.0021},
        "usage": {},
        "offline": True,
    },
    ProgramRequest: {"spec": {"signature": "question -> answer", "module": "ChainOfThought"}},
    ProgramSpec: {"signature": "question -> answer", "module": "ChainOfThought"},
    ProgramResponse: {"session": "ada", "program": "answerer", "info": {"module": "ChainOfThought"}},
    PoolList: {
        "pools": [
            {
                "name": "default",
                "state": "ready",
                "ready": True,
                "desired": 2,
                "actual": 2,
                "programs": {"qa": 1},
                "reason": "",
            }
        ]
    },
    PoolStatus: {
        "name": "default",
        "state": "ready",
        "ready": True,
        "desired": 1,
        "actual": 1,
        "spares": 0,
        "membership_version": 3,
        "workers": [
            {
                "id": "default-w0-3f9a1c",
                "slot": 0,
                "state": "ready",
                "pid": 4242,
                "node": "10.0.0.4",
                "sessions": 3,
                "running": 1,
                "slots": 8,
            }
        ],
        "programs": {"qa": 1},
    },
    SessionInfo: {
        "id": "ada",
        "owner": "default-w0-3f9a1c",
        "epoch": 1,
        "created_at": 1790000000.0,
        "last_used_at": 1790000060.0,
        "programs": ["answerer"],
        "moves": 0,
    },
    SessionList: {"sessions": [], "next_cursor": None},
    Health: {"status": "ok", "version": "0.1.0"},
    Readiness: {"ready": True, "pools": {"default": "ready"}},
    Problem: {
        "type": "urn:dspool:problem:unknown_program",
        "title": "No such program",
        "status": 404,
        "detail": "pool default has no program 'qb'; it has: qa",
        "code": "unknown_program",
    },
}
"""One example by type, shown in the OpenAPI document. A test decodes each."""
