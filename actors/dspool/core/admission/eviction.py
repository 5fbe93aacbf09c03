"""Which principal's idle session leaves a full worker, so that nobody's flood takes another's place. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal


def evicted_principal(
    held: Mapping[str | None, float], idle: Iterable[str | None], newcomer: str | None
) -> str | Literal[False] | None:
    """The principal that gives up a session for one more of `newcomer`; False: nobody has to.

    Args:
        held: what each principal has on the worker, the new one included: sessions, or bytes.
        idle: the principals with an idle session.

    The one that has most gives. Nobody gives for one that has more than itself: then the newcomer's own idle
    session goes, or there is no place for the new one.
    """
    own = held.get(newcomer, 0)
    candidates = [principal for principal in set(idle) if principal == newcomer or held[principal] >= own]
    if not candidates:
        return False
    # Among equals the newcomer's own: that is no worse for it, and better for the others.
    return max(candidates, key=lambda principal: (held[principal], principal == newcomer))


__all__ = ["evicted_principal"]
