"""What goes in and out over HTTP, as `msgspec` structs. The OpenAPI document is made from these.

Pool and session answers are `dspool.messages.PoolStatus` and `SessionInfo` as they are.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from dspool.messages import SessionInfo
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord

JSONObject = dict[str, Any]
Seconds = Annotated[float, Meta(ge=0, description="seconds")]
Cursor = Annotated[str | None, Meta(description="pass as `cursor` for the next page")]


class ExecuteRequest(Struct, forbid_unknown_fields=True):
    """Run a program on `inputs`."""

    inputs: Annotated[JSONObject, Meta(description="one value for each input field of the program")]
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="deadline in seconds, queueing included; capped by operation_timeout_s"),
    ] = None
    lm: Annotated[
        JSONObject | None,
        Meta(
            description="LM `profile` and settings (temperature, ...), as far as the pool's request_lm allows"
        ),
    ] = None


class Timings(Struct):
    wait_s: Seconds
    run_s: Seconds


class ExecuteResponse(Struct, omit_defaults=True):
    """The program's answer. `offline` is true when no language model was asked.

    `cached`: a cache answered for the models, at no cost. `truncated`: a model's answer was cut at `max_tokens`.
    These and `cost_usd` are there only when they say something.
    """

    outputs: JSONObject
    operation_id: str
    worker: str
    program_version: int
    timings: Timings
    usage: Annotated[
        dict[str, dict[str, int | float]],
        Meta(description="tokens by model name, and `cost_usd` where the pool has a price for it"),
    ]
    offline: bool
    cost_usd: Annotated[float | None, Meta(description="of all models; null without a price")] = None
    cached: bool = False
    truncated: bool = False


class ProgramRequest(Struct, forbid_unknown_fields=True):
    """A program: `spec`, with saved DSPy `state` if there is one, or an `import_path` that the pool allows."""

    spec: JSONObject | None = None
    state: JSONObject | None = None
    import_path: str | None = None
    kwargs: JSONObject = {}


class ProgramCopy(Struct, forbid_unknown_fields=True):
    """A pool program as a session's own: as its `version` is (the current one without), or with another `state`."""

    copy_of: str
    version: Annotated[int, Meta(ge=1)] | None = None
    state: JSONObject | None = None


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


Schema = Annotated[JSONObject, Meta(description="JSON Schema (2020-12), complete in itself")]


class ProgramResponse(Struct):
    """A session's program, as its worker describes it."""

    session: str
    program: str
    info: JSONObject
    inputs: Schema = {}
    outputs: Schema = {}


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
    next_cursor: Cursor = None


class Health(Struct):
    status: str
    version: str


class Readiness(Struct):
    ready: bool
    pools: Annotated[dict[str, str], Meta(description="state by pool")]
    missing: Annotated[
        list[str],
        Meta(description="parts that are away, and without which this node serves what it was asked for"),
    ] = []


class Problem(Struct):
    """RFC 9457 problem details."""

    type: Annotated[str, Meta(description="urn:dspool:problem:<code>, stable")]
    title: str
    status: int
    detail: str
    code: str
    details: JSONObject = {}
    operation_id: Annotated[
        str | None, Meta(description="of the operation that failed: what logs and traces call it")
    ] = None


class BatchRequest(Struct, forbid_unknown_fields=True):
    """Run a program on many inputs; each ends by itself."""

    inputs: Annotated[
        list[JSONObject], Meta(min_length=1, description="at most service.max_batch sets of inputs")
    ]
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="deadline in seconds for each, queueing included; capped by operation_timeout_s"),
    ] = None
    lm: Annotated[
        JSONObject | None,
        Meta(
            description="LM `profile` and settings (temperature, ...), as far as the pool's request_lm allows"
        ),
    ] = None


class BatchItem(Struct, omit_defaults=True):
    """One of a batch: either `result` or `problem`, in the place of its inputs."""

    result: ExecuteResponse | None = None
    problem: Problem | None = None


