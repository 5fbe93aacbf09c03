"""Whether the processes of one installation may take the place of another's while the service runs. Pure."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from dspool.messages.versioned_pickle import Message

_ANEW: Final = "`dspool down`, then `dspool up` from this environment"


class Installation(Message, Struct, frozen=True, kw_only=True):
    """What an environment has, of which two must fit while one takes the place of the other."""

    dspool: str = ""
    """Empty: of a dspool that did not say so yet."""
    python: str = ""
    """Major and minor."""
    ray: str = ""
    exchange: int = 0
    """The version of what clients and workers say to each other."""
    environment: str = ""
    """Python's prefix."""
    code: str = ""
    """Where its dspool is."""

    def __str__(self) -> str:
        return f"dspool {self.dspool} in {self.environment}"


def is_same(running: Installation, new: Installation) -> bool:
    return (running.dspool, running.environment) == (new.dspool, new.environment)


def why_not(running: Installation, new: Installation) -> str:
    """Why `new` cannot take the place of what runs, and what to do instead; empty if it can."""
    if not running.dspool:
        return f"the service is of a dspool that cannot be upgraded while it runs: {_ANEW}"
    if _numbers(new.dspool) < _numbers(running.dspool):
        return f"this is dspool {new.dspool}, the service runs {running.dspool}, which is newer: {_ANEW}"
    for what, before, after in (
        ("Python", running.python, new.python),
        ("Ray", running.ray, new.ray),
    ):
        if before != after:
            return (
                f"the service runs with {what} {before}, and this environment has {after}: make one with {what} "
                f"{before}, or {_ANEW}"
            )
    if running.exchange != new.exchange:
        return (
            f"clients of dspool {running.dspool} cannot talk to workers of {new.dspool} (exchange "
            f"{running.exchange} and {new.exchange}): {_ANEW}"
        )
    return ""


def why_not_schema(found: int, *, known: int, running_from: int) -> str:
    """Why the store's tables, of version `found`, cannot become those of version `known` while the service runs."""
    if found > known:
        return f"the session store has schema version {found}, and this dspool knows {known}: install a newer one"
    if found < running_from:
        return (
            f"the session store has schema version {found}, whose change to {known} takes too long for a service that "
            f"runs: `dspool down`, back up, `dspool store migrate`, then `dspool up` from this environment"
        )
    return ""


def why_not_node(node: str, found: Installation | str, new: Installation) -> str:
    """Why a node is not ready for `new`; `found` is what its Python there has, or why it does not start."""
    if isinstance(found, str):
        return f"node {node} does not start {new.environment}: {found}"
    if (found.dspool, found.python, found.ray) != (new.dspool, new.python, new.ray):
        return (
            f"node {node} has dspool {found.dspool}, Python {found.python} and Ray {found.ray} at {new.environment}, "
            f"here it is dspool {new.dspool}, Python {new.python} and Ray {new.ray}: install the same on each"
        )
    if found.code != new.code:
        return (
            f"node {node} takes dspool from {found.code}, here it is {new.code}: install it at the same path on each, "
            "and have it in no PYTHONPATH"
        )
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    """Its release, to compare; what comes behind that (`rc1`, `+local`) does not count."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


__all__ = ["Installation", "is_same", "why_not", "why_not_node", "why_not_schema"]
