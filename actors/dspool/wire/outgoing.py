"""What one end has to send: sealed and written as fast as its transport takes it.

Until then a long message stays as it was encoded. Sealed at once it would lie in memory twice, and a third time in the
buffer of the transport; memory that is new for each message costs more than all else that is done with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from dspool.wire.records import RECORD_BYTES, Payload, Sealer


class Outgoing:
    def __init__(self, transport: asyncio.Transport, sealer: Sealer) -> None:
        self._transport, self._sealer = transport, sealer
        self._waiting: deque[tuple[Iterator[bytes], int, int]] = deque()
        """Records of messages, and their bytes: all, and those that count as small; empty unless it is paused."""
        self._paused = False
        self.waiting_bytes = 0
        """Of messages that have not left in full for the transport."""
        self.small_bytes = 0
        """The same without messages around a large payload."""

    def send(self, parts: tuple[Payload, ...]) -> None:
        """Send the message that `parts` make together, after all those before it."""
        if not self._paused and len(parts) == 1 and len(parts[0]) <= RECORD_BYTES:
            self._transport.write(self._sealer.record(parts[0]))
            return
        size = sum(map(len, parts))
        small = size if len(parts) == 1 else 0
        self._waiting.append((self._sealer.seal(parts), size, small))
        self.waiting_bytes += size
        self.small_bytes += small
        self._send_waiting()

    def pause(self) -> None:
        """The transport has enough."""
        self._paused = True

    def resume(self) -> None:
        """The transport has sent what it had."""
        self._paused = False
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting and not self._paused:
            records, size, small = self._waiting[0]
            for record in records:
                self._transport.write(record)
                # It may have called `pause`: then the next record is made when there is room for it. Or it has found
                # the connection lost: then none is.
                if self._paused or self._transport.is_closing():
                    return
            self._waiting.popleft()
            self.waiting_bytes -= size
            self.small_bytes -= small
