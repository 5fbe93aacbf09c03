"""Every version of each pool program, what it is made of, and which ones are current; all of it is in the store."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from dspool.config import PoolConfig, ProgramConfig
from dspool.config.saved_state import read_state
from dspool.core.lifecycle.source import source_record
from dspool.errors import ConfigError
from dspool.messages import JSON, Deployment
from dspool.messages.programs import VERSIONS_KEPT, MadeBy
from dspool.supervisor.ports import PoolStore

log = logging.getLogger("dspool.supervisor")


class VersionHistory:
    def __init__(
        self,
        config: PoolConfig,
        store: PoolStore,
        *,
        on_change: Callable[[dict[str, int]], None],
        wall: Callable[[], float],
    ) -> None:
        """`on_change` gets every new set of current versions."""
        self._config = config
        self._store = store
        self._on_change = on_change
        self._wall = wall
        self._versions: dict[str, dict[int, Deployment]] = {}
        self._current: dict[str, int] = {}
        self._previous: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def current(self) -> list[Deployment]:
        """The current version of each pool program, with its source; every worker must have them."""
        return [self._versions[program][version] for program, version in sorted(self._current.items())]

    def current_of(self, program: str) -> Deployment | None:
        return self._versions.get(program, {}).get(self._current.get(program, 0))

    def number_before(self, program: str) -> int | None:
        """Of the version that was current before; None: there was none."""
        current = self._current.get(program, 0)
        earlier = (number for number in self._versions.get(program, {}) if number < current)
        return self._previous.get(program) or max(earlier, default=None)

    def numbers(self, program: str) -> list[int]:
        return sorted(self._versions.get(program, {}))

    def last_number(self, program: str) -> int:
        """The highest that any version had, those that were tried and not accepted included."""
        return max(self._last.get(program, 0), *self._versions.get(program, {}), 0)

    async def take_number(self, program: str) -> int:
        """A number for a version that is to be tried: never had before, and never to be had again, however it ends.

        Its canary answers with it, so another version that took the same number would be a second code under it.
        """
        number = self._last[program] = self.last_number(program) + 1
        await self._store.put_record(self._config.name, _last_key(program), number)
        return number

    async def version(self, program: str, number: int) -> Deployment | None:
        """With its source."""
        d = self._versions.get(program, {}).get(number)
        if d is not None and d.source is None:
            source: JSON | None = await self._store.get_record(self._config.name, source_record(d))
            if source is not None:
                d = self._versions[program][number] = msgspec.structs.replace(d, source=source)
        return d

    async def load(self) -> None:
        """Load the versions from the store; a program that is new or changed in the configuration gets a version.

        One that the configuration no longer has is no pool program any more. Its versions stay, should it come back.

        Raises:
            ConfigError: a `state_file` that cannot be read.
            StoreFailed: the store cannot be reached.
        """
        pool = self._config.name
        for deployment in await self._store.deployments(pool):
            self._versions.setdefault(deployment.program, {})[deployment.version] = deployment
        self._current = {
            program: version
            for program, version in (await self._store.current_versions(pool)).items()
            if version in self._versions.get(program, {})
        }
        for program in set(self._current) - set(self._config.programs):
            if await self._store.get_record(pool, _configured(program)) is not None:
                await self._store.set_current(pool, program, None)
                del self._current[program]
        for program in self._versions:
            self._last[program] = await self._store.get_record(pool, _last_key(program)) or 0
        for program, number in self._current.items():
            await self.version(program, number)
        for program, program_config in self._config.programs.items():
            deployment = deployment_of(program, program_config)
            # Compared with the last configuration, not with the current version: a version deployed by hand since
            # then stays, also over a restart of the supervisor.
            fingerprint = _fingerprint(deployment)
            if (
                await self._store.get_record(pool, _configured(program)) != fingerprint
                or program not in self._current
            ):
                deployment = msgspec.structs.replace(deployment, version=await self.take_number(program))
                await self.adopt(await self.add(deployment, "config"))
                await self._store.put_record(pool, _configured(program), fingerprint)
        self._on_change(dict(self._current))

    async def add(self, deployment: Deployment, made_by: MadeBy) -> Deployment:
        """Keep a new version under the number that it took; returns it as it is kept."""
        deployment = msgspec.structs.replace(deployment, made_by=made_by, made_at=self._wall())
        added = await self._store.add_deployment(self._config.name, deployment, deployment.version)
        if added.source:
            await self._store.put_record(self._config.name, source_record(added), added.source)
        return added

    async def adopt(self, deployment: Deployment) -> None:
        """Make it the current version of its program."""
        await self._store.set_current(self._config.name, deployment.program, deployment.version)
        self._versions.setdefault(deployment.program, {})[deployment.version] = deployment
        old = self._current.get(deployment.program)
        if old is not None and old != deployment.version:
            self._previous[deployment.program] = old
        self._current[deployment.program] = deployment.version
        await self._forget_old(deployment.program)
        self._on_change(dict(self._current))

    async def set_source(self, d: Deployment, modules: dict[str, str]) -> None:
        """Record what `d` is made of: the first worker has loaded it. Nothing can change it afterwards."""
        known = self._versions.get(d.program, {}).get(d.version)
        if modules and known is not None and known.source is None:
            # At once, before anything is awaited: what another worker has meanwhile is compared with this.
            self._versions[d.program][d.version] = msgspec.structs.replace(known, source=modules)
            await self._store.put_record(self._config.name, source_record(d), modules)

    async def _forget_old(self, program: str) -> None:
        """As the store does: a roll-back goes to one of the newest, or to the one before."""
        versions = self._versions[program]
        in_use = {self._current[program], self._previous.get(program)}
        for number in {one for one in versions if one <= max(versions) - VERSIONS_KEPT} - in_use:
            d = await self.version(program, number)
            del versions[number]
            if d is not None and d.source:
                # Of each the store keeps an empty record.
                await self._store.put_record(self._config.name, source_record(d), None)


def _configured(program: str) -> str:
    """The record that holds what the configuration last said of `program`."""
    return f"configured:{program}"


def _last_key(program: str) -> str:
    return f"last_version:{program}"


def _fingerprint(d: Deployment) -> JSON:
    """What the configuration says of a program, in the form that pools have on record."""
    names = ("program", "version", "spec", "state", "import_path", "kwargs")
    said = {name: getattr(d, name) for name in names}
    if d.program_dir is not None:
        said["program_dir"] = d.program_dir
    fingerprint: JSON = msgspec.to_builtins(said)
    return fingerprint


def deployment_of(program: str, config: ProgramConfig) -> Deployment:
    """The configured program as a deployment without version.

    Raises:
        ConfigError: its `state_file` cannot be read or is not JSON.
    """
    state = None
    if config.state_file is not None:
        try:
            state = read_state(config.state_file)
        except ValueError as why:
            raise ConfigError(
                f"programs.{program}.state_file={str(config.state_file)!r} {why}",
                key=f"programs.{program}.state_file",
            ) from None
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
        program_dir=None if config.program_dir is None else str(config.program_dir),
    )
