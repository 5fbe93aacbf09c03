"""A client's calls to the rest of its pool. None of them is on the way of an operation.

The other side may be away or hang: traffic goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from dspool.core.dispatch.dispatcher import Dispatcher
from dspool.core.metrics.operation_records import OperationBatch, OperationBuffer
from dspool.core.metrics.recorder import ClientDelta, ClientRecorder
from dspool.messages import Membership
from dspool.telemetry.event_log import EventBatch, EventBuffer
from dspool.telemetry.tracing import Tracing

_WATCH_PAUSE_S = 0.1
_LAST_REPORT_S = 2.0
"""A metrics actor that does not answer must not keep a client from closing."""


class ControlPlane(NamedTuple):
    watch: Callable[[int], Awaitable[Membership]]
    """Waits for a membership newer than this version."""
    report_dead: Callable[[str, str], Awaitable[None]]
    wake: Callable[[], Awaitable[None]] | None = None
    """Starts the workers of a lazy pool."""
    report: Callable[[ClientDelta | EventBatch | OperationBatch], Awaitable[None]] | None = None


async def follow(
    control: ControlPlane, version: Callable[[], int], apply: Callable[[Membership], None]
) -> None:
    """Hand every newer membership to `apply`, for ever."""
    while True:
        before = version()
        try:
            apply(await control.watch(before))
        except Exception:
            # No supervisor for now: traffic goes on with the known workers.
            await asyncio.sleep(_WATCH_PAUSE_S)
        else:
            if version() == before:
                await asyncio.sleep(_WATCH_PAUSE_S)


async def report_dead_worker(control: ControlPlane, worker_id: str, why: str) -> None:
    try:
        await control.report_dead(worker_id, why)
    except Exception:
        # The supervisor is away; it sees for itself when it is back.
        return


class ClientReporter:
    """Sends the client's deltas and events to the metrics actor; what does not arrive goes again."""

    def __init__(
        self,
        control: ControlPlane,
        dispatcher: Dispatcher,
        recorder: ClientRecorder,
        ended: OperationBuffer,
        tracing: Tracing,
        interval_s: float,
    ) -> None:
        self._report, self._dispatcher, self._recorder = control.report, dispatcher, recorder
        self._ended, self._tracing, self._interval_s = ended, tracing, interval_s
        self._events = EventBuffer(recorder.pool, recorder.reporter)
        self._spans_lost = 0

    async def run(self) -> None:
        self._events.attach()
        while True:
            await asyncio.sleep(self._interval_s)
            await self._deliver()

    async def close(self) -> None:
        """Send the last report, if it arrives in time."""
        self._events.detach()
        try:
            async with asyncio.timeout(_LAST_REPORT_S):
                # Twice: one that did not arrive before goes first.
                if await self._deliver(final=True):
                    await self._deliver(final=True)
        except TimeoutError:
            return

    async def _deliver(self, *, final: bool = False) -> bool:
        """Whether a delta arrived, and another may be waiting."""
        if self._report is None:
            return False
        await self._events.deliver(self._report)
        await self._deliver_ended(self._report)
        now = time.monotonic()
        dropped, self._spans_lost = self._tracing.dropped - self._spans_lost, self._tracing.dropped
        if dropped:
            self._recorder.dropped(dropped)
        delta = self._recorder.take_delta(
            now,
            queued=self._dispatcher.queued,
            running=self._dispatcher.running,
            oldest_wait_s=self._dispatcher.oldest_wait_s(now),
            final=final,
        )
        if delta is None:
            return False
        try:
            await self._report(delta)
        except BaseException as failed:
            self._recorder.give_back(delta)
            if not isinstance(failed, Exception):
                raise
            return False
        return not delta.final

    async def _deliver_ended(self, report: Callable[[OperationBatch], Awaitable[None]]) -> None:
        batch = self._ended.take()
        if batch is None:
            return
        try:
            await report(batch)
        except BaseException as failed:
            self._ended.give_back(batch)
            if not isinstance(failed, Exception):
                raise
