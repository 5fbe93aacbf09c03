"""Whose settings a call of `dspy.configure` changes."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from dspool.corrections import active

Take = Callable[[dict[str, Any]], bool]
"""Gets what is to change. True: it took it, and the process's settings stay as they are."""


def divert_settings(take: Take, keeps_cache: Callable[[], bool]) -> None:
    """Let `take` have what `dspy.configure` and its other forms are called with; a second time changes nothing.

    While `keeps_cache()`, `dspy.configure_cache` does nothing.
    """
    dspy: Any = importlib.import_module("dspy")
    kind = type(dspy.settings)
    if not active("dspy-program-settings") or hasattr(kind.configure, "__wrapped__"):
        return
    # Assignments to `dspy.settings` go through it, too.
    kind.configure = _diverting(kind.configure, take)
    dspy.configure = dspy.settings.configure
    configure_cache = _unless(keeps_cache, dspy.configure_cache)
    dspy.configure_cache = dspy.clients.configure_cache = configure_cache


def _diverting(configure: Any, take: Take) -> Any:
    @functools.wraps(configure)
    def diverted(self: Any, **changes: Any) -> None:
        if not take(changes):
            configure(self, **changes)

    return diverted


def _unless(off: Callable[[], bool], function: Any) -> Any:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> None:
        if not off():
            function(*args, **kwargs)

    return called


__all__ = ["divert_settings"]
