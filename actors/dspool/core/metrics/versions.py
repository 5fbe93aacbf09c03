"""What each version of a pool program did on one worker: by this a canary is judged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dspool.messages import VersionNumbers

VERSIONS_KEPT: Final = 4
"""Of each program, those that came last: more than a roll-out compares."""
_COUNTED: Final = frozenset({"ok", "error", "timeout", "client_error"})
_LATE: Final = 0.9
"""A caller that left after so much of its deadline did so because the answer did not come."""


class VersionBook:
    """Adds up by program and version. Costs under a microsecond an operation; bounded by the programs deployed."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, list[float]]] = {}

    def ended(self, program: str, version: int, outcome: str, run_s: float, timeout_s: float) -> None:
        """An operation of it ended."""
        if outcome not in _COUNTED:
            # Refused before it ran, or nobody wants it any more: says nothing, unless it had run out of time.
            if outcome != "cancelled" or run_s < _LATE * timeout_s:
                return
            outcome = "timeout"
        row = self._row(program, version)
        row[0] += 1
        row[1] += outcome != "ok"
        row[2] += run_s

    def numbers(self, program: str, running: Iterable[tuple[int, float]]) -> dict[int, VersionNumbers]:
        """By version; `running` are the versions of what runs now, and for how long it has."""
        going: dict[int, list[float]] = {}
        for version, ran_s in running:
            now = going.setdefault(version, [0, 0.0])
            now[0] += 1
            now[1] += ran_s
        rows = self._rows.get(program, {})
        found = {}
        for version in rows.keys() | going.keys():
            operations, errors, run_s = rows.get(version, (0, 0, 0.0))
            count, so_far = going.get(version, (0, 0.0))
            found[version] = VersionNumbers(
                int(operations),
                int(errors),
                run_s / operations if operations else 0.0,
                int(count),
                so_far / count if count else 0.0,
            )
        return found

    def _row(self, program: str, version: int) -> list[float]:
        rows = self._rows.setdefault(program, {})
        row = rows.get(version)
        if row is None:
            row = rows[version] = [0, 0, 0.0]
            if len(rows) > VERSIONS_KEPT:
                del rows[next(iter(rows))]
        return row
