"""Models that say which one they are."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import dspy
from dspy.utils import DummyLM


class SaysItsName(DummyLM):
    def __init__(self, name: str, **more: Any) -> None:
        super().__init__([], **more)
        self.answers = repeat({"answer": name})
        self.model = name


class Noting(dspy.utils.callback.BaseCallback):
    """Writes down what begins and ends."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.seen.append(f"{type(instance).__name__} begins")

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.seen.append("module ends" if exception is None else f"module fails: {type(exception).__name__}")

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.seen.append(f"asks {instance.model}")

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.seen.append(f"uses {instance.name}")


class Broken(dspy.utils.callback.BaseCallback):
    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        raise ValueError("the tracing is broken")

    on_lm_start = on_module_end = on_lm_end = on_module_start  # type: ignore[assignment]
