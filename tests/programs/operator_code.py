"""What an operator adds to the pool of the tutorials: a callback for all programs, as tracing libraries install one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback


class Heard(BaseCallback):
    """Writes down what is asked; one file for each worker."""

    def __init__(self, place: Path) -> None:
        self.file = place / f"{os.getpid()}.heard"
        self.file.write_text("")

    def _write(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{line}\n")

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._write(f"module {type(instance).__name__}")

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._write(f"model {instance.model}")

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._write(f"tool {instance.name}")


async def setup() -> None:
    dspy.configure(callbacks=[Heard(Path(os.environ["NOTED_DIR"]))])
