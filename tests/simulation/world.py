"""Clocks and chance of a simulation, put in the place of Python's own before anything of the engine is imported.

The engine reads clocks as `time.monotonic` and `time.time`, and some of its defaults bind them when a module is
imported: hence the replacement is a function that asks which world is current.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
import uuid
from collections.abc import Callable

WALL_EPOCH = 1_700_000_000.0
_BOOT = 1_000.0
"""Monotonic time at the start: a clock that begins at 0 would hide differences that are taken for times."""


LONG_SHARE = 0.03


def is_long(seed: int) -> bool:
    """Most seeds are a minute of much; some are a long day, for what only time shows."""
    return random.Random(seed).random() < LONG_SHARE


class World:
    """The time and the dice of one simulation."""

    def __init__(self, seed: int) -> None:
        self.now = _BOOT
        """Seconds of the monotonic clock, the same for all processes."""
        self.jumped_s: dict[str, float] = {}
        """How far the wall clock of each node is off; faults make it jump."""
        self.node: Callable[[], str] = lambda: ""
        """The node whose process runs now."""
        self.dice = random.Random(seed)

    def wall(self) -> float:
        """The wall clock of the node that asks."""
        return self.now + WALL_EPOCH - _BOOT + self.jumped_s.get(self.node(), 0.0)

    @property
    def simulated_s(self) -> float:
        return self.now - _BOOT


class _Current:
    world = World(0)


def enter(seed: int) -> World:
    """Make a new world the current one. All chance comes from `seed`."""
    _Current.world = World(seed)
    random.seed(seed ^ 0x5EED)
    return _Current.world


def _monotonic() -> float:
    return _Current.world.now


def _wall() -> float:
    return _Current.world.wall()


def _uuid4() -> uuid.UUID:
    return uuid.UUID(int=_Current.world.dice.getrandbits(128), version=4)


def _token_hex(size: int | None = None) -> str:
    return _Current.world.dice.randbytes(size or 16).hex()


def install() -> None:
    """Replace them, once, in this process."""
    if "dspool" in sys.modules:
        raise RuntimeError("the engine is imported already: its defaults have the real clocks")
    time.monotonic = _monotonic
    time.monotonic_ns = lambda: int(_monotonic() * 1e9)
    time.perf_counter = _monotonic
    time.time = _wall
    time.time_ns = lambda: int(_wall() * 1e9)
    uuid.uuid4 = _uuid4
    secrets.token_hex = _token_hex
    secrets.token_bytes = lambda size=32: _Current.world.dice.randbytes(size)
    os.environ["TZ"] = "UTC"