class BatchResponse(Struct):
    items: list[BatchItem]
    succeeded: int
    failed: int


class SessionRequest(Struct, forbid_unknown_fields=True):
    """A new session. Without an id it gets one that nobody can guess."""

    id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class LMRequest(Struct, forbid_unknown_fields=True):
    """Use a configured LM profile in this session."""

    profile: str
    overrides: JSONObject = {}


class LMResponse(Struct):
    profile: str
    model: str
    overrides: JSONObject
    offline: bool


class SessionProgram(Struct):
    program: str
    scope: Annotated[Literal["session", "pool"], Meta(description="the session's own, or the pool's")]
    version: int


class SessionProgramList(Struct):
    programs: list[SessionProgram]
    next_cursor: Cursor = None


class VariableList(Struct):
    variables: list[str]
    next_cursor: Cursor = None


class VariableRequest(Struct, forbid_unknown_fields=True):
    value: Annotated[Any, Meta(description="any JSON value")]


class Variable(Struct):
    name: str
    value: Any


class CodeRequest(Struct, forbid_unknown_fields=True):
    """Python for a sandbox. `variables` in it is the session's variables; changes to it are stored."""

    code: Annotated[str, Meta(min_length=1)]
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="deadline in seconds, queueing and the sandbox's start included"),
    ] = None


class CodeResponse(Struct):
    """What the code printed, and the value of its last expression; what is not JSON, as Python shows it."""

    stdout: str
    result: Any
    operation_id: str
    worker: str
    timings: Timings


class History(Struct):
    """The session's last operations, newest last. Inputs and outputs only where the pool keeps content."""

    operations: list[JSONObject]


class GoneRequest(Struct, forbid_unknown_fields=True):
    wait_s: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="how long to wait for the worker to be gone; capped by operation_timeout_s"),
    ] = None


class WorkerGone(Struct):
    """`gone` is false if the worker was still finishing its operations when the wait was over; it goes on."""

    worker: str
    gone: bool


class Load(Struct):
    """What the pool did lately; see the metrics snapshot for the rest."""

    window_s: Seconds
    throughput: Annotated[float, Meta(description="operations a second")]
    utilization: float
    queue_depth: int
    running: int
    sessions: int
    p50_s: Seconds
    p95_s: Seconds
    p99_s: Seconds
    wait_p95_s: Seconds
    error_rate: float
    health: float
    by_outcome: Annotated[dict[str, int], Meta(description="operations since the pool began")]


class PoolStats(Struct):
    """The pool in few figures. `load` is null when metrics are off or away."""

    name: str
    state: str
    ready: bool
    desired: int
    actual: int
    spares: int
    failures: int
    load: Load | None


class ConfigView(Struct):
    """The configuration that the pool runs with. Passwords in URLs are left out."""

    config: JSONObject


class ResizeRequest(Struct, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=0, le=10_000, description="min_pool_size to max_pool_size")]


class Resized(Struct):
    """The size the pool is now on its way to."""

    desired: int


class DecisionList(Struct):
    """Decisions about the size, newest first, each with the numbers that led to it."""

    decisions: list[DecisionRecord]


class RolloutList(Struct):
    """The last deployments with what their canaries did, newest first; one that runs shows how far it is."""

    rollouts: list[Rollout]


class Paused(Struct):
    paused: bool


class WarmRequest(Struct, forbid_unknown_fields=True):
    """Run the warm-up steps on every warm worker again, by default with the configured strategy."""

    strategy: Literal["parallel", "sequential", "staged"] | None = None


class TokenEvent(Struct):
    """`event: token`: the next piece of an output field."""

    field: str
    text: str


class FieldEvent(Struct):
    """`event: field`: an output field is complete."""

    field: str
    value: Any


class StatusEvent(Struct):
    """`event: status`: what the program does now."""

    text: str
