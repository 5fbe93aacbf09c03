"""What a call of DSPy's native engine costs this process, and how many may run at once: two corrections from outside.

Both look for what they change by name; where DSPy is another than expected, it is left as it is.
"""

from __future__ import annotations

import functools
import importlib
import threading
from typing import Any

_ASKERS = ("dspy.clients.costs", "dspy.clients.capabilities")
_REMEMBERED = 512
_lock = threading.Lock()
_most = 100
"""Connections of one engine, as DSPy has it."""


def remember_models() -> None:
    """Look each model up once in DSPy's table of models, which does not change while a process lives.

    DSPy asks it three times a call: what the model can do, and what the answer cost. A name that is not in the
    table (an own model, a dated version) is searched for among all its entries each time: over a millisecond of
    the event loop.
    """
    table, askers = _module("dspy.clients.model_metadata"), [_module(name) for name in _ASKERS]
    look_up = getattr(table, "model_info", None)
    if look_up is None:
        return
    remembered = remembering(look_up)
    for asker in askers:
        if getattr(asker, "model_info", None) is look_up:
            asker.model_info = remembered


def remembering(look_up: Any) -> Any:
    """`look_up`, asked once for each model. Each caller gets a copy of its own."""

    @functools.lru_cache(maxsize=_REMEMBERED)
    def once(provider: str, model: str, namespaces: tuple[str, ...] | None) -> dict[str, Any]:
        found: dict[str, Any] = look_up(provider, model, namespaces=namespaces)
        return found

    @functools.wraps(look_up)
    def model_info(provider: str, model: str, *, namespaces: Any = None) -> dict[str, Any]:
        return dict(once(provider, model, None if namespaces is None else tuple(namespaces)))

    return model_info


def allow_connections(count: int) -> None:
    """Let each LM hold at least `count` connections at once: otherwise the 101st slot waits for one of 100."""
    global _most
    with _lock:
        execution = _module("dspy.clients.execution")
        config: Any = getattr(execution, "RouterConfig", None)
        plain: Any = getattr(config, "func", config)
        if count <= _most or "max_connections" not in getattr(plain, "__dataclass_fields__", ()):
            return
        _most = count
        execution.RouterConfig = functools.partial(plain, max_connections=count)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


__all__ = ["allow_connections", "remember_models", "remembering"]
