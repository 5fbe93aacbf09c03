"""What a caller gets back."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from dspool.commands import JSON


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
