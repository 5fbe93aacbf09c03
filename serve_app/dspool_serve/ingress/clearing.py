"""What a service leaves on a cluster or on this machine, removed: when it ends, and after one whose process died."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dspool.errors import Conflict
from dspool_serve.ingress import service_record
from dspool_serve.ingress.applications import status_of
from dspool_serve.ingress.held_pools import end_pool, running_configs
from dspool_serve.ingress.processes import end_processes, haproxy_processes
from dspool_serve.ingress.service_record import ServiceRecord
from dspool_serve.ingress.starting import Report


def clear(*, pool: str, address: str | None, temp_dir: Path | None, owns_serve: bool = False) -> str | None:
    """Remove what a service left whose process died: on a joined cluster (`address`) its actors, its application and,
    if it started that, Serve; on its own one HAProxy (Ray's processes follow their parent) and its directory.

    Returns why something could not be removed: its cluster is out of reach, or gone with all that was there.

    Raises:
        Conflict: another process looks after that service now.
    """
    if address is not None:
        return asyncio.run(_clear_cluster(pool, address, owns_serve))
    if temp_dir is not None and temp_dir.name.startswith("dspool-"):
        end_processes(haproxy_processes(temp_dir))
        shutil.rmtree(temp_dir, ignore_errors=True)
    return None


async def _clear_cluster(pool: str, address: str, owns_serve: bool) -> str | None:
    import ray

    from dspool.runtime import cluster

    try:
        cluster.join_cluster(address)
    except Exception as failed:
        # Ray raises errors of many kinds here, even bare ones.
        return f"Ray at {address} cannot be joined ({type(failed).__name__}): whatever is there stays there"
    try:
        record = await asyncio.to_thread(service_record.read) or ServiceRecord(
            pools=(pool,), application=application_name(pool), owns_serve=owns_serve
        )
        if record.is_looked_after():
            raise looked_after(record)
        await clear_record(record)
    finally:
        ray.shutdown()
    return None


def looked_after(record: ServiceRecord) -> Conflict:
    at = f" at {record.url}" if record.url else ""
    return Conflict(
        f"pool {', '.join(record.pools)} already runs on this cluster{at}: `dspool up` on {record.host} (pid "
        f"{record.pid}) looks after it; stop it there with `dspool down`",
        pid=record.pid,
        host=record.host,
    )


async def clear_record(record: ServiceRecord) -> None:
    """End the service of `record` on this process's cluster, however far it had come: operations finish first."""
    import ray
    from ray import serve

    # Its HTTP processes need not wait for others to take their place.
    await asyncio.to_thread(service_record.write, msgspec.structs.replace(record, phase="stopping"))
    with contextlib.suppress(ValueError):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        await asyncio.to_thread(serve.delete, record.application)
        if record.owns_serve:
            await asyncio.to_thread(shutdown_serve, True)
    for name in record.pools:
        await end_pool(name)
    await asyncio.to_thread(service_record.remove)


async def take_stock(report: Report, names: Sequence[str]) -> ServiceRecord | None:
    """The service on this process's cluster that nobody looks after and that is whole: to be taken over. What is left
    of one that is not whole, as its start or its end was cut off, is removed.

    Raises:
        Conflict: somebody looks after it.
    """
    record = await asyncio.to_thread(service_record.read)
    if record is None:
        return None
    if await asyncio.to_thread(record.is_looked_after):
        raise looked_after(record)
    if record.phase == "serving" and set(names) & set(record.pools):
        configs = await running_configs(record.pools)
        if configs is not None and await status_of(record.application) == "RUNNING":
            return record
    report(
        "clean", f"an earlier service (pid {record.pid}) was cut off while {record.phase}; removing the rest"
    )
    await clear_record(record)
    return None


def application_name(pool: str) -> str:
    return f"dspool-{pool}"


def shutdown_serve(joined: bool) -> None:
    from ray import serve

    # On another's cluster somebody may have put applications on the Serve that we started.
    if not (joined and serve.status().applications):
        serve.shutdown()  # type: ignore[no-untyped-call]


__all__ = ["application_name", "clear", "clear_record", "looked_after", "shutdown_serve", "take_stock"]
