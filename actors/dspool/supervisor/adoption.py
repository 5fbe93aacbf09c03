"""How a supervisor takes over from one that died: its records, and the workers that it left running."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from dspool.core.lifecycle import events as ev
from dspool.messages import JSON, Member, WorkerState, WorkerStatus
from dspool.supervisor.ports import PoolStore, Runtime, Sleep, WorkerHandle, within
from dspool.supervisor.workers import Workers

log = logging.getLogger("dspool.supervisor")


async def read_records(pool: str, store: PoolStore, life: str) -> tuple[ev.Restored, dict[str, Any], JSON]:
    """The pool as the last supervisor recorded it, its workers' states by id, and its last decisions.

    What somebody changed while it ran (its size, a pause) holds for as long as it lives, and not at a new start: then
    the configuration says how it is to be.
    """
    last_life, desired, overflow, version, paused, awake, roster, decisions, gradual = [
        await store.get_record(pool, key)
        for key in (
            "life",
            "desired",
            "overflow",
            "version_ceiling",
            "paused",
            "awake",
            "roster",
            "decisions",
            "gradual",
        )
    ]
    event = ev.Restored(version=version or 0)
    if last_life == life:
        event = replace(
            event,
            desired=desired,
            overflow=overflow or 0,
            paused=bool(paused),
            awake=bool(awake),
            gradual=gradual,
        )
    return event, roster or {}, decisions or []


class Survivor(NamedTuple):
    """A running worker that answered."""

    handle: WorkerHandle
    member: Member
    status: WorkerStatus
    state: WorkerState
    """As recorded, or "starting" if no record calls it warm."""


async def survey(
    pool: str, runtime: Runtime, store: PoolStore, roster: dict[str, Any], *, sleep: Sleep, timeout_s: float
) -> list[Survivor]:
    """Every running worker that answers and was not given up before. Kills the others, and frees their leases.

    In the order of adoption: of two with one ordinal, the warm one comes first.

    Raises:
        StoreFailed: the store cannot be reached; `survey` may be called again.
    """
    # Others may have their sessions, which they would answer from as they were.
    dead = await store.declared_dead(pool)
    handles = await runtime.running_workers()
    answers = await asyncio.gather(
        *(within(timeout_s, _ask(handle), sleep) for handle in handles), return_exceptions=True
    )
    survivors = []
    for handle, answer in zip(handles, answers, strict=True):
        last_state = "failed" if handle.worker_id in dead else roster.get(handle.worker_id)
        if isinstance(answer, BaseException) or last_state in _OVER:
            why = f"it was {last_state} already" if last_state in _OVER else f"it does not answer: {answer}"
            log.warning("killing worker %s: %s", handle.worker_id, why)
            runtime.kill(handle)
            # Before their leases are free: a later successor must know them, whose order to end may get lost.
            await store.worker_dead(pool, handle.worker_id)
            continue
        member, status = answer
        state: WorkerState = last_state if last_state in _ORDER else "starting"
        if status.state == "draining":
            state = "draining"
        survivors.append(Survivor(handle, member, status, state))
    await store.workers_alive(pool, [survivor.handle.worker_id for survivor in survivors])
    return sorted(survivors, key=lambda survivor: (_ORDER.index(survivor.state), survivor.member.ordinal))


def adopt(
    survivors: list[Survivor], workers: Workers, feed: Callable[[ev.Event], None], *, wall_now: float
) -> None:
    """Take them over. A worker that was never warm is warmed before it takes traffic."""
    for handle, member, status, state in survivors:
        workers.adopt(handle)
        age_s = max(0.0, wall_now - status.started_at) if status.started_at else 0.0
        feed(ev.WorkerAdopted(handle.worker_id, member.ordinal, member, state, status, age_s))


async def _ask(handle: WorkerHandle) -> tuple[Member, WorkerStatus]:
    return await handle.describe(), await handle.health()


_ORDER: list[WorkerState] = ["ready", "spare", "draining", "starting"]
_OVER: tuple[WorkerState, ...] = ("stopped", "failed")
"""Clients may have heard that these are dead: however well they answer now, no client may hear of them again."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class Records:
    """Writes the supervisor's records to the store in the background: of each key the last value."""

    def __init__(self, pool: str, store: PoolStore, sleep: Sleep) -> None:
        self._pool = pool
        self._store = store
        self._sleep = sleep
        self._pending: dict[str, JSON] = {}
        self._arrival = asyncio.Event()
        self._lock = asyncio.Lock()

    def put(self, key: str, value: JSON) -> None:
        self._pending[key] = value
        self._arrival.set()

    async def run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            await self._arrival.wait()
            if await self.flush():
                pause = FIRST_PAUSE_S
            else:
                await self._sleep(pause)
                pause = min(LONGEST_PAUSE_S, pause * 2)

    async def flush(self) -> bool:
        """Write all pending records. False if the store refuses one; the rest stays pending."""
        async with self._lock:  # two writers could write an old value after a new one
            self._arrival.clear()
            pending, self._pending = self._pending, {}
            while pending:
                key = next(iter(pending))
                try:
                    await self._store.put_record(self._pool, key, pending[key])
                except Exception as failed:
                    log.warning("cannot write record %s of pool %s yet: %s", key, self._pool, failed)
                    self._pending = {**pending, **self._pending}
                    self._arrival.set()
                    return False
                del pending[key]
        return True
