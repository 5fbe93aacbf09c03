"""Whose settings a call of `dspy.configure` changes, and what a `dspy.context` costs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import Token
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


def shorten_contexts() -> None:
    """Have each `dspy.context` copy all settings once; a second time changes nothing."""
    dspy: Any = importlib.import_module("dspy")
    kind = type(dspy.settings)
    if not active("dspy-settings-context") or not hasattr(getattr(kind, "context", None), "__wrapped__"):
        return
    # A generator's context manager is a wrapper, ours is not.
    module = importlib.import_module("dspy.dsp.utils.settings")
    layers, new_layer = module.thread_local_overrides, module.dotdict

    class Context(ContextDecorator):
        """What `dspy.context` gives: in its block the settings are those around it with `changes`."""

        __slots__ = ("_changes", "_token")
        _token: Token[Any]

        def __init__(self, changes: dict[str, Any]) -> None:
            self._changes = changes

        def __enter__(self) -> None:
            layer = new_layer(module.main_thread_config)
            layer.update(layers.get())
            layer.update(self._changes)
            self._token = layers.set(layer)

        def __exit__(self, *raised: object) -> None:
            layers.reset(self._token)

        def _recreate_cm(self) -> Context:
            return Context(self._changes)

    def context(self: Any, **changes: Any) -> Context:
        return Context(changes)

    context.__doc__ = kind.context.__doc__
    kind.context = context
    dspy.context = dspy.settings.context


__all__ = ["divert_settings", "shorten_contexts"]
