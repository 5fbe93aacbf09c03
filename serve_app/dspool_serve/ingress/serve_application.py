"""The service as an application of Ray Serve that brings its pools with it: for `serve run`, `serve build`,
`serve deploy` and a RayService of KubeRay, where no `dspool up` runs.

Annotations are not put off here: Serve looks at the one of the builder's argument.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application as BoundApplication

from dspool.config import PoolConfig, load_pools
from dspool.core.lifecycle.config_changes import changes
from dspool.errors import ConfigError, PoolError, UnknownPool
from dspool_serve.ingress.deployment import RayPools, build_app
from dspool_serve.ingress.held_pools import end_pool, running_config

log = logging.getLogger("dspool.serve")

KEEPER: Final = "dspool-pools"
_LOOK_S: Final = 0.2


class ServeArguments(BaseModel):
    """What `builder` takes: `serve run dspool_serve:builder config=pool.yaml`, or `args` in Serve's own file."""

    model_config = ConfigDict(extra="forbid")

    config: Path | None = Field(
        default=None, description="YAML file with the configuration, on the head node."
    )
    settings: dict[str, Any] = Field(
        default={}, description="Settings by dotted name; they count more than the file."
    )


def application() -> BoundApplication:
    """The service that `DSPOOL_CONFIG` and the other `DSPOOL_*` variables describe."""
    return builder(ServeArguments())


def builder(args: ServeArguments) -> BoundApplication:
    """The service that `args` describe.

    Raises:
        ConfigError: a value is refused.
    """
    configs = [one.config for one in load_pools(cli=args.settings, file=args.config)]
    first = configs[0]
    names = [one.name for one in configs]
    keeper: serve.Deployment = serve.deployment(  # type: ignore[assignment]
        PoolKeeper,
        name=KEEPER,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        # The pools finish what they have before they end.
        graceful_shutdown_timeout_s=max(one.operation_timeout_s for one in configs) + 15.0,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    pools = partial(KeptPools, names, max(one.init_timeout_s for one in configs))
    return build_app(first, pools=pools, beside=keeper.bind(configs))


class PoolKeeper:
    """Starts the pools with the application, changes them with its settings, and ends them with it."""

    # Serve waits for both of these.
    async def __init__(self, configs: list[PoolConfig]) -> None:  # type: ignore[misc]
        self._configs = configs
        self._application = serve.get_replica_context().app_name
        from dspool.runtime import cluster, lifecycle
        from dspool.runtime.exchange import exchange, heal

        for config in self._configs:
            await heal(config.name)
        running = set(await asyncio.to_thread(cluster.list_pools))
        for config in self._configs:
            if config.name not in running:
                lifecycle.launch(config, secrets.token_bytes(32))
                continue
            before = await running_config(config.name)
            [change] = changes({config.name: before}, {config.name: config})
            if change.refused:
                said = "; ".join(f"{one.setting}: {one.why}" for one in change.refused)
                raise ConfigError(f"cannot change while the pool runs: {said}", key=change.refused[0].setting)
            if change.settings:
                await exchange(config, change.parts)

    async def __del__(self) -> None:
        with contextlib.suppress(Exception):
            # Another one of the same application goes on with them.
            if await asyncio.to_thread(self._is_last):
                await self._end()

    def _is_last(self) -> bool:
        try:
            ours = serve.status().applications.get(self._application)
        except Exception:
            # Serve itself ends.
            return True
        return ours is None or ours.status.value in ("DELETING", "NOT_STARTED")

    async def _end(self) -> None:
        for config in self._configs:
            try:
                await end_pool(config.name)
            except PoolError as failed:
                log.warning("pool %s was not ended: %s", config.name, failed.message)


class KeptPools(RayPools):
    """Pools that another process of the application is starting."""

    def __init__(self, names: list[str], patience_s: float) -> None:
        super().__init__(names)
        self._patience_s = patience_s

    async def open(self) -> None:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                await super().open()
                return
            except UnknownPool:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(_LOOK_S)


__all__ = ["KeptPools", "PoolKeeper", "ServeArguments", "application", "builder"]
