"""What one call of a model costs in DSPy beside the model, how many run at once, and what it prints.

Each correction looks for what it changes by name and leaves it alone where it is not there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib
import json
import logging
import re
import sys
import threading
import types
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from typing import Any, Final

from dspool.corrections import active
from dspool.corrections.dspy_answers import within_time
from dspool.corrections.dspy_signatures import running_nothing
from dspool.errors import type_of

log = logging.getLogger(__name__)

_MODEL_TABLE_USERS = ("dspy.clients.costs", "dspy.clients.capabilities")
_REMEMBERED = 512
_SHORT_HOPS: Final[dict[str | None, str]] = {
    "prepare": "dspy.clients.execution",
    "_price_result": "dspy.clients.execution",
    "capabilities": "dspy.clients.capabilities",
    "_target": "dspy.clients.engines.lm15_engine",
}
"""Names, and the modules that have them. The cache's functions are not among them: they may read and write files."""

_lock = threading.Lock()
_connections = 100
"""Connections of one engine, as DSPy has it."""


def correct_dspy() -> None:
    """Make the corrections that are on and need no setting. A second time changes nothing."""
    if active("dspy-model-table"):
        _remember_models()
    if active("dspy-engine-choice"):
        for name in ("dspy.clients.execution", "dspy.clients.capabilities"):
            _replace(_module(name), "select_backend", choosing_once)
        _replace(_module("dspy.clients.capabilities"), "resolve", resolving_once)
    if active("dspy-proxy-route"):
        for name in ("_async", "_sync"):
            _replace(_module(f"dspy._vendor.lm15.transports.{name}"), "proxy_route_for", routing_once)
    if active("dspy-free-connection"):
        pool = getattr(_module("dspy._vendor.lm15.transports._async"), "_AsyncConnectionPool", None)
        _replace(pool, "acquire_slot", taking_free_slots)
    if active("dspy-lean-call"):
        _replace(
            getattr(_module("dspy.clients.engines.lm15_engine"), "_Routing", None),
            "resolve",
            routing_model_once,
        )
        _replace(_module("dspy.clients.execution"), "timeouts_for", timing_once)
        _replace(
            _module("dspy._vendor.lm15.providers.openai_chat"), "resolve_openai_chat_compat", reading_once
        )
        if getattr(costs := _module("dspy.clients.costs"), "re", None) is re:
            costs.re = types.SimpleNamespace(search=functools.lru_cache(maxsize=2 * _REMEMBERED)(re.search))
        if getattr(listener := _module("dspy.streaming.streaming_listener"), "Queue", None) is Queue:
            listener.Queue = TokenQueue
    if active("dspy-short-hops"):
        _replace(asyncio, "to_thread", hopping)
    if active("dspy-attempt-output"):
        for name in ("dspy.predict.best_of_n", "dspy.predict.refine"):
            if (module := _module(name)) is not None:
                module.print = _log_attempt
    if active("dspy-list-items"):
        _replace(_module("dspy.adapters.utils"), "_format_blob", writing_any_item)
    if active("dspy-answer-repair"):
        _replace(_module("json_repair.json_repair"), "JSONParser", within_time)
    if active("dspy-signature-text"):
        _replace(_module("dspy.signatures.signature"), "_parse_type_node", running_nothing)


def allow_connections(count: int) -> None:
    """Let each LM hold at least `count` connections at once: otherwise the 101st slot waits for one of 100."""
    global _connections
    if not active("dspy-connection-limit"):
        return
    with _lock:
        execution = _module("dspy.clients.execution")
        config: Any = getattr(execution, "RouterConfig", None)
        plain: Any = getattr(config, "func", config)
        if count <= _connections or "max_connections" not in getattr(plain, "__dataclass_fields__", ()):
            return
        _connections = count
        execution.RouterConfig = functools.partial(plain, max_connections=count)


# --- looked up once ---------------------------------------------------------------------------------


def _remember_models() -> None:
    look_up = getattr(_module("dspy.clients.model_metadata"), "model_info", None)
    for user in map(_module, _MODEL_TABLE_USERS):
        if look_up is not None and getattr(user, "model_info", None) is look_up:
            user.model_info = remembering(look_up)


def remembering(look_up: Any) -> Any:
    """`look_up`, called once for each model. Each caller gets a copy of its own."""

    @functools.lru_cache(maxsize=_REMEMBERED)
    def once(provider: str, model: str, namespaces: tuple[str, ...] | None) -> dict[str, Any]:
        info: dict[str, Any] = look_up(provider, model, namespaces=namespaces)
        return info

    @functools.wraps(look_up)
    def model_info(provider: str, model: str, *, namespaces: Any = None) -> dict[str, Any]:
        return dict(once(provider, model, None if namespaces is None else tuple(namespaces)))

    return model_info


