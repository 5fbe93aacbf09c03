"""Whose turn it is when only so many requests may run at once: fair between keys, interactive before batch.

Pure: the shell (`dspool_serve.access.admission`) waits and wakes; this decides. Among the keys that wait, the one that
has the fewest places in proportion to its weight goes first, and among equals the one that was served least
lately. So a key with a thousand waiting requests and a key with one share the room in halves, and a newcomer gets
the next free place, however long the others' operations run.

Batch work gets a place when nothing interactive waits, and one place in `INTERACTIVE_RUN + 1` even when something
does: it may be slow, but never starved by those who call everything interactive.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

from dspool.errors import QueueFull

Priority = Literal["interactive", "batch"]
INTERACTIVE_RUN: Final = 8
"""Interactive places in a row, while batch work waits."""


class Entry:
    """One request. `FairQueue` sets `admitted` once."""

    __slots__ = ("admitted", "key", "left", "priority")

    def __init__(self, key: str, priority: Priority) -> None:
        self.key = key
        self.priority: Priority = priority
        self.admitted = False
        self.left = False


class _Key:
    __slots__ = ("places", "served", "waiting", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.places = 0
        self.served = 0.0
        """Places given, divided by weight: the key's place in virtual time."""
        self.waiting: dict[Priority, deque[Entry]] = {"interactive": deque(), "batch": deque()}

    @property
    def count(self) -> int:
        return sum(map(len, self.waiting.values()))


class FairQueue:
    """A bounded room with a bounded queue for each key.

    Args:
        max_waiting: requests of one key that may wait; one more is refused.
    """

    def __init__(self, *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._keys: dict[str, _Key] = {}
        self._places = 0
        self._waiting = 0
        self._now = 0.0
        """Virtual time: where the key served last stands."""
        self._interactive_in_a_row = 0

    @property
    def places(self) -> int:
        """Places taken."""
        return self._places

    @property
    def waiting(self) -> int:
        return self._waiting

    def arrive(
        self, key: str, priority: Priority, *, room: int, weight: float = 1.0, max_places: int | None = None
    ) -> Entry:
        """A request comes. Its `admitted` says whether it may go in at once.

        Args:
            room: places there are now (a pool grows and shrinks).
            max_places: places this key may have at once; beyond, it waits even while there is room.

        Raises:
            QueueFull: the key's own queue is full. Other keys are not affected.
        """
        state = self._keys.get(key)
        if state is None:
            state = self._keys[key] = _Key(weight)
            # A key that was away starts level with the others: absence earns no credit.
            state.served = self._now
        elif state.count == 0:
            state.served = max(state.served, self._now)
        state.weight = weight
        entry = Entry(key, priority)
        if self._places < room and self._waiting == 0 and (max_places is None or state.places < max_places):
            self._admit(state, entry)
        else:
            if state.count >= self._max_waiting:
                raise QueueFull(
                    f"{self._max_waiting} requests of this key wait already",
                    retry_after_s=1.0,
                    scope="key",
                )
            state.waiting[priority].append(entry)
            self._waiting += 1
        return entry

    def leave(self, entry: Entry) -> None:
        """The request ended, or its caller went away while it waited. A second call does nothing."""
        if entry.left:
            return
        entry.left = True
        state = self._keys[entry.key]
        if entry.admitted:
            state.places -= 1
            self._places -= 1
        else:
            state.waiting[entry.priority].remove(entry)
            self._waiting -= 1
        if state.places == 0 and state.count == 0 and state.served <= self._now:
            # Forget a key that owes nothing: keys may come and go without end.
            del self._keys[entry.key]

    def next(self, *, room: int, max_places: dict[str, int] | None = None) -> Entry | None:
        """Who goes in now; call until None: the room is full, or nobody may."""
        if self._places >= room or self._waiting == 0:
            return None
        order: tuple[Priority, Priority] = ("interactive", "batch")
        if self._interactive_in_a_row >= INTERACTIVE_RUN:
            order = ("batch", "interactive")
        for priority in order:
            winner = self._choose(priority, max_places or {})
            if winner is not None:
                entry = winner.waiting[priority].popleft()
                self._waiting -= 1
                self._admit(winner, entry)
                in_a_row = self._interactive_in_a_row
                self._interactive_in_a_row = in_a_row + 1 if priority == "interactive" else 0
                return entry
        return None

    def _choose(self, priority: Priority, max_places: dict[str, int]) -> _Key | None:
        candidates = [
            (state.places / state.weight, state.served, name)
            for name, state in self._keys.items()
            if state.waiting[priority] and state.places < max_places.get(name, self._places + 1)
        ]
        return self._keys[min(candidates)[2]] if candidates else None

    def _admit(self, state: _Key, entry: Entry) -> None:
        entry.admitted = True
        state.places += 1
        self._places += 1
        state.served += 1.0 / state.weight
        self._now = max(self._now, state.served - 1.0 / state.weight)


__all__ = ["INTERACTIVE_RUN", "Entry", "FairQueue", "Priority"]
