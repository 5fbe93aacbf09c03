"""Public doubles: a pool in the process of a test, a scripted model, a clock, workers that fail as they are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspool.programs.scripted import ModelCall, ModelReply, ScriptedLM
    from dspool.testing.doubles import FakeClock, FakeRuntime, FakeStore, FakeWorker
    from dspool.testing.host import ScriptedHost
    from dspool.testing.lm_server import LMServer
    from dspool.testing.local import BlockingLocalPool, local_pool

__all__ = [
    "BlockingLocalPool",
    "FakeClock",
    "FakeRuntime",
    "FakeStore",
    "FakeWorker",
    "LMServer",
    "ModelCall",
    "ModelReply",
    "ScriptedHost",
    "ScriptedLM",
    "local_pool",
]

_HOMES = {
    "BlockingLocalPool": "dspool.testing.local",
    "FakeClock": "dspool.testing.doubles",
    "FakeRuntime": "dspool.testing.doubles",
    "FakeStore": "dspool.testing.doubles",
    "FakeWorker": "dspool.testing.doubles",
    "LMServer": "dspool.testing.lm_server",
    "ModelCall": "dspool.programs.scripted",
    "ModelReply": "dspool.programs.scripted",
    "ScriptedHost": "dspool.testing.host",
    "ScriptedLM": "dspool.programs.scripted",
    "local_pool": "dspool.testing.local",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the pytest plugin lies beside them, and tests that use none of them must not wait for DSPy.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dspool.testing' has no attribute {name!r}")
