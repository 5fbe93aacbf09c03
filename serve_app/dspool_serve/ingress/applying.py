"""A running service changed: pools added, changed and removed, workers and ingress processes replaced.

Traffic goes on: what replaces something serves before that goes. Cut off, the same asked again does what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import Struct

from dspool.config import PoolConfig
from dspool.core.lifecycle.config_changes import PoolChange, changes, ingress_mark
from dspool.core.lifecycle.gradual_watch import StepFacts
from dspool.core.lifecycle.upgrades import is_same
from dspool.core.wording import counted
from dspool.errors import (
    ConfigError,
    Conflict,
    PoolError,
    PoolNotReady,
    StoreFailed,
    UnknownPool,
    WorkerStartFailed,
)
from dspool.runtime.installed import StartCommand, installation
from dspool_serve.ingress import service_record
from dspool_serve.ingress.answering import wait_until_it_answers
from dspool_serve.ingress.applications import deploy
from dspool_serve.ingress.gradual import GradualApply, Gradually, check, finish, half_way, needs_steps
from dspool_serve.ingress.held_pools import end_pool, running_config
from dspool_serve.ingress.service_record import ServiceRecord
from dspool_serve.ingress.spreading import spread_here
from dspool_serve.ingress.starting import Report


class Plan(Struct, frozen=True, kw_only=True):
    """What there is to do."""

    pools: list[PoolChange]
    new_ingress: bool
    standing: tuple[str, ...] = ()
    """Pools of which a change stands half-way, where an `apply --gradual` was cut off."""

    @property
    def is_empty(self) -> bool:
        return not self.new_ingress and not self.standing and all(one.deed == "keep" for one in self.pools)


@contextmanager
def joined(address: str, token_path: str | None) -> Iterator[ServiceRecord]:
    """Be on the cluster of a running service in the block. Before the first import of Ray in this process.

    Raises:
        PoolNotReady: no service runs there, or its cluster cannot be joined.
    """
    if token_path is not None:
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token_path})
        os.environ.pop("RAY_AUTH_TOKEN", None)
    import ray

    from dspool.runtime import cluster

    try:
        cluster.join_cluster(address)
    except Exception as failed:
        # Ray raises errors of many kinds here, even bare ones.
        raise PoolNotReady(
            f"cannot join Ray at {address} ({type(failed).__name__}): its service may just be ending; `dspool status` "
            "tells"
        ) from failed
    try:
        record = service_record.read()
        if record is None or record.phase != "serving":
            raise PoolNotReady(f"no service serves on Ray at {address}", running=False)
        # Serve reads them when it is imported.
        os.environ.update(record.serve_variables)
        yield record
    finally:
        ray.shutdown()


async def running_pools(record: ServiceRecord, *, heals: bool = True) -> dict[str, PoolConfig]:
    """The configurations with which the pools of a service run, as `running_config` gives them; without those that an
    `apply` that was cut off had yet to start.

    Raises:
        PoolNotReady: one of them does not answer.
    """
    found = {}
    for name in record.pools:
        try:
            with contextlib.suppress(UnknownPool):
                found[name] = await running_config(name, heals=heals)
        except PoolError as failed:
            raise PoolNotReady(f"pool {name} does not answer ({failed.message}); try again") from failed
    return found


async def plan(record: ServiceRecord, wanted: Sequence[PoolConfig], *, heals: bool = True) -> Plan:
    """What turns what runs into what is wanted; with `heals` what was cut off is finished first, else nothing changes.

    Raises:
        PoolNotReady: as `running_pools`.
        Conflict: with `heals`, another command changes the service.
    """
    names = {config.name for config in wanted}
    if heals:
        async with service_record.changing():
            record = service_record.read() or record
            running = await running_pools(record)
            kept = tuple(name for name in record.pools if name in running or name in names)
            if kept and kept != record.pools:
                # One that has ended is still named where the `apply` that ended it was cut off.
                record = _written(record, pools=kept)
    else:
        running = await running_pools(record, heals=False)
    found = changes(running, {config.name: config for config in wanted})
    standing = tuple([name for name in running if name in names and await _stands(name)])
    return Plan(pools=found, new_ingress=record.ingress != ingress_mark(wanted), standing=standing)


async def _stands(pool: str) -> bool:
    from dspool.runtime.exchange import status_of

    try:
        return (await status_of(pool)).gradual is not None
    except PoolError:
        # Between one supervisor and the next.
        return False


def refuse_other_code(record: ServiceRecord) -> None:
    """Raises: ConfigError: this process is not of the installation that serves."""
    mine, serves = installation(), record.installation
    if record.upgrade is not None:
        raise ConfigError(f"an upgrade to {record.upgrade} was cut off: finish it with its `dspool upgrade`")
    if serves.dspool and not is_same(serves, mine):
        raise ConfigError(
            f"this is {mine}, and the service runs {serves}: use the dspool of that environment, or first "
            "`dspool upgrade` of this one, if it is not older"
        )


async def apply(
    record: ServiceRecord,
    todo: Plan,
    wanted: Sequence[PoolConfig],
    report: Report,
    gradually: Gradually | None = None,
    *,
    upgrades: bool = False,
) -> list[StepFacts]:
    """Do it: what is new comes first, what goes, last; returns the steps, where it goes `gradually`.

    With `upgrades`, all processes become those of this one's installation as well.

    Raises:
        Conflict: another command changes the service, or, going `gradually`, an earlier change stands half-way; nothing
            was changed.
        ChangeWentBack: a pool went back by itself to the settings that it had.
        PoolError: what could not be done; what was done stays, and the same asked again goes on from there.
    """
    async with service_record.changing():
        record = await _as_planned(record, todo, wanted)
        return await _apply(record, todo, wanted, report, gradually, upgrades=upgrades)


async def _as_planned(record: ServiceRecord, todo: Plan, wanted: Sequence[PoolConfig]) -> ServiceRecord:
    """The record as it is now. Raises: Conflict: another command has changed the service since `todo` was planned."""
    now = service_record.read()
    if (
        now is None
        or (now.installation, now.upgrade) != (record.installation, record.upgrade)
        or await plan(now, wanted, heals=False) != todo
    ):
        raise Conflict(
            "another command has changed the service since this one looked at it; nothing was changed by this one, "
            "try again"
        )
    return now


async def _apply(
    record: ServiceRecord,
    todo: Plan,
    wanted: Sequence[PoolConfig],
    report: Report,
    gradually: Gradually | None,
    *,
    upgrades: bool,
) -> list[StepFacts]:
    from dspool.runtime.exchange import exchange, until_rolled, upgrade

    configs = {config.name: config for config in wanted}
    if gradually is not None:
        check(todo.pools, configs, todo.standing)
    names, in_steps, steps = list(record.pools), list[PoolChange](), list[StepFacts]()
    upgraded, cut_off = False, record.upgrade
    if upgrades:
        record = _written(record, upgrade=installation())
    for change in todo.pools:
        config = configs.get(change.pool)
        if change.deed == "add" and config is not None:
            names = [*dict.fromkeys([*names, change.pool])]
            record = _written(record, pools=tuple(names))
            await _add(record, config, report)
        elif upgrades and config is not None:
            report("upgrade", f"pool {change.pool}: its store, its metrics and its supervisor")
            try:
                await upgrade(config, StartCommand.of_this_process(config))
            except StoreFailed:
                if not upgraded:
                    # It serves on, and so does all else: nothing is half-way.
                    _written(record, upgrade=cut_off)
                raise
            upgraded = True
        elif gradually is not None and config is not None and needs_steps(change):
            in_steps.append(change)
        elif change.deed == "change" and config is not None:
            report("change", f"pool {change.pool}: {', '.join(one.setting for one in change.settings)}")
            await exchange(config, change.parts, _code(record, config))
    for change in in_steps:
        config = configs[change.pool]
        assert gradually is not None
        way = GradualApply(
            await running_config(config.name),
            config,
            change,
            gradually,
            _patience_s(config),
            report,
            code_of=lambda config: _code(record, config),
        )
        await way.run()
        steps += way.steps
    for config in wanted:
        await finish(config)
        # Also without a change: one that was cut off may have left workers with older settings.
        await until_rolled(config, (), _patience_s(config), lambda text: report("workers", text))
    kept = tuple(name for name in names if name in configs)
    if todo.new_ingress or upgrades:
        record = await renew_ingress(record, wanted, report, pools=tuple(names))
    for change in todo.pools:
        if change.deed == "remove":
            report("pool", f"ending pool {change.pool}: its operations finish first")
            await end_pool(change.pool)
    if upgrades:
        record = _written(record, installation=installation(), chosen=True, upgrade=None)
    if record.pools != kept:
        _written(record, pools=kept)
    return steps


def _code(record: ServiceRecord, config: PoolConfig) -> StartCommand | None:
    """What new processes run; None: what the cluster's processes run."""
    return StartCommand.of_this_process(config) if record.chosen or record.upgrade is not None else None