def choosing_once(select_backend: Any) -> Any:
    """`select_backend`, called once for each LM and what decides: model, provider list and client settings.

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
        key = (lm.model, lm.model_type, getattr(lm, "_providers", None), clients)
        choice = lm.__dict__.get("_dspool_backend")
        if choice is None or choice[0] != key:
            choice = lm._dspool_backend = (key, select_backend(lm, options))
        return dataclasses.replace(choice[1], clients=dict(choice[1].clients))

    return select


def resolving_once(resolve: Any) -> Any:
    """`resolve`, called once for each model that is called the usual way."""

    @functools.lru_cache(maxsize=_REMEMBERED)
    def once(model: str, model_type: str) -> Any:
        return resolve(types.SimpleNamespace(model=model, model_type=model_type))

    @functools.wraps(resolve)
    def resolved(lm: Any) -> Any:
        return resolve(lm) if getattr(lm, "_providers", None) else once(lm.model, lm.model_type)

    return resolved


def routing_once(proxy_route_for: Any) -> Any:
    """`proxy_route_for`, called once for each host. Proxy variables that change later do not count."""
    routes: dict[tuple[Any, ...], Any] = {}

    @functools.wraps(proxy_route_for)
    def route(parsed: Any, *, proxy: Any, trust_env: bool) -> Any:
        key = (parsed.scheme, parsed.host, parsed.port, proxy, trust_env)
        if key not in routes:
            if len(routes) >= _REMEMBERED:
                routes.clear()
            routes[key] = proxy_route_for(parsed, proxy=proxy, trust_env=trust_env)
        return routes[key]

    return route


def routing_model_once(resolve: Any) -> Any:
    """An engine's `resolve`, called once for each model. One that is more than a name may say its provider itself."""

    @functools.wraps(resolve)
    def resolved(self: Any, model: Any) -> Any:
        if type(model) is not str:
            return resolve(self, model)
        routes = self.__dict__.setdefault("_dspool_routes", {})
        if model not in routes:
            if len(routes) >= _REMEMBERED:
                routes.clear()
            routes[model] = resolve(self, model)
        return routes[model]

    return resolved


def timing_once(timeouts_for: Any) -> Any:
    """`timeouts_for`, called once for each number of seconds."""
    once = functools.lru_cache(maxsize=_REMEMBERED)(timeouts_for)

    @functools.wraps(timeouts_for)
    def timeouts(timeout: Any) -> Any:
        return once(timeout) if type(timeout) in (int, float) or timeout is None else timeouts_for(timeout)

    return timeouts


def reading_once(resolve_compat: Any) -> Any:
    """`resolve_openai_chat_compat`, called once for each dialect, which nothing changes."""
    resolved: dict[int, tuple[Any, Any]] = {}

    @functools.wraps(resolve_compat)
    def compat_of(partial: Any) -> Any:
        found = resolved.get(id(partial))
        # The dialect is kept too: its number belongs to nothing else meanwhile.
        if found is None or found[0] is not partial:
            if len(resolved) >= _REMEMBERED:
                resolved.clear()
            found = resolved[id(partial)] = (partial, resolve_compat(partial))
        return found[1]

    return compat_of


class TokenQueue:
    """What a listener of a stream uses of `queue.Queue`. It makes one for each token, in one thread, and a real one is
    a lock and three conditions."""

    __slots__ = ("queue",)

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()

    def put(self, token: Any) -> None:
        self.queue.append(token)

    def get(self) -> Any:
        return self.queue.popleft()

    def qsize(self) -> int:
        return len(self.queue)


def taking_free_slots(acquire_slot: Any) -> Any:
    """`acquire_slot` of a pool of connections; with one free there is nothing to wait for, so no task and no timer."""

    @functools.wraps(acquire_slot)
    async def acquire(self: Any, timeout: float | None = None) -> None:
        if self._closed or self._slot.locked():
            await acquire_slot(self, timeout)
        else:
            await self._slot.acquire()

    return acquire


def writing_any_item(format_blob: Any) -> Any:
    """`_format_blob`, which writes an item of a list into a prompt; one that is no text as JSON."""

    @functools.wraps(format_blob)
    def write(blob: Any) -> Any:
        if not isinstance(blob, str):
            blob = json.dumps(_module("dspy.adapters.utils").serialize_for_json(blob), ensure_ascii=False)
        return format_blob(blob)

    return write


def _replace(owner: Any, name: str, wrap: Any) -> None:
    original = getattr(owner, name, None)
    if original is not None and not hasattr(original, "__wrapped__"):
        setattr(owner, name, wrap(original))


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _log_attempt(*_: object) -> None:
    log.debug("an attempt of a program failed")


# --- short hops -------------------------------------------------------------------------------------


def hopping(to_thread: Any) -> Any:
    """`asyncio.to_thread`, which runs DSPy's own short functions where they are, and everything else in a thread."""

    @functools.wraps(to_thread)
    async def to_thread_or_here(func: Any, /, *args: Any, **kwargs: Any) -> Any:
        if _is_short(func, args):
            return func(*args, **kwargs)
        return await to_thread(func, *args, **kwargs)

    return to_thread_or_here


def _is_short(func: Any, args: tuple[Any, ...]) -> bool:
    name = getattr(func, "__name__", None)
    module = _SHORT_HOPS.get(name)
    if module is None or module != getattr(func, "__module__", None):
        return False
    if name == "capabilities":
        # Asked about a model of litellm it imports litellm first, which takes seconds.
        engine = getattr(args[0], "engine", None) if args else None
        return engine != "litellm" or "litellm" in sys.modules
    return True


class Threads(ThreadPoolExecutor):
    """For `loop.set_default_executor(...)`: whatever a function raises reaches who waits for it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(_arriving, fn, args, kwargs)


def _arriving(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return fn(*args, **kwargs)
    except StopIteration as stop:
        # asyncio's future does not take it from the thread's, and whoever awaits that would wait for ever.
        raise RuntimeError(f"{type_of(stop)} was raised in a thread") from stop


__all__ = ["Threads", "allow_connections", "correct_dspy"]
