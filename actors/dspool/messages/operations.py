"""One operation on its way to a worker, and what comes back."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from dspool.messages.commands import JSON, AnyCommand


class Operation(Struct, frozen=True, array_like=True):
    """A command on its way to a worker. `timeout_s` is what is left of the deadline when it is sent."""

    id: str
    command: AnyCommand
    timeout_s: float
    session: str | None = None
    principal: str | None = None
    traceparent: str | None = None


class Usage(Struct, frozen=True):
    """Tokens the LM back end reported, summed over the calls of one operation, by model name."""

    by_model: dict[str, dict[str, int]] = {}

    @property
    def total_tokens(self) -> int:
        return sum(usage.get("total_tokens", 0) for usage in self.by_model.values())


class Finished(Struct, frozen=True, array_like=True):
    """How one operation ended: `error` is None, or a `PoolError.to_wire()` dict and `value` is None."""

    id: str
    value: JSON = None
    error: dict[str, JSON] | None = None
    run_s: float = 0.0
    wait_s: float = 0.0
    """Time the worker held it before it started (behind another operation of its session)."""
    usage: dict[str, dict[str, int]] = {}
    offline: bool = False
    program_version: int = 0


class StreamEvent(Struct, frozen=True, array_like=True):
    """One event of a stream: `kind` "token" (field, text), "field" (field, value), or "status" (text)."""

    kind: Literal["token", "field", "status"]
    field: str = ""
    value: JSON = None


class Result(Struct, frozen=True):
    """The answer to one operation. For a program, `result.answer` is short for `result.outputs["answer"]`."""

    operation_id: str
    worker: str
    value: JSON
    """What the command returned; for a program `{"outputs": {...}}`."""
    program_version: int
    """Of the pool program that ran; 0 for a session's own program and other commands."""
    wait_s: float
    """From submission to the start on a worker."""
    run_s: float
    usage: dict[str, dict[str, int]]
    """Tokens by model, as the back end reported them."""
    offline: bool
    """The embedded offline engine answered, not a language model."""

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

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and isinstance(self.value, dict):
            outputs = self.value.get("outputs")
            if isinstance(outputs, dict) and name in outputs:
                return outputs[name]
        raise AttributeError(name)
