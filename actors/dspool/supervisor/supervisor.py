"""The supervisor of one pool, as a plain class: it feeds events to the pool state and performs the actions.

Traffic does not pass through it and goes on without it. Its successor adopts the running workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random as random_module
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

from dspool.causes import met
from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import Decision, SizingInputs
from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.state import PoolState
from dspool.core.lifecycle.status import facts_of, status_of
from dspool.core.lifecycle.warmup import StepRun, Strategy, WarmupReport
from dspool.errors import PoolClosed
from dspool.messages import Deployment, Membership, PoolStatus, WorkerId
from dspool.release import VERSION
from dspool.supervisor.adoption import Records, adopt, read_records, survey
from dspool.supervisor.canary import Rollout
from dspool.supervisor.deployments import ROLLOUTS, Deployments
from dspool.supervisor.fresh_workers import FreshWorkers
from dspool.supervisor.housekeeping import Housekeeping, Report
from dspool.supervisor.placement import Placement
from dspool.supervisor.ports import PoolStore, Runtime, Sleep, WorkerHandle, within
from dspool.supervisor.sizing import DecisionRecord, Observe, Sizing
from dspool.supervisor.warmup import Warmer, WarmProgress
from dspool.supervisor.workers import Workers
from dspool.telemetry.events import emit
from dspool.telemetry.pseudonyms import make_key

log = logging.getLogger("dspool.supervisor")

STATUS_TIMEOUT_S = 0.5


class Supervisor:
    """One pool's supervisor. Call `start` first; `shutdown` ends the pool, `detach` only the supervisor.

    `observe` gives the sizing loop its inputs (None: there are none); `report` takes the pool's status every second.
    All supervisors of one start have one `life`. Clocks, sleep and randomness are arguments for tests.
    """

    def __init__(
        self,
        config: PoolConfig,
        runtime: Runtime,
        store: PoolStore,
        *,
        observe: Observe | None = None,
        report: Report | None = None,
        life: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Sleep = asyncio.sleep,
        random: Callable[[], float] = random_module.random,
        new_hex: Callable[[], str] = lambda: secrets.token_hex(3),
    ) -> None:
        self.config = config
        self._runtime = runtime
        self._store = store
        self._life = life
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._state = PoolState(
            config, new_id=lambda ordinal: str(WorkerId(config.name, ordinal, new_hex())), jitter=random
        )
        self._records = Records(config.name, store, sleep)
        self._warmer = Warmer(
            config,
            current=lambda: self._deployments.current(),
            admit=lambda handle: self._deployments.admit(handle),
            clock=clock,
            sleep=sleep,
        )
        self._placement = Placement(config, runtime, self._state, self._feed, clock=clock, sleep=sleep)
        self._workers = Workers(
            config, runtime, self._warmer, self._placement, self._feed, clock=clock, sleep=sleep
        )
        self._deployments = Deployments(
            config,
            store,
            self._warmer,
            FreshWorkers(self._state, self._warmer, self._feed, self._workers.handle, self._until, sleep),
            serving=lambda: self._handles("ready"),
            spares=lambda: self._handles("spare"),
            feed=self._feed,
            clock=clock,
            wall=wall,
            sleep=sleep,
            keep=lambda rows: self._records.put(ROLLOUTS, rows),
        )
        self._sizing = Sizing(
            config, observe, facts=lambda: facts_of(self._state), clock=clock, wall=wall, sleep=sleep
        )
        self._housekeeping = Housekeeping(
            config,
            runtime,
            store,
            self._state,
            self._workers,
            self._feed,
            report=report,
            clock=clock,
            wall=wall,
            sleep=sleep,
        )
        self._loops: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._booted, self._began = False, clock()
        self._change = asyncio.Event()
        self._empty = asyncio.Event()

    # --- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Adopt the running workers, order the missing ones and return; `wait_ready` waits for warm workers.

        Raises:
            StoreFailed: the store cannot be reached; nothing was started, and `start` may be called again.
            ConfigError: a configured program cannot be read.
        """
        self._began = self._clock()
        name = self.config.name
        await make_key(name, self._store.get_record, self._store.put_record)
        event, roster, decisions = await read_records(name, self._store, self._life)
        self._feed(event)
        await self._deployments.load()
        limit_s = self.config.health_check_timeout_s
        survivors = await survey(
            name, self._runtime, self._store, roster, sleep=self._sleep, timeout_s=limit_s
        )
        # From here on nothing may fail: a second call after a failure must not adopt twice.
        self._sizing.restore(decisions)
        adopt(survivors, self._workers, self._feed, wall_now=self._wall())
        self._booted = True
        self._feed(ev.Booted())
        if survivors:
            self._in_background(self._deployments.take_over(self._state.gradual.kept_as_they_are()))
        self._records.put("life", self._life)
        await self._records.flush()  # a version must be on record before clients see it
        loops = {
            **self._housekeeping.loops(),
            "placement": self._placement.balance(),
            "sizing": self._sizing.run(self._apply_decision),
            "records": self._records.run(),
        }
        self._loops = [
            asyncio.create_task(loop, name=f"dspool {name} {what}") for what, loop in loops.items()
        ]

    async def wait_ready(self, timeout_s: float | None = None) -> PoolStatus:
        """Returns once `min_ready` workers are warm.

        Raises:
            WorkerStartFailed: the programs cannot be loaded, on any worker; at once.
            TimeoutError: they are not, after `timeout_s` (default `init_timeout_s`); the message says why.
        """
        limit = self.config.init_timeout_s if timeout_s is None else timeout_s
        try:
            state = self._state
            await within(limit, self._until(lambda: state.is_ready or state.condition.broken), self._sleep)
        except TimeoutError:
            why = status_of(self._state).reason or "workers are still starting"
            raise TimeoutError(f"pool {self.config.name} is not ready after {limit:g} s: {why}") from None
        if not state.is_ready:
            raise met("not_loadable", pool=self.config.name, why=state.condition.broken).error()
        return status_of(self._state, wall_offset=self._wall() - self._clock(), version=VERSION)

    async def shutdown(self, timeout_s: float = 30.0) -> None:
        """Refuse new operations, finish the running ones, stop all workers; kill those left after `timeout_s`.

        Returns when no worker is left (or, if the runtime cannot say so, some seconds after the kill).
        """
        self._feed(ev.CloseRequested(timeout_s))
        if len(self._state.roster):
            with contextlib.suppress(TimeoutError):
                await within(timeout_s + 10.0, self._empty.wait(), self._sleep)
        emit("pool.terminate", {"duration_s": self._clock() - self._began}, {"pool": self.config.name})
        await self.detach()

    async def detach(self) -> None:
        """Stop supervising. The workers run on; a later supervisor adopts them."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops = []
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._workers.close()
        self._records.put("decisions", self._sizing.rows())
        await self._records.flush()

    # --- what clients ask ------------------------------------------------------------------------------

    async def watch(self, version: int, timeout_s: float = 10.0) -> Membership:
        """The membership: at once if newer than `version`, else when it changes, or after `timeout_s` as it is."""
        if self._booted and version > self._state.membership.version:
            self._feed(ev.VersionSeen(version))
        with contextlib.suppress(TimeoutError):
            newer = self._until(lambda: self._booted and self._state.membership.version > version)
            await within(timeout_s, newer, self._sleep)
        # Before the running workers are adopted there is no membership: the caller keeps its own.
        return self._state.membership if self._booted else Membership(version=version)

    async def status(self, *, fresh: bool = True) -> PoolStatus:
        """The pool and its workers; `fresh` asks the workers first, for at most half a second."""
        if fresh:
            await self._workers.ask_all(min(STATUS_TIMEOUT_S, self.config.health_check_timeout_s))
        return status_of(self._state, wall_offset=self._wall() - self._clock(), version=VERSION)

    async def report_dead(self, worker_id: str, why: str) -> None:
        """A client could not talk to the worker: check its health now, and replace it unless it is well."""
        self._workers.suspect(worker_id, why or "a client reported it")

    async def wake(self) -> None:
        """Start the workers of a lazy pool: a client has an operation for it."""
        self._feed(ev.Woken())

    # --- what operators ask ----------------------------------------------------------------------------

    async def resize(self, size: int) -> int:
        """Set the desired size and return it at once; the pool follows. The last of several calls wins.

        With sizing on, the next decision starts from it.

        Raises:
            InvalidRequest: `size` is outside min_pool_size..max_pool_size; nothing changed.
            PoolClosed: the pool is shutting down.
        """
        self._check_open()
        previous = self._state.desired
        self._feed(ev.ResizeRequested(size))
        self._sizing.record_resize(size, self._state.overflow, previous)
        self._records.put("decisions", self._sizing.rows())
        return size

    async def pause(self) -> None:
        """Clients refuse new operations with `PoolPaused`; running ones finish. Survives the supervisor."""
        self._check_open()
        self._feed(ev.PauseRequested(True))

    async def resume(self) -> None:
        self._feed(ev.PauseRequested(False))

    async def drain(self, worker_id: str) -> None:
        """Take the worker out of traffic, let it finish, stop it; a replacement starts at once.

        Returns when it is gone.

        Raises:
            UnknownWorker: there is no such worker.
        """
        self._feed(ev.DrainRequested(worker_id))
        await self._until(lambda: self._state.roster.get(worker_id) is None)

    async def restart(self, worker_id: str) -> None:
        """Replace the worker, its replacement warm first. Returns when it is gone.

        Raises:
            UnknownWorker: there is no such worker.
        """
        self._feed(ev.RestartRequested(worker_id))
        await self._until(lambda: self._state.roster.get(worker_id) is None)

    async def deploy(self, /, deployment: Deployment, **options: Any) -> Deployment:
        """Roll out a new version of a pool program, canary first, as `Deployments.deploy` takes it; raises the same."""
        self._check_steady()
        return await self._deployments.deploy(deployment, **options)

    async def rollback(self, program: str, version: int | None = None, *, by: str = "") -> Deployment:
        """Make an earlier version current again. `Deployments.rollback` says what it raises."""
        self._check_steady()
        return await self._deployments.rollback(program, version, by=by)

    async def recent_rollouts(self) -> list[Rollout]:
        """The last deployments with what their canaries did, newest first; a running one shows its progress."""
        return self._deployments.rollouts.recent()

    async def deployments(self) -> list[Deployment]:
        """The current version of each pool program."""
        return self._deployments.current()

    async def warm(self, strategy: Strategy | None = None) -> WarmupReport:
        """Run the warm-up steps again on every warm worker; they go on serving. None: the configured strategy.

        Raises:
            Conflict: another warm-up is running.
        """
        self._check_steady()
        strategy = strategy or self.config.warmup.strategy
        return await self._warmer.warm(strategy, lambda: self._handles("ready", "spare"))

    async def warm_progress(self, since: int = 0, timeout_s: float = 10.0) -> list[WarmProgress]:
        """The moments of warm-ups after sequence number `since`; waits up to `timeout_s` for one."""
        return await self._warmer.progress(since, timeout_s)

    async def warmup_report(self) -> WarmupReport:
        """The warm-ups of new workers: at boot, in growth, as replacements."""
        return self._warmer.since_start()

    async def warm_runs(self, worker_id: str) -> list[StepRun]:
        """The warm-up steps that ran on one worker, of the last thousand in the pool."""
        return self._warmer.runs_of(worker_id)

    async def decisions(self, limit: int = 50) -> list[DecisionRecord]:
        """The last decisions about the size, newest first, with their numbers."""
        return self._sizing.decisions(limit)

    async def observe(self, inputs: SizingInputs) -> Decision | None:
        """Decide on `inputs` now, beside the sizing loop. None while sizing is off."""
        if not self._sizing.enabled or self._state.closed:
            return None
        decision = self._sizing.decide(inputs)
        self._apply_decision(decision)
        return decision

    # --- events in, actions out ------------------------------------------------------------------------

    def _feed(self, event: ev.Event) -> None:
        """One event: the state changes and every action begins before anything else runs in this process."""
        for action in self._state.handle(event, self._clock()):
            self._perform(action)
        self._housekeeping.state_changed()
        if self._state.closed and not len(self._state.roster):
            self._empty.set()
        change, self._change = self._change, asyncio.Event()
        change.set()

    def _perform(self, action: ev.Action) -> None:
        match action:
            case ev.PublishMembership():
                pass  # the state has it; `_feed` wakes those who watch
            case ev.StartWorker(worker_id, ordinal):
                self._workers.start(worker_id, ordinal)
            case ev.WarmWorker(worker_id):
                self._workers.warm(worker_id)
            case ev.Promote(worker_id):
                log.info("worker %s takes traffic", worker_id)
            case ev.DrainWorker(worker_id, timeout_s):
                self._workers.drain(worker_id, timeout_s)
            case ev.StopWorker(worker_id):
                self._workers.stop(worker_id)
            case ev.KillWorker(worker_id, why):
                log.warning("killing worker %s: %s", worker_id, why)
                self._workers.kill(worker_id, why)
            case ev.FreeLeases(worker_id):
                # In the background, not before the publication: clients learn of the death at once, and ask again
                # while the store still names the dead worker as owner.
                self._in_background(self._housekeeping.free_leases(worker_id))
            case ev.DeclareDegraded(reason):
                if reason:
                    log.error("pool %s is degraded: %s", self.config.name, reason)
                else:
                    log.warning("pool %s is no longer degraded", self.config.name)
            case ev.Persist(key, value):
                self._records.put(key, value)
            case ev.Emit(name, measurements, metadata):
                emit(name, measurements, {"pool": self.config.name, **metadata})

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _apply_decision(self, decision: Decision) -> None:
        if self._state.closed:
            return
        before = self._state.desired, self._state.overflow
        self._feed(ev.SizingDecided(decision.target, decision.overflow, decision.reason))
        if (self._state.desired, self._state.overflow) != before:
            self._records.put("decisions", self._sizing.rows())

    # --- helpers ---------------------------------------------------------------------------------------

    def _handles(self, *phases: Any) -> list[WorkerHandle]:
        workers = sorted(self._state.roster.in_phase(*phases), key=lambda w: (w.phase, w.ordinal))
        return [handle for worker in workers if (handle := self._workers.handle(worker.id)) is not None]

    async def _until(self, reached: Callable[[], object]) -> None:
        while not reached():
            await self._change.wait()

    def _check_open(self) -> None:
        if self._state.closed:
            raise PoolClosed(f"pool {self.config.name} is shutting down", retry_after_s=1.0)

    def _check_steady(self) -> None:
        self._check_open()
        self._state.gradual.check_steady(self.config.name)
