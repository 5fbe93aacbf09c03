"""What a service leaves on a cluster or on this machine, removed: when it ends, and after one whose process died."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from dspool.errors import UnknownPool
from dspool_serve.ingress.processes import end_processes, haproxy_processes


def clear(*, pool: str, address: str | None, temp_dir: Path | None, owns_serve: bool = False) -> None:
    """Remove what a service left whose process died: on a joined cluster (`address`) its actors, its application and,
    if it started that, Serve; on its own one HAProxy (Ray's processes follow their parent) and its directory.
    """
    if address is not None:
        asyncio.run(_clear_cluster(pool, address, owns_serve))
    if temp_dir is not None and temp_dir.name.startswith("dspool-"):
        end_processes(haproxy_processes(temp_dir))
        shutil.rmtree(temp_dir, ignore_errors=True)


async def _clear_cluster(pool: str, address: str, owns_serve: bool) -> None:
    import ray
    from ray import serve

    from dspool.runtime import cluster, lifecycle

    cluster.join_cluster(address)
    try:
        with contextlib.suppress(ValueError):
            ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
            await asyncio.to_thread(serve.delete, application_name(pool))
            if owns_serve:
                await asyncio.to_thread(shutdown_serve, True)
        with contextlib.suppress(UnknownPool):
            config, _ = await cluster.ask(cluster.find_supervisor(pool), "connect_info")
            await lifecycle.dismantle(config, timeout_s=config.operation_timeout_s)
    finally:
        ray.shutdown()


def application_name(pool: str) -> str:
    return f"dspool-{pool}"


def shutdown_serve(joined: bool) -> None:
    from ray import serve

    # On another's cluster somebody may have put applications on the Serve that we started.
    if not (joined and serve.status().applications):
        serve.shutdown()  # type: ignore[no-untyped-call]


__all__ = ["application_name", "clear", "shutdown_serve"]
