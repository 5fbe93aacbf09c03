"""An in-memory network with the behaviour of TCP: order, back-pressure, resets, half-open connections, partitions.

Loops offer it as their `create_server` and `create_connection`: neither end knows the difference.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.simulation.loop import Process, SimulatedLoop, current

WINDOW_BYTES = 256 * 1024
"""What may be on its way to a process that does not read."""
KEEP_ALIVE_S = 11.0
"""A connection over which nothing can come ends after this time, as the engine's keep-alive has it."""
UNACKNOWLEDGED_S = 15.0
_LOOK_S = 1.0
_SYN_S = 3.0


class Network:
    """Which nodes reach each other, how fast, and who listens where."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.cut: set[tuple[str, str]] = set()
        """(from, to): nothing of one node arrives at the other."""
        self.off: set[str] = set()
        """Nodes without power: they send nothing, not even that a process is gone."""
        self.slow_s = 0.0
        self._servers: dict[tuple[str, int], _Server] = {}
        self._ports = 20_000
        self.pipes: dict[_Pipe, None] = {}
        self.made = 0

    def reaches(self, sender: str, receiver: str) -> bool:
        return not (
            sender != receiver
            and ((sender, receiver) in self.cut or sender in self.off or receiver in self.off)
        )

    def delay_s(self, sender: str, receiver: str) -> float:
        dice = self.loop.world.dice
        base = dice.uniform(20e-6, 80e-6) if sender == receiver else dice.uniform(100e-6, 600e-6)
        return base + (dice.uniform(0.0, self.slow_s) if self.slow_s else 0.0)

    def partition(self, one: set[str], other: set[str], *, one_way: bool = False) -> None:
        for left in one:
            for right in other:
                self.cut.add((left, right))
                if not one_way:
                    self.cut.add((right, left))
        self._changed()

    def heal(self) -> None:
        self.cut.clear()
        self._changed()

    def power(self, node: str, *, on: bool) -> None:
        if on:
            self.off.discard(node)
        else:
            self.off.add(node)
        self._changed()

    def _changed(self) -> None:
        for pipe in list(self.pipes):
            pipe.pump()

    # --- what a loop offers ---

    async def listen(self, factory: Callable[[], asyncio.BufferedProtocol], host: str, port: int) -> Any:
        process = current()
        self._ports += 1
        server = self._servers[process.node, port or self._ports] = _Server(process, factory)
        address = (process.node, port or self._ports)
        process.on_kill.append(lambda: self._servers.pop(address, None) and None)
        return SimpleNamespace(
            sockets=[SimpleNamespace(getsockname=lambda: address)],
            close=lambda: self._servers.pop(address, None),
            server=server,
        )

    async def connect(self, factory: Callable[[], asyncio.BufferedProtocol], host: str, port: int) -> Any:
        """Raises: ConnectionRefusedError, TimeoutError."""
        process = current()
        if not (self.reaches(process.node, host) and self.reaches(host, process.node)):
            await asyncio.sleep(_SYN_S)
            raise TimeoutError("no route")
        await asyncio.sleep(self.delay_s(process.node, host) + self.delay_s(host, process.node))
        server = self._servers.get((host, port))
        if server is None or not server.process.alive:
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        connection = Connection(self, process, server.process)
        near, far = connection.ends
        protocol = factory()
        server.process.soon(far.attach, server.factory)
        near.attach(lambda: protocol)
        return near, protocol


class _Server:
    def __init__(self, process: Process, factory: Callable[[], asyncio.BufferedProtocol]) -> None:
        self.process, self.factory = process, factory


class Connection:
    """Two ends and the two pipes between them."""

    def __init__(self, network: Network, client: Process, server: Process) -> None:
        there, back = _Pipe(network, client, server), _Pipe(network, server, client)
        self.ends = End(network, client, there, back), End(network, server, back, there)
        there.target, back.target = self.ends[1], self.ends[0]
        there.source, back.source = self.ends


class _Pipe:
    """One direction: what was written, in order, as far as the other end has room for it.

    Each piece has a number. What does not arrive, or out of turn, is sent again.
    """

    def __init__(self, network: Network, sender: Process, receiver: Process) -> None:
        self.network, self.sender, self.receiver = network, sender, receiver
        self.source: End
        self.target: End
        network.made += 1
        self.number = network.made
        self.waiting: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.again: list[tuple[int, bytes | None]] = []
        """Sent, and did not arrive; None is the end of the stream."""
        self.sent = self.expected = 0
        self.flying = 0
        self.arrives_at = 0.0
        self.fin: str | None = None
        """"fin" or "reset", once the sender has closed."""
        self.fin_sent = False
        self.stalled_at: float | None = None
        self.over = False
        network.pipes[self] = None

    @property
    def blocked(self) -> bool:
        """Nothing comes through, or nobody hears that it did."""
        one, other = self.sender.node, self.receiver.node
        return not (self.network.reaches(one, other) and self.network.reaches(other, one))

    def write(self, data: bytes) -> None:
        self.waiting.append(data)
        self.waiting_bytes += len(data)
        self.pump()

    def end(self, how: str) -> None:
        if self.fin is None or how == "reset":
            self.fin = how
        if how == "reset":
            self.waiting.clear()
            self.waiting_bytes = 0
        self.pump()

    def pump(self) -> None:
        """Send what can be sent."""
        if self.over:
            return
        loop = self.network.loop
        if self.blocked:
            if self.stalled_at is None:
                self.stalled_at = loop.time()
                loop.outside.soon(self._watch, after_s=_LOOK_S)
            return
        self.stalled_at = None
        if self.fin == "reset":
            if not self.fin_sent:
                self.fin_sent = True
                self._send(self._reset)
            return
        if self.again:
            again, self.again = sorted(self.again), []
            for number, data in again:
                self._send(self._arrive, number, data)
        while self.waiting and self.flying < WINDOW_BYTES:
            data = self.waiting.popleft()
            self.waiting_bytes -= len(data)
            if len(data) > 1 and loop.world.dice.random() < 0.05:
                # TCP keeps bytes, not messages.
                cut = loop.world.dice.randrange(1, len(data))
                self.waiting.appendleft(data[cut:])
                self.waiting_bytes += len(data) - cut
                data = data[:cut]
            self.flying += len(data)
            self.sent += 1
            self._send(self._arrive, self.sent, data)
        if not self.waiting and self.fin is not None and not self.fin_sent:
            self.fin_sent = True
            self.sent += 1
            self._send(self._arrive, self.sent, None)
        self.source.drained()

    def _send(self, function: Callable[..., Any], *args: Any) -> None:
        loop = self.network.loop
        delay_s = self.network.delay_s(self.sender.node, self.receiver.node)
        self.arrives_at = max(self.arrives_at + 1e-7, loop.time() + delay_s)
        # The kernel takes it; the process hears of it when it runs.
        loop.outside.soon(function, *args, after_s=self.arrives_at - loop.time())

    def _arrive(self, number: int, data: bytes | None) -> None:
        if self.over:
            return
        if number != self.expected + 1 or not self.network.reaches(self.sender.node, self.receiver.node):
            self.again.append((number, data))
            self.pump()
            return
        self.expected = number
        if data is None:
            self._end()
            self.receiver.soon(self.target.broken, "fin")
        else:
            self.receiver.soon(self.target.arrived, data)

    def _reset(self) -> None:
        if not self.network.reaches(self.sender.node, self.receiver.node):
            self.fin_sent = False
            self.pump()
        elif not self.over:
            self._end()
            self.receiver.soon(self.target.broken, "reset")

    def _end(self) -> None:
        self.over = True
        self.network.pipes.pop(self, None)

    def _watch(self) -> None:
        if self.over or self.stalled_at is None:
            return
        loop = self.network.loop
        unacknowledged = self.waiting or self.flying or self.again
        if loop.time() - self.stalled_at >= (UNACKNOWLEDGED_S if unacknowledged else KEEP_ALIVE_S):
            self._end()
            self.sender.soon(self.source.broken, "timeout")
        else:
            loop.outside.soon(self._watch, after_s=_LOOK_S)


class End(asyncio.Transport):
    """A transport, as a protocol of the engine has it."""

    def __init__(self, network: Network, process: Process, out: _Pipe, incoming: _Pipe) -> None:
        super().__init__({"peername": (incoming.sender.node, 0), "socket": None})
        self.process = process
        self._out, self._in = out, incoming
        self._protocol: asyncio.BufferedProtocol | None = None
        self._closing = self._lost = False
        self._high, self._low = 64 * 1024, 16 * 1024
        self._full = False
        self.reading_paused = False
        self.unread: deque[bytes] = deque()
        self._ended: str | None = None
        process.on_kill.append(self._killed)

    def attach(self, factory: Callable[[], asyncio.BufferedProtocol]) -> None:
        self._protocol = factory()
        self._protocol.connection_made(self)

    # --- the transport ---

    def write(self, data: Any) -> None:
        if self._closing or self._lost:
            return
        self._out.write(bytes(data))
        if not self._full and self._out.waiting_bytes > self._high and self._protocol is not None:
            self._full = True
            self._protocol.pause_writing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._out.end("fin")
            self._forget(None)

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            self._out.end("reset")
            self._forget(None)

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high, self._low = high or 64 * 1024, low or 0

    def get_write_buffer_size(self) -> int:
        return self._out.waiting_bytes

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False
        self.process.soon(self._read_on)

    def _read_on(self) -> None:
        while self.unread and not self.reading_paused:
            self._receive(self.unread.popleft())
        if not self.unread and self._ended is not None and not self.reading_paused:
            self.broken(self._ended)

    # --- the network ---

    def arrived(self, data: bytes) -> None:
        self.unread.append(data)
        if not self.reading_paused:
            self._read_on()

    def _receive(self, data: bytes) -> None:
        while data and not self._closing and self._protocol is not None:
            room = self._protocol.get_buffer(-1)
            taken = min(len(room), len(data))
            room[:taken] = data[:taken]
            self._protocol.buffer_updated(taken)
            self._in.flying -= taken
            data = data[taken:]
            if data and self.reading_paused:
                self.unread.appendleft(data)
                break
        else:
            self._in.flying -= len(data)
        self._in.pump()

    def drained(self) -> None:
        if self._full and self._out.waiting_bytes <= self._low and self._protocol is not None:
            self._full = False
            self.process.soon(self._protocol.resume_writing)

    def broken(self, how: str) -> None:
        """The other end closed, or nothing can come from it."""
        if self._lost:
            return
        if how == "fin" and self.unread:
            self._ended = how  # after what it sent before
            return
        self._closing = True
        self._out.end("reset")
        self._forget({"reset": ConnectionResetError("reset"), "timeout": TimeoutError("timed out")}.get(how))

    def _forget(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            if self._protocol is not None:
                self.process.soon(self._protocol.connection_lost, error)

    def _killed(self) -> None:
        self._lost = self._closing = True
        # The kernel says so, unless the node is without power.
        self._out.end("reset")
