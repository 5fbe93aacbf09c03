"""What a worker's clients hear: gathered while the loop turns, sent once a turn, bounded if they do not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from msgspec import Raw

from dspool.errors import InternalError
from dspool.messages import Failure, Result, StreamEvent
from dspool.wire.frames import Chunk, Report, Unsendable, batches, check_depth, sendable
from dspool.worker.execution import ClientPeer


class Outbox:
    """`load` returns (running operations, slots) as of now; slots are 0 while the worker takes nothing."""

    def __init__(self, load: Callable[[], tuple[int, int]]) -> None:
        self._load = load
        self._unsent: dict[ClientPeer, None] = {}
        self._refused: dict[ClientPeer, None] = {}
        """Clients that heard "busy" and not yet of room, longest waiting first."""
        self._flush_due = False

    def __bool__(self) -> bool:
        return bool(self._unsent)

    def finished(self, peer: ClientPeer, end: Result | Failure) -> None:
        if not peer.closed:
            peer.finished.append(_encoded(end))
            self._unsent[peer] = None

    def busy(self, peer: ClientPeer, operation_id: str) -> None:
        peer.busy.append(operation_id)
        self._unsent[peer] = self._refused[peer] = None

    def moved(self, peer: ClientPeer, operation_id: str, owner: str) -> None:
        if not peer.closed:
            peer.moved.append((operation_id, owner))
            self._unsent[peer] = None

    def handed_over(self, peer: ClientPeer, session: str, granted: bool) -> None:
        if not peer.closed:
            peer.handed_over.append((session, granted))
            self._unsent[peer] = None

    def chunk(self, peer: ClientPeer, operation_id: str, event: StreamEvent) -> None:
        """Raises InternalError: the event cannot be sent."""
        try:
            if type(event.field) is not str:
                # The client decodes strictly, and would drop the connection.
                raise Unsendable("its field is no text")
            check_depth(event.value)
            encoded = sendable(event)
        except Unsendable as refused:
            raise InternalError(f"an event of the stream cannot be sent: {refused}") from None
        if not peer.closed:
            peer.chunks.setdefault(operation_id, []).append(encoded)
            self._unsent[peer] = None

    def report_load(self, peer: ClientPeer) -> None:
        """Send it the load."""
        self._unsent[peer] = None

    def drop(self, peer: ClientPeer) -> None:
        """The client is gone."""
        peer.closed = True
        self._unsent.pop(peer, None)
        self._refused.pop(peer, None)

    def flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self._flush_due = False
        running, slots = self._load()
        if self._refused and running < slots:
            # Whoever heard "busy" hears that there is room now. Those that do not keep up with reading hear of it
            # when they have caught up.
            for peer in [peer for peer in self._refused if not peer.end.full]:
                del self._refused[peer]
                self._unsent[peer] = None
        unsent, self._unsent = self._unsent, {}
        for peer in unsent:
            _send(peer, running, slots)


def _send(peer: ClientPeer, running: int, slots: int) -> None:
    end, own = peer.end, len(peer.executions)
    if peer.chunks:
        chunks, peer.chunks = peer.chunks, {}
        for operation_id, events in chunks.items():
            for piece in batches(events, len):
                end.send(Chunk(operation_id, piece))  # type: ignore[arg-type]
    finished, busy, moved, handed_over = peer.finished, peer.busy, peer.moved, peer.handed_over
    peer.finished, peer.busy, peer.moved, peer.handed_over = [], [], [], []
    pieces = list(batches(finished, len)) if len(finished) > 1 else [finished]
    for piece in pieces[:-1]:
        # Each carries the load after all these ends: the client must not think that their slots are still filled.
        end.send(Report(piece, [], [], running, slots, own))  # type: ignore[arg-type]
    end.send(Report(pieces[-1], busy, moved, running, slots, own, handed_over))  # type: ignore[arg-type]


def _encoded(end: Result | Failure) -> Raw:
    try:
        if type(end) is Result:
            check_depth(end.value)
            if end.usage:
                # The client decodes strictly, and would drop the connection.
                msgspec.convert(end.usage, dict[str, dict[str, int | float]])
        return sendable(end)
    except (Unsendable, msgspec.ValidationError) as refused:
        why = str(refused) if isinstance(refused, Unsendable) else "its usage is malformed"
        error = InternalError(f"the result of operation {end.operation_id} cannot be sent: {why}")
        version = end.program_version
        return sendable(Failure(end.operation_id, error.to_wire(), end.wait_s, end.run_s, version))
