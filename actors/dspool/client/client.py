"""A client of one pool: its queue, its connections to the workers, its view of the membership.

No Ray in here: `ControlPlane` has the functions that reach the supervisor. All of it belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import random
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Unpack

from dspool.client.calls import (
    OpenStream,
    PendingCall,
    is_idempotent,
    named,
    operation_of,
    outgoing,
    result_of,
    size_of,
)
from dspool.client.control import ClientReporter, ControlPlane, follow, report_dead_worker
from dspool.client.links import Links
from dspool.client.observation import ClientObserver
from dspool.config import PoolConfig
from dspool.core.dispatch.dispatcher import DispatchConfig, Dispatcher, Ticket, TicketEnd
from dspool.core.metrics.operation_records import OperationBuffer
from dspool.core.metrics.recorder import ClientRecorder
from dspool.errors import PoolClosed, PoolError
from dspool.messages import AnyCommand, Failure, Member, Membership, OperationOptions, Result, StreamEvent
from dspool.telemetry.tracing import Tracing
from dspool.wire.frames import Cancel, Chunk, Credit, HandOver, Report, Submit, batches

_LONGEST_TIMER_S = 3600.0
"""Event loops refuse very long timers; waking once more costs nothing."""
_SENT_AT_ONCE = 16
"""What one turn of the loop submits leaves together, but no more than this: in a turn in which hundreds of requests
arrive, workers would idle until the last one is queued."""


__all__ = ["Client", "ControlPlane"]


class Client:
    def __init__(self, config: PoolConfig, secret: bytes, control: ControlPlane) -> None:
        self.config = config
        self.id = f"c-{uuid.uuid4().hex[:12]}"
        self._control = control
        retry = config.retry
        self._dispatcher = Dispatcher(
            DispatchConfig(
                strategy=config.strategy,
                max_queue=config.max_queue,
                checkout_timeout_s=config.checkout_timeout_s,
                attempts=retry.attempts,
                backoff_s=retry.backoff_s,
                backoff_max_s=retry.backoff_max_s,
                jitter=retry.jitter,
                budget_ratio=retry.budget_ratio,
                budget_burst=max(256, 2 * config.slots_per_worker),
                refuse_poison_s=retry.refuse_poison_s,
                affinity=config.affinity,
            )
        )
        self._recorder = ClientRecorder(config.name, self.id, now=time.monotonic())
        self.tracing = Tracing(config, self.id)
        ended = OperationBuffer(config.name, is_on=config.enable_metrics and config.operations.max_rows > 0)
        self._observer = ClientObserver(config.name, self._recorder, self.tracing, ended)
        self._reporter = ClientReporter(
            control, self._dispatcher, self._recorder, ended, self.tracing, config.metrics_flush_interval_s
        )
        self._secret = secret
        self._membership = Membership(-1)
        self._programs = set(config.programs)
        """All pool programs ever known here: after a restart the supervisor may not know them at once."""
        self._by_id: dict[str, Member] = {}
        self._links = Links(
            secret,
            self.id,
            on_report=self._on_report,
            on_chunk=self._on_chunk,
            on_lost=self._on_lost,
            on_change=self._update_members,
            on_silent=self._dispatcher.hold,
            is_busy=lambda worker_id: self._dispatcher.running_on(worker_id) > 0,
        )
        self._streams: dict[str, OpenStream] = {}
        self._change = asyncio.Event()
        self._chores: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Future[Any]] = set()
        self._flush_due, self._unsent = False, 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._ids = uuid.uuid4().hex[:12]
        self._count = 0
        self._closed = self._waking = False
        self._loop = asyncio.get_running_loop()

    # --- life ---

    async def start(self) -> None:
        """Learn the first membership and begin to follow it."""
        control = self._control
        self._apply(await control.watch(-1))
        self._chores.append(
            self._loop.create_task(follow(control, lambda: self._membership.version, self._apply))
        )
        if control.report is not None and self.config.enable_metrics:
            self._chores.append(self._loop.create_task(self._reporter.run()))
        if self.config.telemetry.sampling > 0:
            self._spawn(asyncio.to_thread(self.tracing.prepare))

    async def wait_ready(self, workers: int, timeout_s: float) -> bool:
        """Wait until this client is connected to `workers` workers; returns whether it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while len(self._links) < workers:
                    self._change.clear()
                    await self._change.wait()
        return len(self._links) >= workers

    async def close(self) -> None:
        """End what waits or runs (`PoolClosed`), then the connections."""
        if self._closed:
            return
        self._closed = True
        self._dispatcher.close(now=time.monotonic())
        self._perform()
        tasks = [*self._chores, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._links.close()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self.tracing.close)
        await self._reporter.close()

    def derived_key(self, purpose: str) -> bytes:
        """A key that every client of this pool derives alike, and nobody else can."""
        return hmac.digest(self._secret, f"dspool {purpose}".encode(), "sha256")

    @property
    def membership(self) -> Membership:
        return self._membership

    @property
    def connected(self) -> set[str]:
        """The workers that it reaches."""
        return self._links.heard()

    @property
    def queued(self) -> int:
        return self._dispatcher.queued

    @property
    def running(self) -> int:
        return self._dispatcher.running

    @property
    def totals(self) -> dict[str, int]:
        """Operations of this client that ended, by outcome."""
        return self._recorder.totals

    # --- operations ---

    async def run(self, command: AnyCommand, **options: Unpack[OperationOptions]) -> Result:
        """Run one operation to its end; see `Pool.run`."""
        future: asyncio.Future[TicketEnd] = self._loop.create_future()
        ticket = self._submit(command, options, end=future)
        try:
            end = await future
        except BaseException:
            self._cancel(ticket)
            raise
        return result_of(end)

    async def stream(
        self, command: AnyCommand, **options: Unpack[OperationOptions]
    ) -> AsyncGenerator[StreamEvent | Result]:
        """The events of one operation, then its `Result`. Leaving the iteration cancels the operation.

        A worker sends at most `stream_window` events ahead of the reader.
        """
        stream = OpenStream()
        options["idempotent"] = False  # the reader cannot unread events
        ticket = self._submit(command, options, stream=stream)
        self._streams[ticket.operation.id] = stream
        is_over = False
        try:
            while True:
                event = await stream.events.get()
                if isinstance(event, TicketEnd):
                    is_over = True
                    yield result_of(event)
                    return
                yield event
                stream.unread += 1
                if stream.unread * 2 >= self.config.stream_window and ticket.worker is not None:
                    link = self._links.get(ticket.worker)
                    if link is not None:
                        link.send(Credit(ticket.operation.id, stream.unread))
                    stream.unread = 0
        finally:
            del self._streams[ticket.operation.id]
            if not is_over:
                self._cancel(ticket)

    def _submit(
        self,
        command: AnyCommand,
        options: OperationOptions,
        *,
        end: asyncio.Future[TicketEnd] | None = None,
        stream: OpenStream | None = None,
    ) -> Ticket:
        self._count += 1
        operation, size = operation_of(
            command,
            options,
            operation_id=f"{self._ids}-{self._count}",
            timeout_s=self.config.operation_timeout_s,
        )
        idempotent = options.get("idempotent")
        if idempotent is None:
            idempotent = is_idempotent(command, operation.session, self.config)
        call = PendingCall(command, operation.session, size, end, stream, self._programs)
        operation = self._observer.entered(operation, call)
        try:
            if self._membership.closed:
                raise PoolClosed("the pool is shut down; connect to a running one")
            ticket = self._dispatcher.submit(
                operation, idempotent=idempotent, sink=call, now=time.monotonic()
            )
        except PoolError as refused:
            self._observer.refused(operation, call, refused)
            named(refused, operation)
            raise
        if not self._by_id and self._control.wake is not None and not self._waking:
            self._waking = True
            self._spawn(self._wake(self._control.wake))
        self._unsent += 1
        if self._unsent < _SENT_AT_ONCE:
            self._flush_soon()
        else:
            self._perform()
        return ticket

    def _cancel(self, ticket: Ticket) -> None:
        self._dispatcher.cancel(ticket.operation.id, now=time.monotonic())
        self._perform()

    # --- messages from workers ---

    def _on_report(self, worker_id: str, report: Report) -> None:
        now = time.monotonic()
        dispatcher = self._dispatcher
        self._observer.reported(report, now)
        for end in report.finished:
            chance = random.random() if type(end) is Failure else 0.0
            dispatcher.finished(worker_id, end, now=now, random=chance)
        for operation_id in report.busy:
            dispatcher.busy(worker_id, operation_id, now=now)
        for operation_id, owner in report.moved:
            dispatcher.moved(worker_id, operation_id, owner, now=now)
        dispatcher.load(worker_id, report.running, report.slots, own=report.own, now=now)
        for session, granted in report.handed_over:
            dispatcher.handed_over(worker_id, session, granted, now=now)
        self._perform()
        if worker_id not in self._by_id and dispatcher.running_on(worker_id) == 0:
            self._links.drop(worker_id)

    def _on_chunk(self, worker_id: str, chunk: Chunk) -> None:
        stream = self._streams.get(chunk.id)
        if stream is not None:
            for event in chunk.events:
                stream.events.put_nowait(event)
            return
        # Nobody reads it (`run` of a streaming command, or a reader who left): the program goes on anyway.
        link = self._links.get(worker_id)
        if link is not None:
            link.send(Credit(chunk.id, len(chunk.events)))

    def _on_lost(self, worker_id: str, why: str) -> None:
        if self._closed:
            return
        self._observer.lost(worker_id, time.monotonic())
        self._dispatcher.lost(worker_id, why, now=time.monotonic(), random=random.random())
        self._perform()
        if worker_id in self._by_id:
            self._spawn(report_dead_worker(self._control, worker_id, why))

    async def _wake(self, wake: Callable[[], Awaitable[None]]) -> None:
        try:
            await wake()
        except Exception:
            # The supervisor is away; the next operation tries again.
            return
        finally:
            self._waking = False

    # --- actions of the dispatcher ---

    def _flush_soon(self) -> None:
        # Through the loop: what other tasks submit in this turn leaves in the same frame.
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._perform)

    def _perform(self) -> None:
        self._flush_due, self._unsent = False, 0
        send, cancel, ends, handover = self._dispatcher.take()
        now = time.monotonic() if send else 0.0
        for worker_id, tickets in send.items():
            link = self._links.get(worker_id)
            if link is None:
                ids = [ticket.operation.id for ticket in tickets]
                self._dispatcher.not_sent(worker_id, ids, now=now)
                self._flush_soon()
                continue
            self._observer.sent(worker_id, tickets, now)
            for piece in batches(tickets, size_of) if len(tickets) > 1 else (tickets,):
                link.send(Submit([outgoing(ticket, now) for ticket in piece]))
        for worker_id, ids in cancel.items():
            link = self._links.get(worker_id)
            if link is not None:
                link.send(Cancel(ids))
        for worker_id, sessions in handover.items():
            link = self._links.get(worker_id)
            if link is not None:
                link.send(HandOver(sessions))
        for end in ends:
            self._observer.ended(end, time.monotonic())
            call: PendingCall = end.ticket.sink
            call.deliver(end)
        wake = self._dispatcher.next_wake()
        if wake is not None and wake < self._timer_at:
            self._set_timer(wake)

    def _set_timer(self, wake: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = wake
        self._timer = self._loop.call_later(
            min(max(0.0, wake - time.monotonic()), _LONGEST_TIMER_S), self._tick
        )

    def _tick(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        self._dispatcher.tick(time.monotonic())
        self._perform()

    # --- membership ---

    async def catch_up(self) -> None:
        """Learn the membership as it is now: what the supervisor did before holds for the next operation."""
        with contextlib.suppress(Exception):  # it is away, and is followed again as soon as it is back
            self._apply(await self._control.watch(-1))

    def _apply(self, membership: Membership) -> None:
        if membership.version <= self._membership.version:
            return
        if membership.programs != self._membership.programs:
            self._dispatcher.programs_changed()
        self._membership = membership
        self._programs.update(membership.programs)
        self._by_id = {member.worker_id: member for member in membership.workers}
        self._observer.members = self._by_id
        self._links.connect(self._by_id)
        for worker_id in self._links:
            if not membership.lives(worker_id):
                # The connection of a hanging worker stays open by itself.
                self._observer.lost(worker_id, time.monotonic())
                self._links.cut(worker_id)
            elif worker_id not in self._by_id and self._dispatcher.running_on(worker_id) == 0:
                self._links.drop(worker_id)
        self._update_members()

    def _update_members(self) -> None:
        connected = [member for member in self._by_id.values() if member.worker_id in self._links]
        self._dispatcher.members(
            connected,
            finishing=self._membership.finishing,
            paused=self._membership.paused,
            share=self._membership.share,
            now=time.monotonic(),
            random=random.random(),
        )
        self._change.set()
        self._perform()

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
