"""The worker processes of one pool: starts, warms, checks, drains, stops and kills them, and notices their deaths.

Decides nothing: orders come as calls that return at once, and what happens goes back as events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from dspool.config import PoolConfig
from dspool.core.lifecycle import events as ev
from dspool.messages.members import CUT_OFF
from dspool.supervisor.placement import Placement
from dspool.supervisor.ports import Runtime, Sleep, WorkerHandle, within
from dspool.supervisor.warmup import Warmer
from dspool.telemetry.events import emit

log = logging.getLogger("dspool.supervisor")

DRAIN_GRACE_S = 2.0
"""A worker may take so much longer than its own limit to report the drain's end."""
WATCH_AGAIN_S = 0.5
CHECK = "dspool health check"
SUSPECT_TIMEOUT_S = 0.25
"""A worker that a client reported dead has so long to answer; then it counts as a missed check."""
CONFIRM_TIMEOUT_S = 0.5
"""The same if the client says that its machine is gone: each check then follows the one before at once."""


class Workers:
    def __init__(
        self,
        config: PoolConfig,
        runtime: Runtime,
        warmer: Warmer,
        placement: Placement,
        feed: Callable[[ev.Event], None],
        *,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._warmer = warmer
        self._placement = placement
        self._feed = feed
        self._clock = clock
        self._sleep = sleep
        self._handles: dict[str, WorkerHandle] = {}
        self._silent: set[str] = set()
        """Of the handles those whose processes have not answered yet."""
        self._unwanted: dict[str, str] = {}
        """Why, for each worker that was given up before its process answered: it is killed as soon as it does."""
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}
        self._checks: set[str] = set()
        self._confirming: set[str] = set()

    def handle(self, worker_id: str) -> WorkerHandle | None:
        return self._handles.get(worker_id)

    def ids(self) -> set[str]:
        """Every worker that runs or starts."""
        return self._handles.keys() | self._tasks.keys()

    # --- orders ----------------------------------------------------------------------------------------

    def adopt(self, handle: WorkerHandle) -> None:
        self._attach(handle)

    def start(self, worker_id: str, ordinal: int) -> None:
        self._spawn(worker_id, self._start(worker_id, ordinal))

    def warm(self, worker_id: str) -> None:
        self._spawn(worker_id, self._warm(worker_id))

    def drain(self, worker_id: str, timeout_s: float) -> None:
        self._spawn(worker_id, self._drain(worker_id, timeout_s))

    def stop(self, worker_id: str) -> None:
        if worker_id in self._handles:
            self._spawn(worker_id, self._stop(worker_id))
        else:
            self._unwanted[worker_id] = "stopped before it had started"

    def kill(self, worker_id: str, why: str) -> None:
        for neighbour in self._placement.out_of_reach(worker_id):
            self.suspect(neighbour, CUT_OFF)
        handle = self._handles.get(worker_id)
        if handle is None:
            self._unwanted[worker_id] = why
        else:
            self._kill(handle)

    def check(self, worker_id: str, timeout_s: float, *, suspicion: str = "", counts: bool = True) -> None:
        """Ask for its health. With a `suspicion` (a client's report) an error is proof of death; without `counts`
        a missing answer has no effect."""
        if worker_id in self._handles and worker_id not in self._checks:
            self._checks.add(worker_id)
            self._spawn(worker_id, self._check(worker_id, timeout_s, suspicion, counts), name=CHECK)

    def suspect(self, worker_id: str, why: str) -> None:
        """A client could not talk to it, for this reason."""
        if why != CUT_OFF:
            self.check(worker_id, SUSPECT_TIMEOUT_S, suspicion=why)
        elif worker_id in self._handles and worker_id not in self._confirming:
            self._confirming.add(worker_id)
            self._spawn(worker_id, self._confirm(worker_id))

    def forget(self, worker_id: str, sessions: list[str]) -> None:
        if worker_id in self._handles:
            self._spawn(worker_id, self._forget(worker_id, sessions))

    async def ask_all(self, timeout_s: float) -> None:
        """Ask every worker that has started for its health and wait for the answers, but no longer than `timeout_s`."""
        for worker_id in list(self._handles):
            if worker_id not in self._silent:
                self.check(worker_id, timeout_s, counts=False)
        if checks := [task for task in self._all_tasks() if task.get_name() == CHECK]:
            await asyncio.wait(checks)

    async def close(self) -> None:
        """Stop watching. The processes run on."""
        tasks = self._all_tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- how each is carried out -----------------------------------------------------------------------

    def _all_tasks(self) -> list[asyncio.Task[Any]]:
        return [task for tasks in self._tasks.values() for task in tasks]

    def _spawn(self, worker_id: str, work: Coroutine[Any, Any, Any], *, name: str = "") -> None:
        task = asyncio.create_task(work, name=name or worker_id)
        self._tasks.setdefault(worker_id, set()).add(task)
        task.add_done_callback(partial(self._finish, worker_id))

    def _finish(self, worker_id: str, task: asyncio.Task[Any]) -> None:
        tasks = self._tasks.get(worker_id, set())
        tasks.discard(task)
        if not tasks:
            self._tasks.pop(worker_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of worker %s failed", worker_id, exc_info=error)

    def _attach(self, handle: WorkerHandle) -> None:
        self._handles[handle.worker_id] = handle
        self._spawn(handle.worker_id, self._watch(handle))

    async def _watch(self, handle: WorkerHandle) -> None:
        while True:
            try:
                cause = await handle.until_dead()
                break
            except Exception as unknown:
                # An unknown state is not death: the ordinal stays taken until the state is known.
                log.warning("cannot tell whether worker %s lives: %s", handle.worker_id, unknown)
                await self._sleep(WATCH_AGAIN_S)
        self._handles.pop(handle.worker_id, None)
        self._unwanted.pop(handle.worker_id, None)
        self._checks.discard(handle.worker_id)
        for task in self._tasks.get(handle.worker_id, set()) - {asyncio.current_task()}:
            task.cancel()
        self._warmer.forget(handle.worker_id)
        self._feed(ev.WorkerDied(handle.worker_id, cause))

    async def _start(self, worker_id: str, ordinal: int) -> None:
        # Never cancelled on a time-out: a start that succeeds late must be found and killed.
        try:
            node = await self._placement.node_for(worker_id)
            handle = await self._runtime.start_worker(worker_id, ordinal, node)
        except Exception as failed:
            self._unwanted.pop(worker_id, None)
            self._feed(ev.WorkerDied(worker_id, f"could not be started: {failed}"))
            return
        self._attach(handle)
        if worker_id in self._unwanted:
            self._kill(handle)
            return
        self._silent.add(worker_id)
        try:
            member = await handle.describe()
        except Exception as failed:
            self._feed(ev.WorkerFailed(worker_id, f"did not start listening: {failed}"))
            return
        finally:
            self._silent.discard(worker_id)
        self._feed(ev.WorkerStarted(worker_id, member))

    def _kill(self, handle: WorkerHandle) -> None:
        try:
            self._runtime.kill(handle)
        except Exception as failed:  # the pool state orders it again
            log.warning("cannot kill worker %s: %s", handle.worker_id, failed)

    async def _warm(self, worker_id: str) -> None:
        handle = self._handles.get(worker_id)
        if handle is None:
            return
        failure = await self._warmer.warm_new(handle, lambda step: self._feed(ev.StepDone(worker_id, step)))
        if failure is not None:
            self._feed(ev.WorkerFailed(worker_id, *failure))
            return
        self._feed(ev.WarmFinished(worker_id))
        # Measures its memory before the first operation: `recycle.max_memory_mb` must be above that to make sense.
        self.check(worker_id, self._config.health_check_timeout_s, counts=False)
        try:
            # A version that became current just now went only to the workers that were warm before.
            await self._warmer.catch_up(handle)
        except Exception as failed:
            self._feed(
                ev.HealthMissed(worker_id, f"could not load a new program version: {failed}", certain=True)
            )

    async def _drain(self, worker_id: str, timeout_s: float) -> None:
        handle = self._handles.get(worker_id)
        if handle is not None:
            try:
                await within(timeout_s + DRAIN_GRACE_S, handle.drain(timeout_s), self._sleep)
            except Exception as failed:
                log.warning("worker %s was not drained: %s", worker_id, failed)
        self._feed(ev.Drained(worker_id))

    async def _stop(self, worker_id: str) -> None:
        handle = self._handles.get(worker_id)
        if handle is not None:
            try:
                await handle.stop()
            except Exception as failed:  # as a rule it exited before it answered
                log.debug("worker %s ended while it was told to: %s", worker_id, failed)

    async def _forget(self, worker_id: str, sessions: list[str]) -> None:
        handle = self._handles.get(worker_id)
        if handle is not None:
            try:
                await within(self._config.health_check_timeout_s, handle.forget(sessions), self._sleep)
            except Exception as failed:
                # They cannot come back: the store has dropped them, and the worker's leases are stale.
                log.warning("worker %s keeps %d expired sessions: %s", worker_id, len(sessions), failed)

    async def _confirm(self, worker_id: str) -> None:
        """Check until it answers, or has missed as many checks as it may: then it is gone for its client and for us.

        It may be the client that is cut off; and a worker that is only busy has a kernel that answers.
        """
        try:
            for _ in range(self._config.max_health_failures):
                self._checks.add(worker_id)
                if not await self._check(worker_id, CONFIRM_TIMEOUT_S, "", True):
                    return
        finally:
            self._confirming.discard(worker_id)

    async def _check(self, worker_id: str, timeout_s: float, suspicion: str, counts: bool) -> bool:
        """Whether it missed the check."""
        handle = self._handles[worker_id]
        began = self._clock()
        event: ev.Event
        try:
            status = await within(timeout_s, handle.health(), self._sleep)
        except TimeoutError as late:
            event = ev.HealthMissed(worker_id, str(late) or "no answer in time")
        except Exception as failed:
            event = ev.HealthMissed(worker_id, str(failed) or repr(failed), certain=bool(suspicion))
        else:
            event = ev.Suspected(worker_id, suspicion) if suspicion else ev.HealthOk(worker_id, status)
        finally:
            self._checks.discard(worker_id)
        missed = isinstance(event, ev.HealthMissed)
        if missed and not counts:
            return True
        emit(
            "worker.health_check",
            {"duration_s": self._clock() - began, "failures": float(missed)},
            {
                "pool": self._config.name,
                "worker": worker_id,
                "slot": handle.ordinal,
                "outcome": "error" if missed else "ok",
                "reason": event.why if isinstance(event, ev.HealthMissed) else "",
            },
        )
        self._feed(event)
        return missed
