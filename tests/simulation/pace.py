"""How often the engine looks after itself in a simulation: in a long seed a twentieth as often as its constants say.

A day in which little happens is made of such looks. They are compared with nothing but each other, so that all of them
twenty times as slow is another engine of the same kind; the short seeds have the constants as they are.
"""

from __future__ import annotations

import importlib

SLOWER = 20.0
_CONSTANTS = (
    ("dspool.client.links", "LOOK_S"),
    ("dspool.worker.listener", "LOOK_S"),
    ("dspool.worker.worker", "_KEEP_INTERVAL_S"),
    ("dspool.supervisor.placement", "LOOK_EVERY_S"),
    ("dspool.store.serving", "HEARTBEAT_S"),
    ("dspool.store.serving", "TAKE_OVER_S"),
)
_as_they_are = {(module, name): getattr(importlib.import_module(module), name) for module, name in _CONSTANTS}


def set_pace(*, is_long: bool) -> None:
    """For all that starts from now on."""
    for (module, name), seconds in _as_they_are.items():
        setattr(importlib.import_module(module), name, seconds * (SLOWER if is_long else 1.0))


__all__ = ["SLOWER", "set_pace"]
