"""Metrics as DSPy has them: a function of an example and a prediction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import dspy

from dspool.messages import JSON


def score_of(
    metric: Callable[..., Any], example: dict[str, JSON], inputs: Iterable[str], outputs: dict[str, JSON]
) -> float:
    """What a metric says: `(example, prediction, trace=None)` to a number, a bool, or a prediction with a `score`.

    Args:
        inputs: which fields of the example the program gets.

    Raises:
        TypeError: that is no number. Exception: whatever the metric raises.
    """
    given = dspy.Example(**example).with_inputs(*inputs), dspy.Prediction(**outputs)
    found = metric(*given, None) if _takes_trace(metric) else metric(*given)
    score = found.get("score") if isinstance(found, dspy.Prediction) else found
    if not isinstance(score, bool | int | float):
        raise TypeError(f"a metric gives a number or a bool, this gave a {type(score).__name__}")
    return float(score)


def _takes_trace(metric: Callable[..., Any]) -> bool:
    try:
        inspect.signature(metric).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # built in: nobody knows
        return True
    return True
