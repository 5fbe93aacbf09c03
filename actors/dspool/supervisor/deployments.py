"""Rolls a new version of a pool program out to all workers: a canary first; if that does worse, all go back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec

from dspool.config import PoolConfig, ProgramConfig
from dspool.errors import (
    ConfigError,
    Conflict,
    InvalidRequest,
    PoolError,
    PoolNotReady,
    ProgramError,
    UnknownProgram,
    WorkerLost,
)
from dspool.messages import JSON, Deployment, VersionNumbers
from dspool.messages.programs import VERSIONS_KEPT
from dspool.supervisor.canary import Rollout, Rollouts, Trial
from dspool.supervisor.ports import PoolStore, Sleep, WorkerHandle, within
from dspool.supervisor.versioned_source import VersionedSource
from dspool.supervisor.warmup import Warmer
from dspool.telemetry.events import emit

log = logging.getLogger("dspool.supervisor")

CANARY_S = 10.0
"""Longest time of the canary's trial."""
TAKE_BACK_S = 5.0


class Deployments:
    def __init__(
        self,
        config: PoolConfig,
        store: PoolStore,
        warmer: Warmer,
        *,
        serving: Callable[[], list[WorkerHandle]],
        spares: Callable[[], list[WorkerHandle]],
        on_change: Callable[[dict[str, int]], None],
        on_failure: Callable[[str, str], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        """`serving()` and `spares()` are the warm workers. `on_change` gets every new set of current versions,
        `on_failure(worker_id, why)` a worker that could not load one and must be replaced."""
        self._config = config
        self._store = store
        self._warmer = warmer
        self._serving = serving
        self._spares = spares
        self._on_change = on_change
        self._on_failure = on_failure
        self._clock = clock
        self._sleep = sleep
        self.rollouts = Rollouts(wall)
        self._source = VersionedSource(config.name, store, lambda: [*serving(), *spares()], sleep)
        self._versions: dict[str, dict[int, Deployment]] = {}
        self._current: dict[str, int] = {}
        self._previous: dict[str, int] = {}
        self._lock = asyncio.Lock()

    def current(self) -> list[Deployment]:
        """The current version of each pool program; every worker must have them."""
        return [self._versions[program][version] for program, version in sorted(self._current.items())]

    async def load(self) -> None:
        """Load the versions from the store; a program that is new or changed in the configuration gets a version.

        One that the configuration no longer has is no pool program any more. Its versions stay, should it come back.

        Raises:
            ConfigError: a `state_file` that cannot be read.
            StoreFailed: the store cannot be reached.
        """
        for deployment in await self._store.deployments(self._config.name):
            self._versions.setdefault(deployment.program, {})[deployment.version] = deployment
        self._current = {
            program: version
            for program, version in (await self._store.current_versions(self._config.name)).items()
            if version in self._versions.get(program, {})
        }
        for program in set(self._current) - set(self._config.programs):
            if await self._store.get_record(self._config.name, _configured(program)) is not None:
                await self._store.set_current(self._config.name, program, None)
                del self._current[program]
        for program, program_config in self._config.programs.items():
            deployment = deployment_of(program, program_config)
            # Compared with the last configuration, not with the current version: a version deployed by hand since
            # then stays, also over a restart of the supervisor.
            key = _configured(program)
            fingerprint = msgspec.to_builtins(deployment)
            if (
                await self._store.get_record(self._config.name, key) != fingerprint
                or program not in self._current
            ):
                await self._adopt(await self._store.add_deployment(self._config.name, deployment))
                await self._store.put_record(self._config.name, key, fingerprint)
        self._on_change(dict(self._current))

    async def compare_source(self, handle: WorkerHandle) -> None:
        """Report if a worker has the current versions from other source than they were first loaded from."""
        await self._source.compare(handle, self.current())

    async def take_over(self) -> None:
        """Bring adopted workers to the current versions: the last supervisor may have died in a deployment."""
        await self._bring_all_up()
        for handle in [*self._serving(), *self._spares()]:
            for program in self._current:
                next_version = max(self._versions[program]) + 1
                with contextlib.suppress(Exception):  # as a rule there is none
                    await handle.retire(program, next_version)

    async def _adopt(self, deployment: Deployment) -> None:
        await self._store.set_current(self._config.name, deployment.program, deployment.version)
        self._versions.setdefault(deployment.program, {})[deployment.version] = deployment
        old = self._current.get(deployment.program)
        if old is not None and old != deployment.version:
            self._previous[deployment.program] = old
        self._current[deployment.program] = deployment.version
        await self._forget_old(deployment.program)
        self._on_change(dict(self._current))

    async def _forget_old(self, program: str) -> None:
        """As the store does: a roll-back goes to one of the newest, or to the one before."""
        versions = self._versions[program]
        in_use = {self._current[program], self._previous.get(program)}
        old = {one for one in versions if one <= max(versions) - VERSIONS_KEPT} - in_use
        await self._source.forget([versions.pop(version) for version in old])

    async def deploy(self, request: Deployment, *, canary_s: float = CANARY_S) -> Deployment:
        """Give `request` a version number, roll it out, and return it once every warm worker has it.

        Raises:
            InvalidRequest: neither or both of spec and import path. Saved state alone is loaded into the current spec.
            Conflict: another deployment is running; or exactly this runs already; or source that it names was edited
                since workers imported it, so that they would load the old code again.
            PoolNotReady: no warm worker to try it on.
            ProgramError: its canary did worse than the version before, which is current again on every worker.
            PoolError: whatever loading it raised; nothing changed.
        """
        if request.state is not None and request.spec is None and request.import_path is None:
            request = msgspec.structs.replace(request, spec=self._current_spec(request.program))
        if not request.has_one_source:
            raise InvalidRequest("a deployment needs exactly one of spec and import_path")
        async with self._exclusive():
            versions = self._versions.get(request.program, {})
            await self._source.allow_deployment(request, versions.get(self._current.get(request.program, 0)))
            candidate = msgspec.structs.replace(request, version=max(versions, default=0) + 1)
            previous = self._current.get(candidate.program)
            with self.rollouts.of(candidate.program, candidate.version, previous, "loading") as rollout:
                began = self._clock()
                deployment = await self._roll_out(request, candidate, rollout, canary_s)
                self._emit_deployed(deployment, began)
                return deployment

    def _current_spec(self, program: str) -> dict[str, JSON]:
        """The spec of the current version, for saved state that comes alone."""
        current = self._versions.get(program, {}).get(self._current.get(program, 0))
        if current is None or current.spec is None or current.import_path is not None:
            raise InvalidRequest(
                f"saved state alone needs a current version of {program} that was made from a spec; "
                "send the spec with it",
                program=program,
            )
        return current.spec

    async def _roll_out(
        self, request: Deployment, candidate: Deployment, rollout: Rollout, canary_s: float
    ) -> Deployment:
        trial = None
        if rollout.previous is not None:
            versions = rollout.previous, candidate.version
            trial = Trial(candidate.program, versions, self._serving, clock=self._clock, sleep=self._sleep)
            # Before the load: from then on the canary answers with the new version.
            await trial.begin()
        canary = await self._load_canary(candidate, rollout)
        rollout.canary = canary.worker_id
        try:
            if trial is not None:
                rollout.phase, rollout.canary_s = "canary", canary_s
                await self._try_canary(canary, trial, rollout)
            deployment = await self._store.add_deployment(self._config.name, request)
            if deployment.version != candidate.version:
                # The number of the store is the one that lasts.
                await self._take_back(canary, candidate)
        except BaseException:
            await self._take_back(canary, candidate)
            raise
        rollout.version, rollout.phase = deployment.version, "rolling out"
        await self._adopt(deployment)
        await self._bring_all_up(rollout)
        await self._retire_old(deployment)
        await self._source.compare(canary, [deployment])
        return deployment

    async def rollback(self, program: str, version: int | None = None) -> Deployment:
        """Make `version` (None: the one before) current again on every warm worker.

        Raises:
            UnknownProgram: there is no such program or version, or none before.
            Conflict: another deployment is running, or workers have other source now than that version was made from.
        """
        async with self._exclusive():
            versions = self._versions.get(program, {})
            if version is None:
                version = self._previous.get(program) or max(
                    (number for number in versions if number < self._current.get(program, 0)), default=0
                )
            if version not in versions:
                raise UnknownProgram(
                    f"there is no version {version or 'before the current one'} of {program}; "
                    f"known: {sorted(versions)}",
                    program=program,
                )
            await self._source.allow_rollback(versions[version])
            previous = self._current.get(program)
            with self.rollouts.of(program, version, previous, "rolling out") as rollout:
                began = self._clock()
                await self._adopt(versions[version])
                await self._bring_all_up(rollout)
                self._emit_deployed(versions[version], began)
            return versions[version]

    def _emit_deployed(self, current: Deployment, began: float) -> None:
        emit(
            "program.deployed",
            {"duration_s": self._clock() - began, "workers": len(self._serving()) + len(self._spares())},
            {"pool": self._config.name, "program": current.program, "version": current.version},
        )

    def _exclusive(self) -> asyncio.Lock:
        if self._lock.locked():
            raise Conflict("a deployment is running; wait for its end")
        return self._lock

    # --- the canary ------------------------------------------------------------------------------------

    async def _load_canary(self, candidate: Deployment, rollout: Rollout) -> WorkerHandle:
        """Load it on one worker that takes traffic; first on a spare, if there is one, where it hurts no caller.

        Its number is above all others, so the worker answers with it at once.
        """
        serving = self._serving()
        if not serving:
            raise PoolNotReady("no warm worker to deploy to", retry_after_s=1.0)
        for handle in [*self._spares()[:1], serving[0]]:
            try:
                await within(self._config.warmup.worker_deadline_s, handle.deploy(candidate), self._sleep)
            except TimeoutError as late:
                await self._take_back(handle, candidate)
                raise ProgramError(
                    f"version {candidate.version} of {candidate.program} did not load: {late}",
                    program=candidate.program,
                ) from late
            except WorkerLost as lost:
                # The worker runs the new version before it answers: operations may have blocked or killed it.
                rollout.phase = "rolled back"
                raise ProgramError(
                    f"version {candidate.version} of {candidate.program} was rolled back: worker {handle.worker_id}, "
                    "which took it, died or does not answer any more",
                    program=candidate.program,
                    version=candidate.version,
                ) from lost
            except BaseException:
                await self._take_back(handle, candidate)
                raise
            if handle is not serving[0]:
                await self._take_back(handle, candidate)
        return serving[0]

    async def _try_canary(self, canary: WorkerHandle, trial: Trial, rollout: Rollout) -> None:
        """Raises `ProgramError` if the new version does worse than the one before."""
        began = self._clock()

        def note(old: VersionNumbers, new: VersionNumbers, reason: str) -> None:
            rollout.old, rollout.new, rollout.reason = old, new, reason

        verdict = await trial.watch(canary, rollout.canary_s, note)
        old, new = rollout.old or VersionNumbers(), rollout.new or VersionNumbers()
        emit(
            "program.canary",
            {
                "duration_s": self._clock() - began,
                "operations": new.operations,
                "error_rate": new.error_rate,
                "run_s": new.least_s,
                "error_rate_before": old.error_rate,
                "run_s_before": old.run_s,
            },
            {
                "pool": self._config.name,
                "program": rollout.program,
                "version": rollout.version,
                "worker": canary.worker_id,
                "action": verdict.decision,
                "reason": verdict.reason,
            },
        )
        if verdict.decision == "back":
            rollout.phase = "rolled back"
            raise ProgramError(
                f"version {rollout.version} of {rollout.program} was rolled back: {verdict.reason}",
                program=rollout.program,
                version=rollout.version,
                reason=verdict.reason,
            )

    async def _take_back(self, handle: WorkerHandle, candidate: Deployment) -> None:
        """Restore the version before on the worker. If that fails the worker must go: it would serve the new one."""
        old = self._current.get(candidate.program)
        try:
            if old is not None:
                await within(TAKE_BACK_S, handle.activate(candidate.program, old), self._sleep)
            with contextlib.suppress(UnknownProgram):  # it may have failed before it was loaded
                await within(TAKE_BACK_S, handle.retire(candidate.program, candidate.version), self._sleep)
        except Exception as failed:
            log.warning(
                "could not take version %s back on %s: %s", candidate.version, handle.worker_id, failed
            )
            self._on_failure(handle.worker_id, f"could not go back to the program version before: {failed}")

    # --- all workers -----------------------------------------------------------------------------------

    async def _bring_all_up(self, rollout: Rollout | None = None) -> None:
        """Give every warm worker the current versions; one that joins meanwhile gets them before it takes traffic."""
        handles = [*self._serving(), *self._spares()]
        if rollout is not None:
            rollout.workers_total = len(handles)

        async def catch_up(handle: WorkerHandle) -> None:
            limit = self._config.warmup.worker_deadline_s
            await within(limit, self._warmer.catch_up(handle), self._sleep)
            if rollout is not None:
                rollout.workers_done += 1

        outcomes = await asyncio.gather(*(catch_up(handle) for handle in handles), return_exceptions=True)
        for handle, outcome in zip(handles, outcomes, strict=True):
            if isinstance(outcome, Exception):
                log.warning("worker %s did not take the new version: %s", handle.worker_id, outcome)
                self._on_failure(handle.worker_id, f"could not load a new program version: {outcome}")

    async def _retire_old(self, deployment: Deployment) -> None:
        """Remove old versions from the workers, but keep the one before for a quick way back."""
        recent = {deployment.version, self._previous.get(deployment.program)}
        for version in self._versions[deployment.program].keys() - recent:
            for handle in [*self._serving(), *self._spares()]:
                try:
                    await within(TAKE_BACK_S, handle.retire(deployment.program, version), self._sleep)
                except (PoolError, TimeoutError) as failed:
                    log.debug("version %s was not on %s: %s", version, handle.worker_id, failed)


def _configured(program: str) -> str:
    """The record that holds what the configuration last said of `program`."""
    return f"configured:{program}"


def deployment_of(program: str, config: ProgramConfig) -> Deployment:
    """The configured program as a deployment without version.

    Raises:
        ConfigError: its `state_file` cannot be read or is not JSON.
    """
    state = None
    if config.state_file is not None:
        try:
            state = msgspec.json.decode(config.state_file.read_bytes())
        except (OSError, msgspec.DecodeError) as unreadable:
            raise ConfigError(
                f"programs.{program}.state_file={str(config.state_file)!r}: {unreadable}",
                key=f"programs.{program}.state_file",
            ) from unreadable
    spec = dict(config.spec or {})
    # The spec's own choice is nearer to the program than the one beside it.
    for key in ("lm", "adapter"):
        if getattr(config, key) is not None:
            spec.setdefault(key, getattr(config, key))
    return Deployment(
        program,
        0,
        spec=spec or None,
        state=state,
        import_path=config.import_path,
        kwargs=dict(config.kwargs),
    )
