"""A pool that runs gets other settings: its parts take them over, or others with the new settings take their place.

Operations go on meanwhile: nothing here is on their way. Each step may be repeated, so that one that was cut off heals
when the same is asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from typing import Final

from dspool.config import PoolConfig
from dspool.core.lifecycle.setting_rules import Part
from dspool.errors import PoolError, StoreFailed, WorkerLost, WorkerStartFailed
from dspool.messages import PoolStatus
from dspool.runtime import lifecycle
from dspool.runtime.answers import ROLE as ANSWERS
from dspool.runtime.cluster import (
    actor_name,
    actor_names,
    ask,
    ask_supervisor,
    find_actor,
    find_supervisor,
)
from dspool.runtime.installed import StartCommand
from dspool.runtime.remote_store import RemoteStore
from dspool.runtime.unfinished import Unfinished, forget, note, noted
from dspool.runtime.workers import RayRuntime, RayWorker

_NAME_FREE_S: Final = 10.0
_LOOK_S: Final = 0.05
_WATCH_S: Final = 0.25


async def exchange(config: PoolConfig, parts: Collection[Part], code: StartCommand | None = None) -> None:
    """Give the pool of `config.name` the settings of `config`; `parts` are those that have to hear of them.

    Returns when all but workers have them: `until_rolled` waits for those. Actors that take another's place run `code`.

    Raises:
        UnknownPool: it does not run.
        WorkerStartFailed: the name of an actor was not free again in time.
    """
    pool = config.name
    before, secret = await ask_supervisor(find_supervisor(pool), "connect_info")
    if "store" in parts:
        await ask(await find_actor(pool, "store"), "take_settings", config)
    # Changes nothing, and refuses what does not fit the cluster before anything has ended.
    await asyncio.to_thread(lifecycle.launch, config, secret, goes_on=True)
    if "running workers" in parts:
        await _tell_workers(config)
    measuring = ("metrics",) if "metrics" in parts else ()
    answering = (ANSWERS,) if "answers" in parts else ()
    # The supervisor always: it gives its configuration to new workers and to clients.
    roles = (*measuring, *answering, "supervisor")
    await _begin(Unfinished(config, secret, roles, _new_size(before, config), code))


async def upgrade(config: PoolConfig, code: StartCommand) -> None:
    """Have all actors of the pool of `config.name` replaced by those that run `code`, with the settings of `config`.

    As `exchange`, it returns when all but workers are. Who asks the store meanwhile waits for the one that takes over.

    Raises:
        UnknownPool, WorkerStartFailed: as `exchange`.
        StoreFailed: the store did not hand over, and serves on.
    """
    measuring = ("metrics",) if config.enable_metrics else ()
    left = await asyncio.to_thread(noted, config.name)
    if left is not None:
        # Cut off: its code may be what did not start, and its supervisor may not be there.
        roles = ("store", *measuring, ANSWERS, "supervisor")
        await _begin(left._replace(config=config, roles=roles, code=code))
        return
    before, secret = await ask_supervisor(find_supervisor(config.name), "connect_info")
    # As `exchange` does: it may refuse.
    await asyncio.to_thread(lifecycle.launch, config, secret, goes_on=True, code=code)
    answering = (ANSWERS,) if before.cache or config.cache else ()
    roles = ("store", *measuring, *answering, "supervisor")
    await _begin(Unfinished(config, secret, roles, _new_size(before, config), code))


def _new_size(before: PoolConfig, config: PoolConfig) -> int | None:
    return None if before.pool_size == config.pool_size else config.pool_size


async def _begin(unfinished: Unfinished) -> None:
    await asyncio.to_thread(note, unfinished)
    # To its end also when the command is interrupted: in the midst of it there may be no store.
    finishing = asyncio.ensure_future(_finish(unfinished))
    try:
        await asyncio.shield(finishing)
    except asyncio.CancelledError:
        await finishing
        raise


async def heal(pool: str) -> None:
    """Finish an exchange that was cut off; nothing to finish is fine.

    Raises:
        WorkerStartFailed: as `exchange`.
    """
    if (unfinished := await asyncio.to_thread(noted, pool)) is not None:
        await _finish(unfinished)


async def _finish(unfinished: Unfinished) -> None:
    """All of it may be done already, and is done again."""
    config, secret, roles, size, code = unfinished
    pool = config.name
    if "store" in roles:
        await _hand_store_over(unfinished)
    if "metrics" in roles:
        with contextlib.suppress(PoolError, ValueError):
            await ask(await find_actor(pool, "metrics"), "save")
    with contextlib.suppress(PoolError):
        await ask(find_supervisor(pool), "detach")
    for role in roles:
        if role != "store":
            await _end(pool, role)
    await asyncio.to_thread(lifecycle.launch, config, secret, goes_on=True, code=code)
    supervisor = find_supervisor(pool)
    await ask_supervisor(supervisor, "connect_info")
    if size is not None:
        await ask_supervisor(supervisor, "resize", size)
    await asyncio.to_thread(forget, pool)


async def mark_of(config: PoolConfig) -> str:
    """The mark of the settings of `config` that workers of the running pool have from their start."""
    mark: str = await ask_supervisor(find_supervisor(config.name), "worker_mark", config)
    return mark


async def gradual_step(config: PoolConfig, percent: int | None) -> None:
    """Have a change of the pool to the worker settings of `config` stand at `percent`; None: it is through.

    It may be the configuration of an exchange that is yet to come.

    Raises:
        StoreFailed: it could not be put on record.
    """
    mark = await mark_of(config)
    await ask_supervisor(find_supervisor(config.name), "gradual_step", mark, percent)


async def status_of(pool: str) -> PoolStatus:
    """The running pool as its supervisor sees it."""
    status: PoolStatus = await ask_supervisor(find_supervisor(pool), "status")
    return status


async def _hand_store_over(unfinished: Unfinished) -> None:
    config, secret, _, _, code = unfinished
    pool = config.name
    try:
        await ask(await find_actor(pool, "store"), "hand_over")
    except (ValueError, WorkerLost):
        pass  # it is gone already
    except StoreFailed:
        await asyncio.to_thread(forget, pool)
        raise
    await _end(pool, "store")
    await asyncio.to_thread(lifecycle.launch, config, secret, goes_on=True, code=code)
    await RemoteStore(pool).describe(pool)


async def roll(pool: str, why: str) -> set[str]:
    """Have every worker that takes traffic or stands by replaced, one after the other; returns their ids."""
    supervisor = find_supervisor(pool)
    status: PoolStatus = await ask_supervisor(supervisor, "status")
    ids = {worker.id for worker in status.workers if worker.state in ("ready", "spare")}
    await ask_supervisor(supervisor, "roll", sorted(ids), why)
    return ids


async def until_rolled(
    config: PoolConfig, old: Collection[str], patience_s: float, told: Callable[[str], None]
) -> None:
    """Until all workers have the settings of `config`, none of `old` is left, and as many serve as should.

    Raises:
        WorkerStartFailed: they cannot start, or do not within `patience_s` after the last one that came; the pool goes
            on trying.
    """
    supervisor = find_supervisor(config.name)
    mark: str = await ask_supervisor(supervisor, "worker_mark")
    last, until, why = None, time.monotonic() + patience_s, ""
    while True:
        status: PoolStatus = await ask_supervisor(supervisor, "status")
        # Between two attempts nothing is wrong.
        why = status.reason or why
        serving = [one for one in status.workers if one.state == "ready"]
        left = [one.id for one in status.workers if one.id in old or one.settings not in ("", mark)]
        asleep = config.lazy and not status.workers
        if not left and (asleep or len(serving) >= status.desired) and all(one.settings for one in serving):
            if asleep:
                told(f"pool {config.name} sleeps: whether its programs can be loaded shows when it is woken")
            return
        progress = (len(left), len(serving))
        if progress != last:
            last, until = progress, time.monotonic() + patience_s
            told(f"{len(left)} of the workers of pool {config.name} are still to be replaced")
        if status.cannot_start:
            raise cannot_start(
                status,
                "; those from before serve on, and the pool goes on trying: correct it, or apply the file from before",
            )
        if time.monotonic() > until:
            raise WorkerStartFailed(
                f"pool {config.name}: {len(left)} workers still have the old settings after {patience_s:g} s"
                f"{': ' + why if why else ''}; they serve on, and the pool goes on trying: apply a file that can be "
                "loaded, or the one from before",
                pool=config.name,
            )
        await asyncio.sleep(_WATCH_S)


def cannot_start(status: PoolStatus, then: str = "") -> WorkerStartFailed:
    """New workers of a pool that serves on with older ones cannot start; `then` is what follows."""
    return WorkerStartFailed(
        f"a new worker of pool {status.name} cannot start: {status.cannot_start}{then}", pool=status.name
    )


async def _tell_workers(config: PoolConfig) -> None:
    workers = await RayRuntime(config, b"").running_workers()
    # One that just ends is replaced by one that has them.
    await asyncio.gather(
        *(ask(one.handle, "take_settings", config) for one in workers if isinstance(one, RayWorker)),
        return_exceptions=True,
    )


async def _end(pool: str, role: str) -> None:
    """Returns when the name is free."""
    name = actor_name(pool, role)
    lifecycle.remove(pool, role)
    until = time.monotonic() + _NAME_FREE_S
    # Ray does not notify anybody of a free name.
    while name in await asyncio.to_thread(actor_names, name):
        if time.monotonic() > until:
            raise WorkerStartFailed(f"the name of the pool's {role} is not free again", pool=pool)
        await asyncio.sleep(_LOOK_S)


__all__ = [
    "cannot_start",
    "exchange",
    "gradual_step",
    "heal",
    "mark_of",
    "roll",
    "status_of",
    "until_rolled",
    "upgrade",
]
