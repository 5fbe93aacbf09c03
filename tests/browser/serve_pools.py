"""Let a running service serve other pools.

`python -m tests.browser.serve_pools RAY_ADDRESS STATE_DIR CONFIG`

Each line of the standard input names the pools. Those that are not there yet are started, and end when the input does.
RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH are those of the service's Ray.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from dspool.config import PoolConfig, load_config
from dspool_serve.ingress import haproxy
from dspool_serve.ingress.service import application_name


async def main(address: str, state_dir: Path, config: PoolConfig) -> None:
    # All processes of a Serve must see the same.
    os.environ.update(haproxy.serve_variables())
    from ray import serve

    from dspool.pool import Pool
    from dspool.runtime import cluster
    from dspool_serve.ingress.deployment import RayPools, build_app

    cluster.join_cluster(address)
    async with AsyncExitStack() as started:
        running = {config.name}
        while line := await asyncio.to_thread(sys.stdin.readline):
            names = line.split()
            for name in set(names) - running:
                other = PoolConfig(name=name, pool_size=1, state_dir=state_dir, enable_optimizer=False)
                await started.enter_async_context(Pool.start(other))
                running.add(name)
            application = build_app(config, pools=partial(RayPools, names))
            await asyncio.to_thread(
                serve.run, application, name=application_name(config.name), route_prefix="/"
            )
            print("served", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), load_config(file=Path(sys.argv[3])).config))