async def _add(record: ServiceRecord, config: PoolConfig, report: Report) -> None:
    from dspool.pool import Pool
    from dspool.runtime import cluster, lifecycle

    report("pool", f"warming {counted(config.pool_size, 'worker')} of pool {config.name}")
    if config.name not in await asyncio.to_thread(cluster.list_pools):
        lifecycle.launch(config, secrets.token_bytes(32), code=_code(record, config))
    pool = await Pool.connect(config.name)
    try:
        await pool.wait_ready(on_delay=lambda why: report("warning", why))
    finally:
        await pool.close()


async def renew_ingress(
    record: ServiceRecord, wanted: Sequence[PoolConfig], report: Report, *, pools: tuple[str, ...]
) -> ServiceRecord:
    """Replace the HTTP processes: new ones serve before the old ones stop taking requests."""
    from dspool_serve.ingress.deployment import build_app

    report("http", "replacing the HTTP processes, the new ones first")
    first, names = wanted[0], [config.name for config in wanted]
    app = build_app(
        first,
        names=names,
        client_header=record.client_header,
        spread=spread_here(first),
        variables=record.variables,
        code=_code(record, first),
    )
    try:
        await deploy(app, record.application)
    except RuntimeError as failed:
        raise WorkerStartFailed(f"the new HTTP processes did not start: {failed}") from failed
    await wait_until_it_answers(record.url, names, first.init_timeout_s)
    return _written(record, pools=pools, ingress=ingress_mark(wanted))


