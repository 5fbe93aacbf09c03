"""How a supervisor takes over from one that died: what it wrote down, and the workers it left running."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from dspool.core.lifecycle import events as ev
from dspool.messages import JSON, Member, WorkerState, WorkerStatus
from dspool.supervisor.runtime import PoolStore, Runtime, Sleep, WorkerHandle, within
from dspool.supervisor.workers import Workers

log = logging.getLogger("dspool.supervisor")


async def restored(pool: str, store: PoolStore) -> tuple[ev.Restored, dict[str, Any], JSON]:
    """The pool as the last supervisor wrote it down, its workers' states by id, and its last decisions."""
    desired, overflow, version, paused, awake, roster, decisions = [
        await store.get_record(pool, key)
        for key in ("desired", "overflow", "version_ceiling", "paused", "awake", "roster", "decisions")
    ]
    event = ev.Restored(desired, overflow or 0, version or 0, bool(paused), bool(awake))
    return event, roster or {}, decisions or []


class Survivor(NamedTuple):
    """A running worker that answered."""

    handle: WorkerHandle
    member: Member
    status: WorkerStatus
    state: WorkerState
    """As it was written down, or "starting" if nobody wrote it down as warm."""


async def survey(
    runtime: Runtime, roster: dict[str, Any], *, sleep: Sleep, timeout_s: float
) -> list[Survivor]:
    """Every running worker that answers and was not given up before; the others are killed.

    In the order in which they are to be adopted: of two with one ordinal, the one that was warm comes first.
    """
    handles = await runtime.running_workers()
    answers = await asyncio.gather(
        *(within(timeout_s, _ask(handle), sleep) for handle in handles), return_exceptions=True
    )
    found = []
    for handle, answer in zip(handles, answers, strict=True):
        written = roster.get(handle.worker_id)
        if isinstance(answer, BaseException) or written in _OVER:
            why = f"it was {written} already" if written in _OVER else f"it does not answer: {answer}"
            log.warning("killing worker %s: %s", handle.worker_id, why)
            runtime.kill(handle)
            continue
        member, status = answer
        state: WorkerState = written if written in _ORDER else "starting"
        if status.state == "draining":
            state = "draining"
        found.append(Survivor(handle, member, status, state))
    return sorted(found, key=lambda one: (_ORDER.index(one.state), one.member.ordinal))


def adopt(
    survivors: list[Survivor], workers: Workers, feed: Callable[[ev.Event], None], *, wall_now: float
) -> None:
    """Take them over. One that was never warm is warmed (again) before it takes traffic."""
    for handle, member, status, state in survivors:
        workers.adopt(handle)
        age_s = max(0.0, wall_now - status.started_at) if status.started_at else 0.0
        feed(ev.WorkerAdopted(handle.worker_id, member.ordinal, member, state, status, age_s))


async def _ask(handle: WorkerHandle) -> tuple[Member, WorkerStatus]:
    return await handle.describe(), await handle.health()


_ORDER: list[WorkerState] = ["ready", "spare", "draining", "starting"]
_OVER: tuple[WorkerState, ...] = ("stopped", "failed")
"""Clients were told that these are dead, or may have been: however well they answer now, nobody may hear of them."""


log = logging.getLogger("dspool.supervisor")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class Records:
    """The last value of each key wins: a value that was replaced before it was written never is."""

    def __init__(self, pool: str, store: PoolStore, sleep: Sleep) -> None:
        self._pool = pool
        self._store = store
        self._sleep = sleep
        self._waiting: dict[str, JSON] = {}
        self._some = asyncio.Event()
        self._writing = asyncio.Lock()

    def put(self, key: str, value: JSON) -> None:
        self._waiting[key] = value
        self._some.set()

    async def run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            await self._some.wait()
            if await self.flush():
                pause = FIRST_PAUSE_S
            else:
                await self._sleep(pause)
                pause = min(LONGEST_PAUSE_S, pause * 2)

    async def flush(self) -> bool:
        """Write what waits now. False if the store refused; it is kept for the next time."""
        async with self._writing:  # two writers could write an old value after a new one
            self._some.clear()
            waiting, self._waiting = self._waiting, {}
            while waiting:
                key = next(iter(waiting))
                try:
                    await self._store.put_record(self._pool, key, waiting[key])
                except Exception as failed:
                    log.warning("cannot write record %s of pool %s yet: %s", key, self._pool, failed)
                    self._waiting = {**waiting, **self._waiting}
                    self._some.set()
                    return False
                del waiting[key]
        return True
