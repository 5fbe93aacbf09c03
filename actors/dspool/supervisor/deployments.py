"""Rolls a new version of a pool program out to all workers: a canary first; if that does worse, all go back.

What the running workers can load, they load. Edited source needs new processes, since a process imports a module once:
one fresh worker tries it beside the others, and then takes the place of one; the rest is replaced one at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

import msgspec

from dspool.config import PoolConfig
from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.source import (
    check_deployment,
    check_edited,
    check_rollback,
    edited_files,
    import_paths,
    same_definition,
)
from dspool.core.lifecycle.versions import check_known
from dspool.errors import Conflict, InvalidRequest, PoolNotReady, StoreFailed, UnknownProgram
from dspool.messages import JSON, Deployment
from dspool.messages.programs import MadeBy
from dspool.supervisor.canary import Rollout, Rollouts, Trial, try_canary
from dspool.supervisor.fresh_workers import FreshWorkers
from dspool.supervisor.ports import PoolStore, Sleep, WorkerHandle
from dspool.supervisor.running_workers import RunningWorkers
from dspool.supervisor.version_history import VersionHistory
from dspool.supervisor.versioned_source import VersionedSource
from dspool.supervisor.warmup import Warmer
from dspool.telemetry.events import emit

log = logging.getLogger("dspool.supervisor")

ROLLOUTS = "rollouts"
CANARY_S = 10.0
"""Longest time of the canary's trial."""


