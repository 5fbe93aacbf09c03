"""A metric as users write one, for `dspool eval`."""

from __future__ import annotations

from typing import Any


def right(example: Any, prediction: Any, trace: Any = None) -> bool:
    return str(example.expected).lower() in str(prediction.answer).lower()


def graded(example: Any, prediction: Any) -> float:
    return len(prediction.answer) / 1000


def strict(example: Any, prediction: Any, trace: Any = None) -> bool:
    if example.expected == "nothing":
        raise LookupError("no such label")
    return right(example, prediction)