async def restart(
    record: ServiceRecord, names: Sequence[str], report: Report, *, ingress: bool
) -> dict[str, int]:
    """Replace all workers of the pools `names`, one after the other, then the HTTP processes; returns how many workers
    of each pool.

    Raises:
        Conflict: another command changes the service, or a change of one of the pools stands half-way.
        PoolNotReady: one of the pools does not run, or does not answer.
    """
    refuse_other_code(record)
    async with service_record.changing():
        return await _restart(record, names, report, ingress=ingress)


async def _restart(
    record: ServiceRecord, names: Sequence[str], report: Report, *, ingress: bool
) -> dict[str, int]:
    from dspool.runtime.exchange import roll, until_rolled

    configs = await running_pools(record)
    if missing := [name for name in names if name not in configs]:
        raise PoolNotReady(f"pool {', '.join(missing)} does not run; `dspool apply` starts what the file has")
    for name in names:
        if await _stands(name):
            raise half_way(name)
    rolled = {}
    for name in names:
        old = await roll(name, "a rolling restart")
        rolled[name] = len(old)
        report("workers", f"pool {name}: replacing {len(old)} workers, one after the other")
        config = configs[name]
        await until_rolled(config, old, _patience_s(config), lambda text: report("workers", text))
    if ingress:
        await renew_ingress(record, list(configs.values()), report, pools=record.pools)
    return rolled


def _patience_s(config: PoolConfig) -> float:
    """A worker starts, and then the one that it replaces finishes what it has."""
    return config.init_timeout_s + config.operation_timeout_s + 10.0


def _written(record: ServiceRecord, **fields: Any) -> ServiceRecord:
    record = msgspec.structs.replace(record, **fields)
    service_record.write(record)
    return record


__all__ = [
    "Gradually",
    "Plan",
    "apply",
    "joined",
    "plan",
    "refuse_other_code",
    "renew_ingress",
    "restart",
    "running_pools",
]