class Deployments:
    def __init__(
        self,
        config: PoolConfig,
        store: PoolStore,
        warmer: Warmer,
        fresh: FreshWorkers,
        *,
        serving: Callable[[], list[WorkerHandle]],
        spares: Callable[[], list[WorkerHandle]],
        feed: Callable[[ev.Event], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
        sleep: Sleep,
        keep: Callable[[JSON], object],
    ) -> None:
        """`serving()` and `spares()` are the warm workers; `feed` takes what the pool must know; `keep` keeps the last
        roll-outs on record, as `ROLLOUTS`."""
        self._config = config
        self._warmer = warmer
        self._fresh = fresh
        self._serving = serving
        self._clock = clock
        self._sleep = sleep
        self._store = store
        self.rollouts = Rollouts(wall, keep)
        self._history = VersionHistory(
            config, store, on_change=lambda programs: feed(ev.ProgramsChanged(programs)), wall=wall
        )
        self._running = RunningWorkers(
            config,
            self._history,
            warmer,
            serving=serving,
            spares=spares,
            feed=feed,
            sleep=sleep,
        )
        self._source = VersionedSource(config.name, self._history, self._running.all, sleep)
        self._lock = asyncio.Lock()

    def current(self) -> list[Deployment]:
        """The current version of each pool program; every worker must have them."""
        return self._history.current()

    async def load(self) -> None:
        """Load the versions from the store, see `VersionHistory.load`."""
        await self._history.load()
        self.rollouts.restore(await self._store.get_record(self._config.name, ROLLOUTS))

    async def take_over(self, without: Collection[str] = ()) -> None:
        """Bring adopted workers to the current versions: the last supervisor may have died in a deployment.

        Those of the ids `without` keep what they have.
        """
        await self._running.end_canaries(without)

    async def admit(self, handle: WorkerHandle) -> None:
        """Let a new worker take traffic if it has the source that the current versions are made of.

        If it has other source, since that was edited, and no worker is there that serves, it is a new version of each
        program that is made of it. While one serves, the new worker stays out: an edit that nobody deployed may be half
        done.

        Raises:
            Conflict: it stays out.
        """
        if not (wrong := await self._source.admit(handle)):
            return
        if self._running.all():
            await self._source.refuse(handle, wrong)
        async with self._lock:
            # Another new worker may have made these versions meanwhile.
            wrong = await self._source.admit(handle)
            if self._running.all():
                await self._source.refuse(handle, wrong)
            for d in wrong:
                modules = (await self._source.of(handle, d)).modules
                number = await self._history.take_number(d.program)
                made = msgspec.structs.replace(d, version=number, source=modules)
                await self._history.adopt(await self._history.add(made, "restart"))
                why = f"its source changed while the pool was down: it is version {number} now"
                self._source.report(handle, d, [], why)
        await self._warmer.catch_up(handle)

    async def deploy(
        self, request: Deployment, *, canary_s: float = CANARY_S, new: bool = True
    ) -> Deployment:
        """Give `request` a version number, roll it out, and return it once every warm worker has it.

        Raises:
            UnknownProgram: with `new=False`, there is no such program.
            InvalidRequest: neither or both of spec and import path. What names none of both is about the current
                version: nothing else deploys that again, as its source is now; saved state is loaded into it.
            Conflict: another deployment is running; or exactly this runs already.
            PoolNotReady: no warm worker to try it on.
            ProgramError: its canary did worse than the version before, which is current again on every worker.
            PoolError: whatever loading it raised; nothing changed.
        """
        if not new:
            check_known(request.program, (one.program for one in self._history.current()))
        request = self._completed(request)
        if not request.has_one_source:
            raise InvalidRequest("a deployment needs exactly one of spec and import_path")
        async with self._exclusive():
            current = self._history.current_of(request.program)
            workers = await self._source.ask_for_deployment(request)
            edited = edited_files(workers)
            if not edited:
                check_deployment(request, current, workers)
            if not self._serving():
                raise PoolNotReady("no warm worker to deploy to", retry_after_s=1.0)
            number = await self._history.take_number(request.program)
            candidate = msgspec.structs.replace(request, version=number, source=None)
            previous = current.version if current is not None else None
            with self.rollouts.of(candidate.program, number, previous, "loading", by=request.by) as rollout:
                rollout.workers_total = len(self._running.all())
                began = self._clock()
                if edited:
                    made_by: MadeBy = (
                        "deploy" if current is None or not same_definition(request, current) else "reload"
                    )
                    deployment = await self._roll_out_fresh(candidate, made_by, rollout, canary_s)
                else:
                    deployment = await self._roll_out(candidate, rollout, canary_s)
                self._emit_deployed(deployment, began)
                return deployment

    def _completed(self, request: Deployment) -> Deployment:
        """What names neither spec nor import path has that of the current version."""
        if request.spec is not None or request.import_path is not None or request.program_dir is not None:
            return request
        current = self._history.current_of(request.program)
        if current is None:
            programs = ", ".join(one.program for one in self._history.current()) or "none"
            raise InvalidRequest(
                f"there is no program {request.program} to deploy again; there are: {programs}. "
                "A new one needs a spec or an import path",
                program=request.program,
            )
        return msgspec.structs.replace(
            request,
            spec=current.spec,
            import_path=current.import_path,
            program_dir=current.program_dir,
            kwargs=request.kwargs or current.kwargs,
            state=current.state if request.state is None else request.state,
        )

    async def _roll_out(self, candidate: Deployment, rollout: Rollout, canary_s: float) -> Deployment:
        """Into the workers that run."""
        trial = self._trial(rollout)
        if trial is not None:
            # Before the load: from then on the canary answers with the new version.
            await trial.begin()
        canary = await self._running.load_canary(candidate, rollout)
        rollout.canary = canary.worker_id
        try:
            if trial is not None:
                rollout.phase, rollout.canary_s = "canary", canary_s
                await try_canary(self._config.name, canary, trial, rollout, self._clock)
            deployment = (await self._add([candidate], "deploy", canary))[0]
        except BaseException:
            await self._running.take_back(canary, candidate)
            raise
        rollout.phase = "rolling out"
        await self._history.adopt(deployment)
        await self._running.bring_all_up(rollout)
        await self._running.retire_old(deployment)
        return deployment

    async def _roll_out_fresh(
        self, candidate: Deployment, made_by: MadeBy, rollout: Rollout, canary_s: float
    ) -> Deployment:
        """Into workers in new processes, which import the source as it is now. All other programs that are made of the
        edited source get a new version with it."""
        others = [
            msgspec.structs.replace(d, version=await self._history.take_number(d.program), source=None)
            for d in self._history.current()
            if d.program != candidate.program and edited_files(await self._source.ask(d))
        ]
        candidates = [candidate, *others]
        canary = await self._fresh.start(candidates)
        rollout.canary = canary.worker_id
        try:
            if made_by != "rollback":
                await self._check_edited(canary, candidate)
            if canary_s and (trial := self._trial(rollout)) is not None:
                await trial.begin()
                self._fresh.promote(canary.worker_id)
                rollout.phase, rollout.canary_s = "canary", canary_s
                await try_canary(self._config.name, canary, trial, rollout, self._clock)
            # A number that it has already is that of a roll-back: such a version is there.
            fresh = [d for d in candidates if d.version not in self._history.numbers(d.program)]
            made = await self._add(fresh, made_by, canary)
        except BaseException as failed:
            self._fresh.refuse(canary.worker_id, f"its version was not accepted: {type(failed).__name__}")
            raise
        rollout.phase = "rolling out"
        by_program = {d.program: d for d in [*candidates, *made]}
        for d in by_program.values():
            await self._history.adopt(d)
        why = f"version {candidate.version} of {candidate.program} has other source"
        limit_s = self._config.warmup.worker_deadline_s * (len(self._running.all()) + 1)
        await self._fresh.replace_others(canary.worker_id, why, rollout, limit_s)
        return by_program[candidate.program]

    async def _check_edited(self, canary: WorkerHandle, candidate: Deployment) -> None:
        """Raises `Conflict` if the canary has the old source: it runs where nobody has edited it."""
        edited = edited_files(await self._source.ask(candidate))
        current = self._history.current_of(candidate.program)
        if current is not None and edited:
            modules = (await self._source.of(canary, candidate)).modules
            check_edited(current, edited, modules, where=canary.worker_id)

    async def _add(
        self, candidates: Sequence[Deployment], made_by: MadeBy, canary: WorkerHandle
    ) -> list[Deployment]:
        """Keep new versions, made of the source that the canary has loaded."""
        made = []
        for d in candidates:
            source = (await self._source.of(canary, d)).modules if import_paths(d) else None
            added = await self._history.add(msgspec.structs.replace(d, source=source or None), made_by)
            if added.version != d.version:
                raise StoreFailed(
                    f"the store has version {added.version - 1} of {d.program} from another supervisor; try again"
                )
            made.append(added)
        return made

    def _trial(self, rollout: Rollout) -> Trial | None:
        """None: there is no version before to compare with."""
        if rollout.previous is None:
            return None
        versions = rollout.previous, rollout.version
        return Trial(rollout.program, versions, self._serving, clock=self._clock, sleep=self._sleep)

    async def rollback(self, program: str, version: int | None = None, *, by: str = "") -> Deployment:
        """Make `version` (None: the one before) current again on every warm worker.

        Raises:
            UnknownProgram: there is no such program or version, or none before.
            Conflict: another deployment is running, or there is other source now than that version was made from,
                both in the workers and on disk.
        """
        async with self._exclusive():
            if version is None:
                version = self._history.number_before(program) or 0
            d = await self._history.version(program, version)
            if d is None:
                raise UnknownProgram(
                    f"there is no version {version or 'before the current one'} of {program}; "
                    f"known: {self._history.numbers(program)}",
                    program=program,
                )
            # A worker that does not answer stops nothing: it may need just this way back.
            workers = await self._source.ask(d)
            current = self._history.current_of(program)
            previous = current.version if current is not None else None
            about = {"kind": "rollback", "by": by}
            with self.rollouts.of(program, version, previous, "rolling out", **about) as rollout:
                began = self._clock()
                try:
                    check_rollback(d, workers)
                except Conflict:
                    if not edited_files(workers):
                        raise
                    # The disk has changed since, perhaps back: a new process loads only what the version is made of.
                    await self._roll_out_fresh(d, "rollback", rollout, 0.0)
                else:
                    await self._history.adopt(d)
                    await self._running.bring_all_up(rollout)
                self._emit_deployed(d, began)
            return d

    def _emit_deployed(self, current: Deployment, began: float) -> None:
        emit(
            "program.deployed",
            {"duration_s": self._clock() - began, "workers": len(self._running.all())},
            {"pool": self._config.name, "program": current.program, "version": current.version},
        )

    def _exclusive(self) -> asyncio.Lock:
        if self._lock.locked():
            raise Conflict("a deployment is running; wait for its end")
        return self._lock

    async def versions(self, program: str) -> list[Deployment]:
        """All versions that a roll-back can go to, with what each is made of."""
        found = [await self._history.version(program, number) for number in self._history.numbers(program)]
        return [d for d in found if d is not None]
