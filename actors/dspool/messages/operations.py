"""One operation on its way to a worker, and its result."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, Final, Literal, TypedDict

from msgspec import Struct

from dspool.errors import suggestion
from dspool.messages.commands import JSON, AnyCommand
from dspool.messages.programs import StorageLimits
from dspool.messages.versioned_pickle import Message


class Operation(Message, Struct, frozen=True, array_like=True):
    """A command on its way to a worker. `timeout_s` is the rest of its deadline when it leaves."""

    id: str
    command: AnyCommand
    timeout_s: float
    session: str | None = None
    principal: str | None = None
    traceparent: str | None = None
    limits: StorageLimits | None = None
    """What the principal's token says of them."""


class OperationOptions(TypedDict, total=False):
    """Options of an operation. None is the same as leaving one out."""

    session: str | None
    """The session it belongs to; operations of one session run in order, one at a time."""
    timeout_s: float | None
    """Deadline for queueing, retries and execution together; default `operation_timeout_s`."""
    idempotent: bool | None
    """Whether it may run again if its worker dies while it runs; by default what the configuration says of a pool
    program, yes for commands that only read, no for the rest. A stream is never repeated."""
    operation_id: str | None
    """Unique; made up if absent."""
    principal: str | None
    """On whose behalf it runs."""
    traceparent: str | None
    """W3C trace context."""
    limits: StorageLimits | None
    """How much its principal may keep, where that is not what the configuration says."""


class StreamEvent(Message, Struct, frozen=True, array_like=True):
    """One event of a stream: `kind` "token" (field, text), "field" (field, value), or "status" (text)."""

    kind: Literal["token", "field", "status"]
    field: str = ""
    value: JSON = None


class Result(Message, Struct, frozen=True, array_like=True, tag=0):
    """The answer to one operation. For a program, `result.answer` is short for `result.outputs["answer"]`.

    One shape from the worker to the caller. Whatever field it has hides a program's output of that name.
    """

    operation_id: str
    worker: str = ""
    value: JSON = None
    """What the command returned; for a program `{"outputs": {...}}`."""
    program_version: int = 0
    """Of the pool program that ran; 0 for a session's own program and other commands."""
    wait_s: float = 0.0
    """From submission to the start on a worker; on the way to the client, the worker's part of it."""
    run_s: float = 0.0
    usage: dict[str, dict[str, int | float]] = {}
    """Tokens by model, as the back end reported them, and `cost_usd` where `prices` has the model."""
    offline: bool = False
    """The embedded offline engine answered, not a language model."""
    cached: bool = False
    """A cache answered all that it asked of models: no model was asked now, and nothing of it costs anything."""
    truncated: bool = False
    """A model's answer was cut at `max_tokens`; what came still fits the signature."""

    @property
    def outputs(self) -> dict[str, JSON]:
        """The program's output fields by name.

        Raises:
            TypeError: the operation did not run a program.
        """
        outputs = self.value.get("outputs") if isinstance(self.value, dict) else None
        if isinstance(outputs, dict):
            return outputs
        raise TypeError("only execute_program and stream_program have outputs; see `value`")

    @property
    def cost_usd(self) -> float | None:
        """What its model calls cost, by `prices`; None when that has none of their models."""
        return total_cost(self.usage)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and isinstance(self.value, dict):
            outputs = self.value.get("outputs")
            if isinstance(outputs, dict) and name in outputs:
                return outputs[name]
        raise AttributeError(self._missing(name))

    def _missing(self, name: str) -> str:
        outputs = self.value.get("outputs") if isinstance(self.value, dict) else None
        if name.startswith("_") or not isinstance(outputs, dict):
            return f"this result has no {name}: it is not of a program; see `value`"
        like = suggestion(name, [*outputs, *self.__struct_fields__, "outputs", "cost_usd"])
        return f"no output {name}{like or '; it has ' + (', '.join(outputs) or 'none')}"

    def __repr__(self) -> str:
        """What a person looks for: the outputs, shortened, and who ran it for how long."""
        outputs = self.value.get("outputs") if isinstance(self.value, dict) else None
        fields = outputs if isinstance(outputs, dict) else {"value": self.value}
        shown = {
            **fields,
            "worker": self.worker,
            "operation_id": self.operation_id,
            "run_s": round(self.run_s, 6),
        }
        return f"Result({', '.join(f'{name}={_short.repr(value)}' for name, value in shown.items())})"


_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = 80
"""Of a long answer the beginning and the end."""


def total_cost(usage: Mapping[str, Mapping[str, int | float]]) -> float | None:
    """The sum of `cost_usd` over the models; None when none has one."""
    costs = [counts["cost_usd"] for counts in usage.values() if "cost_usd" in counts]
    return sum(costs) if costs else None


class Failure(Message, Struct, frozen=True, array_like=True, tag=1):
    """A worker's report of an operation that failed there. Times as in `Result`."""

    operation_id: str
    error: dict[str, JSON]
    """`PoolError.to_wire()` of the error that its caller gets."""
    wait_s: float = 0.0
    run_s: float = 0.0
    program_version: int = 0
    """As in `Result`."""
