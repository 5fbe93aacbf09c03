"""Whether operations on one object, each at some moment between its call and its return, explain all answers.

Just-in-time linearization: Gavin Lowe, "Testing for linearizability" (2017). All ways in which the operations so far
can have taken effect are kept; an operation must have taken effect when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import inf
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
    kind: Callable[[Operation], Hashable] = id,
    may_wait: Callable[[State, Operation, Sequence[Operation]], bool] = lambda *_: False,
) -> Operation | None:
    """None if there is such an order; else the operation whose return nothing explains.

    Args:
        operations: (called, returned, operation); one that never returned may take effect at any time, or never.
        apply: the state after an operation, or None if it cannot be the next one in this state. An operation that only
            reads returns the state itself, the same object.
        kind: those of one kind have the same effect in each state.
        may_wait: whether an operation that never returned has as good a moment later; the third are those that it would
            come before.

    Raises:
        TooManyWays: it cannot be told.
    """
    moments = [(called, 0, number) for number, (called, _, _) in enumerate(operations)]
    moments += [
        (returned, 1, number) for number, (_, returned, _) in enumerate(operations) if returned is not None
    ]
    pending: set[int] = set()

    def returned_at(number: int) -> float:
        returned = operations[number][1]
        return inf if returned is None else returned

    def all_read(state: State, done: frozenset[int]) -> tuple[State, frozenset[int]]:
        # No later moment is better for a read that this state explains.
        return state, done.union(
            other for other in pending - done if apply(state, operations[other][2]) is state
        )

    ways: set[tuple[State, frozenset[int]]] = {(initial, frozenset())}
    for _, returns, number in sorted(moments):
        if not returns:
            pending.add(number)
            continue
        explained: set[tuple[State, frozenset[int]]] = set()
        open_ways = [all_read(*way) for way in ways]
        seen = set(open_ways)
        while open_ways:
            state, done = open_ways.pop()
            if number in done:
                explained.add((state, done - {number}))
                continue
            tried: set[Hashable] = set()
            left = sorted(pending - done, key=lambda other: (returned_at(other), other))
            for other in left:
                _, until, operation = operations[other]
                # Of one kind, that which returns first is as good as any.
                if kind(operation) in tried:
                    continue
                tried.add(kind(operation))
                if until is None and may_wait(state, operation, [operations[one][2] for one in left]):
                    continue
                after = apply(state, operation)
                if after is None:
                    continue
                way = all_read(after, done | {other})
                if way not in seen:
                    seen.add(way)
                    open_ways.append(way)
            if len(seen) > MOST:
                raise TooManyWays
        if not explained:
            return operations[number][2]
        pending.discard(number)
        ways = explained
    return None
