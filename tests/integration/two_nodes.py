"""A pool on a cluster that grows by a node, whose store is killed again and again, and pools that come too late.

`python two_nodes.py DIRECTORY`, a short one that only we can enter, writes what it saw to `seen.json` there.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import ray
from harness import actors_of, full, kill, pid_of
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dspool import Pool, PoolConfig
from dspool.errors import ConfigError
from dspool.runtime import forkserver
from dspool.runtime.cluster import NAMESPACE, living_nodes, own_token

WORKERS = 6
KILLS = 6
"""Left to itself Ray starts an actor that needs no processor on a node by chance."""


class Forked:
    def told(self) -> tuple[int, int, str]:
        return os.getpid(), os.getppid(), os.environ["_DSPOOL_START"]


def forked_on_each() -> list[tuple[int, int, str]]:
    """Process, parent and way of starting of a forked actor on each node."""
    options = {"num_cpus": 0, "runtime_env": {"py_executable": forkserver.command()}}
    where = [NodeAffinitySchedulingStrategy(node, soft=False) for node in living_nodes()]
    actors = [ray.remote(Forked).options(scheduling_strategy=node, **options).remote() for node in where]
    return ray.get([actor.told.remote() for actor in actors])


async def use(cluster: Cluster, directory: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    config = PoolConfig.default().override(
        pool_size=1, max_pool_size=WORKERS, state_dir=directory / "state", init_timeout_s=120
    )
    async with Pool.start(config) as pool:
        first = ray.get_runtime_context().get_node_id()
        cluster.add_node(num_cpus=2)
        seen["forked"] = await asyncio.to_thread(forked_on_each)
        session = pool.session("ada")
        await session.set_variable("colour", "blue")
        store = pool.store
        seen["nodes"] = []
        for _ in range(KILLS):
            kill(await pid_of(store))
            await pid_of(store)
            node = await store.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
            seen["nodes"].append("first" if node == first else "second")
        found, _ = await pool.sessions()
        seen["sessions"] = [info.id for info in found]
        await pool.resize(WORKERS)
        await full(pool, WORKERS)
        places = Counter(member.node for member in pool.client.membership.workers)
        seen["spread"] = sorted(places.values())
    async with Pool.start(config) as again:
        store = again.store
        node = await store.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
        seen["again"] = "first" if node == first else "second"
        seen["kept"] = (await again.session("ada").get_variable("colour"))["value"]
        seen["status"] = msgspec.to_builtins(await again.store_status())
    try:
        async with Pool.start(config.override(state_dir=directory / "another")):
            seen["refused"] = ""
    except ConfigError as refused:
        seen["refused"] = refused.message
    seen["left"] = actors_of("default")
    return seen


def main(directory: Path) -> None:
    # Else the cluster's address, its token and its sockets would be where all clusters of the machine have theirs.
    os.environ["RAY_TMPDIR"] = str(directory / "ray")
    (directory / "ray").mkdir()
    with own_token(directory):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=2, include_dashboard=False)
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
            seen = asyncio.run(use(cluster, directory))
            # Not printed: Ray prints too.
            (directory / "seen.json").write_text(json.dumps(seen))
        finally:
            ray.shutdown()
            cluster.shutdown()


main(Path(sys.argv[1]))
