"""Whether what runs can be upgraded to the installation of this process: asked before anything is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dspool.config import PoolConfig
from dspool.core.lifecycle.upgrades import is_same, why_not, why_not_node, why_not_schema
from dspool.errors import ConfigError
from dspool.runtime.installed import StartCommand, installation
from dspool.store.schema import parse_url
from dspool.store.settings import store_url
from dspool_serve.ingress.gradual import half_way
from dspool_serve.ingress.service_record import ServiceRecord
from dspool_serve.ingress.starting import Report


def is_done(record: ServiceRecord) -> bool:
    """Whether this installation serves already."""
    return record.upgrade is None and is_same(record.installation, installation())


async def refuse(
    record: ServiceRecord, wanted: Sequence[PoolConfig], standing: Sequence[str], report: Report
) -> None:
    """`standing` are pools of which a change stands half-way.

    Raises:
        ConfigError: this installation cannot take the place of what runs; says what to do instead.
        Conflict: a change of a pool has to end first.
        StoreFailed: a store cannot be asked.
    """
    if why := why_not(record.installation, installation()):
        raise ConfigError(f"{why}; nothing was changed")
    for name in standing:
        raise half_way(name)
    for config in wanted:
        # Here is all that the new store will be made of, or it is said now.
        parse_url(store_url(config))
        if config.name in record.pools and record.upgrade is None:
            await _refuse_schema(config)
    report("check", f"looking for {installation()} on each node")
    for config in wanted:
        await _refuse_nodes(config)


async def _refuse_schema(config: PoolConfig) -> None:
    from dspool.runtime.remote_store import RemoteStore
    from dspool.store.migrations import RUNNING_FROM, SCHEMA_VERSION

    status = await RemoteStore(config.name).describe(config.name)
    why = why_not_schema(status.schema_version, known=SCHEMA_VERSION, running_from=RUNNING_FROM)
    if why:
        raise ConfigError(f"pool {config.name}: {why}; nothing was changed", pool=config.name)


async def _refuse_nodes(config: PoolConfig) -> None:
    from dspool.runtime.node_look import installations

    code, mine = StartCommand.of_this_process(config), installation()
    found = await asyncio.to_thread(installations, code, config.init_timeout_s)
    refused = [why for node, one in found.items() if (why := why_not_node(node[:8], one, mine))]
    if refused:
        raise ConfigError(f"{'; '.join(refused)}; nothing was changed")


__all__ = ["is_done", "refuse"]
