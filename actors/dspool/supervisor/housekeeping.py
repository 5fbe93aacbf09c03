"""The supervisor's loops: ticks when due, health checks, session expiry, orphans, status reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from dspool.config import PoolConfig
from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.state import PoolState
from dspool.core.lifecycle.status import status_of
from dspool.messages import PoolStatus
from dspool.supervisor.ports import PoolStore, Runtime, Sleep, WorkerHandle, within
from dspool.supervisor.workers import Workers
from dspool.telemetry.events import emit
from dspool.telemetry.pseudonyms import session_hash

log = logging.getLogger("dspool.supervisor")

ORPHANS_EVERY_S = 30.0
REPORT_EVERY_S = 1.0
REPORT_TIMEOUT_S = 2.0

Report = Callable[[PoolStatus], Awaitable[None]]


class Housekeeping:
    def __init__(
        self,
        config: PoolConfig,
        runtime: Runtime,
        store: PoolStore,
        state: PoolState,
        workers: Workers,
        feed: Callable[[ev.Event], None],
        *,
        report: Report | None,
        clock: Callable[[], float],
        wall: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._store = store
        self._state = state
        self._workers = workers
        self._feed = feed
        self._report = report
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._changed = asyncio.Event()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Each runs until it is cancelled."""
        return {
            "ticks": self._tick_when_due(),
            "health": self._check_health(),
            "expiry": self._expire_sessions(),
            "orphans": self._remove_orphans(),
            "report": self._report_status(),
        }

    def state_changed(self) -> None:
        """The next tick may be due at another time now."""
        self._changed.set()

    async def _tick_when_due(self) -> None:
        while True:
            self._changed.clear()
            now = self._clock()
            due = self._state.next_due(now)
            # A millisecond late rather than early: an early tick would find nothing to do and spin.
            wait_s = 3600.0 if due is None else max(0.001, due - now)
            try:
                await within(wait_s, self._changed.wait(), self._sleep)
            except TimeoutError:
                self._feed(ev.Tick())

    async def _check_health(self) -> None:
        while True:
            await self._sleep(self._config.health_check_interval_s)
            for worker in self._state.roster.in_phase("ready", "spare", "draining"):
                self._workers.check(worker.id, self._config.health_check_timeout_s)

    async def _expire_sessions(self) -> None:
        ttl_s = self._config.session_ttl_s
        while True:
            await self._sleep(min(60.0, max(1.0, ttl_s / 10)))
            try:
                expired = await self._store.expire(self._config.name, ttl_s)
            except Exception as failed:
                log.warning("sessions were not expired: %s", failed)
                continue
            by_owner: dict[str, list[str]] = {}
            for session, owner in expired:
                if owner is not None:
                    by_owner.setdefault(owner, []).append(session)
                metadata = {
                    "pool": self._config.name,
                    "session_hash": session_hash(session, self._config.name),
                }
                emit("session.expired", {"idle_s": ttl_s}, metadata)
            for owner, sessions in by_owner.items():
                self._workers.forget(owner, sessions)

    async def _remove_orphans(self) -> None:
        """Kill unknown workers: an earlier supervisor ordered them, and they came up only after the adoption."""
        while True:
            await self._sleep(ORPHANS_EVERY_S)
            for handle in await self._orphans():
                log.warning("killing worker %s: no supervisor knows it", handle.worker_id)
                self._runtime.kill(handle)
                await self.free_leases(handle.worker_id)

    async def _orphans(self) -> list[WorkerHandle]:
        ids = self._workers.ids()
        try:
            running = await self._runtime.running_workers()
        except Exception as failed:
            log.warning("cannot list the running workers: %s", failed)
            return []
        # Known before or after the listing: a worker that started or died meanwhile is no orphan.
        ids |= self._workers.ids()
        return [handle for handle in running if handle.worker_id not in ids]

    async def free_leases(self, worker_id: str) -> None:
        """Let others have the sessions of a dead worker; try until the store accepts it, or the pool ends."""
        pause_s = 0.05
        while True:
            try:
                await self._store.worker_dead(self._config.name, worker_id)
                return
            except Exception as failed:
                log.warning("cannot free the leases of worker %s yet: %s", worker_id, failed)
                if self._state.closed:
                    return
            await self._sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)

    async def _report_status(self) -> None:
        """Report the pool's status to the metrics every second. Nobody waits for it."""
        while self._report is not None:
            with contextlib.suppress(Exception):  # observing never hurts; the next report says it all again
                status = status_of(self._state, wall_offset=self._wall() - self._clock())
                await within(REPORT_TIMEOUT_S, self._report(status), self._sleep)
            await self._sleep(REPORT_EVERY_S)
