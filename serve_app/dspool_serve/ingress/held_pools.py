"""The pools of one service: started or taken over, and ended with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from dspool.config import PoolConfig
from dspool.errors import PoolError, UnknownPool
from dspool_serve.ingress.starting import Report

if TYPE_CHECKING:
    # Ray reads variables when it is imported: not before the service has set them.
    from dspool.pool import Pool


class HeldPools:
    """Each is a client of a pool that ends with this service."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[AbstractAsyncContextManager[Pool], Pool]] = {}

    def __iter__(self) -> Iterator[Pool]:
        return iter([pool for _, pool in self._open.values()])

    def __len__(self) -> int:
        return len(self._open)

    async def start(self, configs: Sequence[PoolConfig], report: Report) -> None:
        """Start all of them at once; if one fails, those that started stay until `stop`.

        Raises:
            PoolError: what the first that failed raised.
        """
        from dspool.pool import Pool

        await self._enter(
            {one.name: Pool.start(one, on_delay=lambda why: report("warning", why)) for one in configs}
        )

    async def take_over(self, names: Sequence[str]) -> None:
        """Hold pools that run already: their workers go on.

        Raises:
            UnknownPool: one of them does not run.
        """
        from dspool.pool import Pool

        await self._enter({name: Pool.take_over(name) for name in names})

    async def _enter(self, opening: dict[str, AbstractAsyncContextManager[Pool]]) -> None:
        outcomes = await asyncio.gather(
            *(one.__aenter__() for one in opening.values()), return_exceptions=True
        )
        for (name, context), outcome in zip(opening.items(), outcomes, strict=True):
            if not isinstance(outcome, BaseException):
                self._open[name] = context, outcome
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def stop(self, others: Iterable[str] = ()) -> None:
        """End them, and the `others` that came to the service while it ran: running operations finish first."""
        ending = [context.__aexit__(None, None, None) for context, _ in self._open.values()]
        more = [end_pool(name) for name in others if name not in self._open]
        self._open.clear()
        for outcome in await asyncio.gather(*ending, *more, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome


async def end_pool(name: str) -> None:
    """Let a pool that runs on this process's cluster finish, and remove it; none is fine too."""
    from dspool.runtime import lifecycle

    with contextlib.suppress(UnknownPool):
        config = await running_config(name)
        await lifecycle.dismantle(config, timeout_s=config.operation_timeout_s)


async def running_config(name: str, *, heals: bool = True) -> PoolConfig:
    """The configuration with which a pool runs. A change of it that was cut off is finished first; where it is not to
    be (`heals`), the configuration is the one that the pool is on its way to.

    Raises:
        UnknownPool: it does not run on this process's cluster.
    """
    from dspool.runtime import cluster
    from dspool.runtime.exchange import heal
    from dspool.runtime.unfinished import noted

    if heals:
        await heal(name)
    elif (unfinished := await asyncio.to_thread(noted, name)) is not None:
        return unfinished.config
    config, _ = await cluster.ask_supervisor(cluster.find_supervisor(name), "connect_info")
    assert isinstance(config, PoolConfig)
    return config


async def running_configs(names: Iterable[str]) -> list[PoolConfig] | None:
    """The same of several pools; None if one of them does not run, or does not answer."""
    try:
        return [await running_config(name) for name in names]
    except PoolError:
        return None


__all__ = ["HeldPools", "end_pool", "running_config", "running_configs"]
