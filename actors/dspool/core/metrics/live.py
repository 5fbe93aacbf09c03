"""What somebody who keeps looking at a pool is told: few bytes for a second, and history by column.

A `Point` a second is right for a program; a chart of an hour would be 3,600 of them. Here a column is the bytes of an
array, which costs its maker and its reader next to nothing.
"""

from __future__ import annotations

from array import array

from msgspec import Struct

from dspool.core.metrics.measures import MetricsSnapshot
from dspool.messages import PoolStatus


class Table(Struct, frozen=True, array_like=True):
    """Rows of one account, oldest first. Values are 4-byte floats; times are wall-clock seconds (8 bytes)."""

    resolution_s: float
    last: float
    """End of the newest row on the teller's own clock: what to ask for next is what comes after it."""
    ends: bytes
    columns: dict[str, bytes]

    def times(self) -> array[float]:
        return array("d", self.ends)

    def column(self, name: str) -> array[float]:
        return array("f", self.columns[name])


class LiveUpdate(Struct, frozen=True, array_like=True):
    """The pool now, and the rows since the last look."""

    life: str
    """Changes when the teller begins anew: then its clock and its rows may be others."""
    snapshot: MetricsSnapshot
    """Without its workers if they were not asked for."""
    table: Table
    status: PoolStatus | None
    """The supervisor's last report; None when it fell silent."""


__all__ = ["LiveUpdate", "Table"]
