"""What users hold in the cluster: a pool, its sessions, and the blocking form of both."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Self

import ray
from ray.actor import ActorHandle

from dspool import preflight
from dspool.blocking import BlockingClient, BlockingSession, iterating, waiting
from dspool.client.client import Client, ControlPlane
from dspool.config import PoolConfig
from dspool.direct import DirectPool, SessionHandle
from dspool.errors import Conflict
from dspool.runtime import cluster, lifecycle
from dspool.runtime.actors import PoolActors
from dspool.runtime.cluster import ask_supervisor
from dspool.runtime.forkserver import to_load
from dspool.runtime.metrics import RemoteMetrics
from dspool.runtime.remote_store import RemoteStore
from dspool.runtime.supervisor_link import SupervisorLink
from dspool.telemetry.pseudonyms import try_read_key

_DRAIN_S = 30.0


class Pool(PoolActors, DirectPool):
    """A client of one pool of workers. Belongs to the event loop that opened it.

    `async with Pool.start(config) as pool` runs a pool for the length of the block; `await Pool.connect(name)` joins
    one that runs (close it with `await pool.close()`: the pool goes on).
    """

    def __init__(self, name: str, client: Client, supervisor: SupervisorLink) -> None:
        DirectPool.__init__(self, name, client)
        PoolActors.__init__(self, name, supervisor)

    # --- opening and closing ---

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        config: PoolConfig | None = None,
        *,
        listen_on: str | None = None,
        on_delay: Callable[[str], None] | None = None,
        **overrides: Any,
    ) -> AsyncIterator[Pool]:
        """Run a pool for the length of the block; drains it at the end.

        Joins the Ray cluster of this process if `ray.init` was called, else starts one of its own on this machine.
        Without a configuration it is the default pool, which answers `qa` offline. Workers listen for clients on
        `listen_on`: by default the address of their node, which is loopback in a cluster of its own. `on_delay` hears
        why workers are not ready yet.

        Raises:
            ConfigError: the configuration was refused, or its SQLite store on a cluster of several nodes.
            Conflict: a pool of this name runs on the cluster; nothing was changed.
            WorkerStartFailed: not enough workers were warm after `init_timeout_s`, or at once if the programs cannot
                be loaded; says why.
        """
        config = config or PoolConfig.default()
        if overrides:
            config = config.override(**overrides)
        own = not ray.is_initialized()
        if own:
            preflight.refuse_obstacles(config)
        with (
            cluster.own_cluster(load=to_load(config), patience_s=config.init_timeout_s)
            if own
            else nullcontext()
        ):
            if config.name in cluster.list_pools():
                raise Conflict(
                    f"pool {config.name!r} runs on this cluster already; "
                    "use Pool.connect to join it, or another name",
                    pool=config.name,
                )
            supervisor = lifecycle.launch(config, secrets.token_bytes(32), host=listen_on)
            async with cls._until_its_end(config, supervisor) as pool:
                await pool.wait_ready(on_delay=on_delay)
                yield pool

    @classmethod
    @asynccontextmanager
    async def take_over(cls, name: str) -> AsyncIterator[Pool]:
        """Hold a pool that runs on this process's Ray cluster as if `start` had started it: it ends with the block.

        Raises:
            UnknownPool: there is none of that name.
        """
        supervisor = cluster.find_supervisor(name)
        config, _ = await ask_supervisor(supervisor, "connect_info")
        async with cls._until_its_end(config, supervisor) as pool:
            yield pool

    @classmethod
    @asynccontextmanager
    async def _until_its_end(cls, config: PoolConfig, supervisor: ActorHandle[Any]) -> AsyncIterator[Pool]:
        try:
            pool = await cls._open(config.name, supervisor)
            try:
                yield pool
            finally:
                await pool.close()
        finally:
            await lifecycle.dismantle(config, timeout_s=_DRAIN_S)

    @classmethod
    async def connect(cls, name: str = "default") -> Pool:
        """Join a pool that runs on this process's Ray cluster.

        Raises:
            UnknownPool: there is none of that name.
        """
        return await cls._open(name, cluster.find_supervisor(name))

    @classmethod
    async def _open(cls, name: str, supervisor: ActorHandle[Any]) -> Pool:
        link = SupervisorLink(name, supervisor)
        config, secret = await link.query("connect_info")
        client = Client(
            config,
            secret,
            ControlPlane(
                watch=lambda version: link.ask("watch", version),
                report_dead=lambda worker_id, why: link.ask("report_dead", worker_id, why),
                wake=(lambda: link.ask("wake")) if config.lazy else None,
                report=RemoteMetrics(name).report if config.enable_metrics else None,
            ),
        )
        link.has_ended = lambda: client.membership.closed
        await client.start()
        await try_read_key(name, RemoteStore(name).get_record)
        return cls(name, client, link)


class BlockingPool(BlockingClient[Pool]):
    """`with BlockingPool.start(config) as pool: pool.execute("qa", question=...)`. Safe to use from several threads."""

    @classmethod
    def start(cls, config: PoolConfig | None = None, **overrides: Any) -> Self:
        """As `Pool.start`. The pool ends with the `with` block, or with `close()`."""
        return cls(Pool.start(config, **overrides))

    @classmethod
    def connect(cls, name: str = "default") -> Self:
        """As `Pool.connect`."""
        return cls(_connected(name))

    run = waiting(Pool.run)
    stream = iterating(Pool.stream)
    sessions = waiting(Pool.sessions)
    end_session = waiting(Pool.end_session)
    create_session = waiting(Pool.create_session)

    def session(self, session_id: str, *, principal: str | None = None) -> BlockingSession:
        """As `Pool.session`."""
        return BlockingSession(self._portal, self.pool.session(session_id, principal=principal))


@asynccontextmanager
async def _connected(name: str) -> AsyncIterator[Pool]:
    pool = await Pool.connect(name)
    try:
        yield pool
    finally:
        await pool.close()


__all__ = ["BlockingPool", "Pool", "SessionHandle"]
