"""What a call of DSPy's native engine costs this process, and how many may run at once: corrections from outside.

All look for what they change by name; where DSPy is another than expected, it is left as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import threading
import types
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


def remember_routes() -> None:
    """Find the way to a model's server once, not up to four times a call.

    What is remembered: which engine and provider an LM with these client settings belongs to, and whether a proxy is
    between. The environment's proxies are read when a host is first called; changed later, they do not count.
    """
    for name in ("dspy.clients.execution", "dspy.clients.capabilities"):
        _replace(_module(name), "select_backend", choosing_once)
    _replace(_module("dspy.clients.capabilities"), "resolve", resolving_once)
    for name in ("_async", "_sync"):
        _replace(_module(f"dspy._vendor.lm15.transports.{name}"), "proxy_route_for", routing_once)
    pool = getattr(_module("dspy._vendor.lm15.transports._async"), "_AsyncConnectionPool", None)
    _replace(pool, "acquire_slot", take_free_slots)


def choosing_once(select_backend: Any) -> Any:
    """`select_backend`, asked once for each LM and what decides: model, provider list and client settings.

    Only for LMs that must use the native engine; for others variables of the environment decide too.
    """
    client_keys: frozenset[str] = getattr(
        _module("dspy.clients.backend_selection"), "CLIENT_KEYS", frozenset()
    )

    @functools.wraps(select_backend)
    def select(lm: Any, options: Any = None) -> Any:
        if getattr(lm, "_engine_spec", None) != "lm15":
            return select_backend(lm, options)
        clients = {
            key: value for key, value in {**lm.kwargs, **(options or {})}.items() if key in client_keys
        }
        decides = (lm.model, lm.model_type, getattr(lm, "_providers", None), clients)
        known = lm.__dict__.get("_dspool_backend")
        if known is None or known[0] != decides:
            known = lm._dspool_backend = (decides, select_backend(lm, options))
        return dataclasses.replace(known[1], clients=dict(known[1].clients))

    return select


def resolving_once(resolve: Any) -> Any:
    """`resolve`, asked once for each model that is called the usual way."""

    @functools.lru_cache(maxsize=_REMEMBERED)
    def once(model: str, model_type: str) -> Any:
        return resolve(types.SimpleNamespace(model=model, model_type=model_type))

    @functools.wraps(resolve)
    def resolved(lm: Any) -> Any:
        return resolve(lm) if getattr(lm, "_providers", None) else once(lm.model, lm.model_type)

    return resolved


def routing_once(proxy_route_for: Any) -> Any:
    """`proxy_route_for`, asked once for each host."""
    found: dict[tuple[Any, ...], Any] = {}

    @functools.wraps(proxy_route_for)
    def route(parsed: Any, *, proxy: Any, trust_env: bool) -> Any:
        key = (parsed.scheme, parsed.host, parsed.port, proxy, trust_env)
        if key not in found:
            if len(found) >= _REMEMBERED:
                found.clear()
            found[key] = proxy_route_for(parsed, proxy=proxy, trust_env=trust_env)
        return found[key]

    return route


def take_free_slots(acquire_slot: Any) -> Any:
    """`acquire_slot` of a pool of connections; with one free there is nothing to wait for, so no task and no timer."""

    @functools.wraps(acquire_slot)
    async def acquire(self: Any, timeout: float | None = None) -> None:
        if self._closed or self._slot.locked():
            await acquire_slot(self, timeout)
        else:
            await self._slot.acquire()

    return acquire


def _replace(there: Any, name: str, wrap: Any) -> None:
    now = getattr(there, name, None)
    if now is not None and not hasattr(now, "__wrapped__"):
        setattr(there, name, wrap(now))


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


__all__ = [
    "allow_connections",
    "choosing_once",
    "remember_models",
    "remember_routes",
    "remembering",
    "resolving_once",
    "routing_once",
    "take_free_slots",
]
