"""What a client asks of the rest of its pool, and tells it. None of it is on the way of an operation.

Whoever is asked may be away or hang: traffic goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from dspool.core.dispatch.dispatcher import Dispatcher
from dspool.core.metrics.recorder import ClientDelta, ClientRecorder
from dspool.messages import Membership
from dspool.telemetry.event_log import EventBatch, EventBuffer
from dspool.telemetry.tracing import Tracing

_WATCH_PAUSE_S = 0.1
_LAST_REPORT_S = 2.0
"""At the end: an observer that does not answer must not keep a client from closing."""


class ControlPlane(NamedTuple):
    watch: Callable[[int], Awaitable[Membership]]
    """Waits for a membership newer than this version."""
    report_dead: Callable[[str, str], Awaitable[None]]
    wake: Callable[[], Awaitable[None]] | None = None
    """Starts the workers of a lazy pool."""
    report: Callable[[ClientDelta | EventBatch], Awaitable[None]] | None = None


async def follow(
    control: ControlPlane, known: Callable[[], int], apply: Callable[[Membership], None]
) -> None:
    """Hand every newer membership to `apply`, for ever."""
    while True:
        before = known()
        try:
            apply(await control.watch(before))
        except Exception:
            # No supervisor for now: traffic goes on with the workers that are known.
            await asyncio.sleep(_WATCH_PAUSE_S)
        else:
            if known() == before:
                await asyncio.sleep(_WATCH_PAUSE_S)


async def tell_dead(control: ControlPlane, worker_id: str, why: str) -> None:
    try:
        await control.report_dead(worker_id, why)
    except Exception:
        # The supervisor is away; it will see for itself when it is back.
        return


class Reporting:
    """Sends what the client added up, and its events, to the metrics actor; what does not arrive is sent again."""

    def __init__(
        self,
        control: ControlPlane,
        dispatcher: Dispatcher,
        recorder: ClientRecorder,
        tracing: Tracing,
        *,
        interval_s: float,
    ) -> None:
        self._report, self._dispatcher, self._recorder = control.report, dispatcher, recorder
        self._tracing, self._interval_s = tracing, interval_s
        self._events = EventBuffer(recorder.pool, recorder.reporter)
        self._spans_lost = 0

    async def run(self) -> None:
        self._events.attach()
        while True:
            await asyncio.sleep(self._interval_s)
            await self._deliver()

    async def close(self) -> None:
        """The last report, if it is taken in time."""
        self._events.detach()
        try:
            async with asyncio.timeout(_LAST_REPORT_S):
                # Twice: one that could not be delivered before goes first.
                if await self._deliver(final=True):
                    await self._deliver(final=True)
        except TimeoutError:
            return

    async def _deliver(self, *, final: bool = False) -> bool:
        """Whether something arrived, and more may be waiting."""
        if self._report is None:
            return False
        await self._events.deliver(self._report)
        now = time.monotonic()
        lost, self._spans_lost = self._tracing.dropped - self._spans_lost, self._tracing.dropped
        if lost:
            self._recorder.dropped(lost)
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
