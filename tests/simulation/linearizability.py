"""Whether operations on one object, each at some moment between its call and its return, explain all answers.

Just-in-time linearization: Gavin Lowe, "Testing for linearizability" (2017). All ways in which the operations so far
can have taken effect are kept; an operation must have taken effect when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Operation = TypeVar("Operation")
State = TypeVar("State", bound=Hashable)

MOST = 200_000
"""Ways that are kept; more are not searched."""


class TooManyWays(Exception):
    """The search was given up."""


def linearizable(
    operations: Sequence[tuple[float, float | None, Operation]],
    initial: State,
    apply: Callable[[State, Operation], State | None],
) -> Operation | None:
    """None if there is such an order; else the operation whose return nothing explains.

    Args:
        operations: (called, returned, operation); one that never returned may take effect at any time, or never. Those
            with one object as operation are alike.
        apply: the state after an operation, or None if it cannot be the next one in this state.

    Raises:
        TooManyWays: it cannot be told.
    """
    moments = [(called, 0, number) for number, (called, _, _) in enumerate(operations)]
    moments += [
        (returned, 1, number) for number, (_, returned, _) in enumerate(operations) if returned is not None
    ]
    pending: set[int] = set()
    ways: set[tuple[State, frozenset[int]]] = {(initial, frozenset())}
    for _, returns, number in sorted(moments):
        if not returns:
            pending.add(number)
            continue
        explained: set[tuple[State, frozenset[int]]] = set()
        seen, open_ways = set(ways), list(ways)
        while open_ways:
            state, done = open_ways.pop()
            if number in done:
                explained.add((state, done - {number}))
                continue
            tried: set[int] = set()
            for other in sorted(pending - done):
                _, until, operation = operations[other]
                if until is None:
                    # Of several that are one and the same, and may take effect whenever, the first is as good as any.
                    if id(operation) in tried:
                        continue
                    tried.add(id(operation))
                after = apply(state, operation)
                if after is not None and (way := (after, done | {other})) not in seen:
                    seen.add(way)
                    open_ways.append(way)
            if len(seen) > MOST:
                raise TooManyWays
        if not explained:
            return operations[number][2]
        pending.discard(number)
        ways = explained
    return None
