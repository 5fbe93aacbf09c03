"""What a cluster knows of the service that runs on it, so that any node finds it, and a later start takes it over.

It lies in Ray's own key-value store: as long as the cluster lives, and no longer, as the service does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
from msgspec import Struct

from dspool.core.lifecycle.upgrades import Installation
from dspool.errors import Conflict
from dspool.runtime.installed import installation

Phase = Literal["starting", "serving", "stopping"]
_KEY, _NAMESPACE = b"service", b"dspool"
_CLAIMS = b"service changes "
_CHANGING = _CLAIMS + b"%d"
_GONE_S = 5.0
_OF_SERVICE = ("pools", "ingress", "flags", "installation", "chosen", "upgrade")
"""What is the service's, whoever looks after it."""


class ServiceRecord(Struct, frozen=True, kw_only=True):
    """One service. Holds a secret (`client_header`): whoever can read it may run code on the cluster anyway."""

    pools: tuple[str, ...]
    application: str
    """Its name in Ray Serve."""
    phase: Phase = "starting"
    url: str = ""
    owns_serve: bool = False
    """It started the cluster's Serve."""
    host: str = ""
    """The machine of the `dspool up` that looks after it."""
    pid: int = 0
    job: str = ""
    """The Ray job of that process."""
    client_header: str | None = None
    ingress: str = ""
    """The mark of the settings that the HTTP processes have, as `ingress_mark` makes it."""
    installation: Installation = Installation()
    """What serves: that of the `dspool up`, or of the last `dspool upgrade`."""
    chosen: bool = False
    """An upgrade chose it: the cluster's own processes are of another one."""
    upgrade: Installation | None = None
    """What is to serve when the upgrade is done that runs, or that was cut off."""
    flags: dict[str, Any] = {}
    """What the command line of `dspool up` said: it holds for a later change too."""
    variables: dict[str, str] = {}
    """What its processes find in their environment, beside that of their node."""
    serve_variables: dict[str, str] = {}
    """With which every process has to begin that talks to its Ray Serve."""

    def is_looked_after(self) -> bool:
        """Whether the `dspool up` that wrote it still runs, on whatever machine."""
        return self.job != this_job() and _lives(self.job)


def of_this_process(pools: tuple[str, ...], application: str, **more: Any) -> ServiceRecord:
    return ServiceRecord(
        pools=pools,
        application=application,
        host=socket.gethostname(),
        pid=os.getpid(),
        job=this_job(),
        **{"installation": installation(), **more},
    )


def this_job() -> str:
    import ray

    return str(ray.get_runtime_context().get_job_id())


def read() -> ServiceRecord | None:
    """The service of this process's cluster; None: there is none."""
    from ray.experimental.internal_kv import _internal_kv_get

    written = _internal_kv_get(_KEY, namespace=_NAMESPACE)
    try:
        return msgspec.json.decode(written, type=ServiceRecord) if written else None
    except msgspec.DecodeError:
        # Of another version: what it left has to be found by names.
        return None


async def service_ends() -> bool:
    """Whether no service is there that goes on."""
    try:
        record = await asyncio.to_thread(read)
    except Exception:
        # The cluster ends.
        return True
    return record is None or record.phase != "serving"


def write(record: ServiceRecord) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_KEY, msgspec.json.encode(record), namespace=_NAMESPACE)


def remove() -> None:
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(_KEY, namespace=_NAMESPACE)


@asynccontextmanager
async def changing(patience_s: float = _GONE_S) -> AsyncIterator[None]:
    """Nobody else changes the service in the block; who was killed over it does not any more.

    Raises:
        Conflict: another command does; nothing was changed.
    """
    until = time.monotonic() + patience_s
    while (claim := _claim()) is None:
        if time.monotonic() > until:
            raise Conflict(
                "another command changes this service just now; nothing was changed, try again when it is done"
            )
        # Ray notices a moment later that it was killed.
        await asyncio.sleep(0.1)
    try:
        yield
    finally:
        _put_claim(claim, "", overwrite=True)


def _claim() -> int | None:
    """The number of this process's claim to change the service; None: somebody who lives has an earlier one.

    Ray's store has no exchange of a value for another, and only lets one process make a key. So claims are keys with
    numbers, of which the last counts, and whoever ends one leaves the key empty.
    """
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get

    last = max(_claims(), default=0)
    holder = (_internal_kv_get(_CHANGING % last, namespace=_NAMESPACE) or b"").decode() if last else ""
    if holder and _lives(holder):
        return None
    mine = last + 1
    if not _put_claim(mine, this_job(), overwrite=False):
        return None
    claims = _claims()
    if max(claims) != mine:
        # Others had and ended theirs meanwhile, and this number was free again.
        _internal_kv_del(_CHANGING % mine, namespace=_NAMESPACE)
        return None
    for number in claims - {mine}:
        _internal_kv_del(_CHANGING % number, namespace=_NAMESPACE)
    return mine


def _claims() -> set[int]:
    from ray.experimental.internal_kv import _internal_kv_list

    return {int(key.rpartition(b" ")[2]) for key in _internal_kv_list(_CLAIMS, namespace=_NAMESPACE)}


def _put_claim(number: int, holder: str, *, overwrite: bool) -> bool:
    from ray.experimental.internal_kv import _internal_kv_put

    was_there = _internal_kv_put(
        _CHANGING % number, holder.encode(), overwrite=overwrite, namespace=_NAMESPACE
    )
    return not was_there


class Registration:
    """The record of one service, kept by the process that looks after it. `new` makes it as the service is now."""

    def __init__(self, new: Callable[[], ServiceRecord]) -> None:
        self._new = new

    def write(self, phase: Phase) -> None:
        """What `dspool apply` and `upgrade` changed, and what was taken over, stays in our own record."""
        record, old = self._new(), read()
        if old is not None and old.job == record.job:
            kept = {name: getattr(old, name) for name in _OF_SERVICE}
            record = msgspec.structs.replace(record, **{**kept, "ingress": old.ingress or record.ingress})
        write(msgspec.structs.replace(record, phase=phase))

    def take_over(self, left: ServiceRecord) -> None:
        taken = {name: getattr(left, name) for name in _OF_SERVICE}
        write(msgspec.structs.replace(self._new(), phase="serving", **taken))

    def pools(self) -> tuple[str, ...]:
        """Those of this service; none once somebody else looks after it."""
        record = read()
        return record.pools if record is not None and record.job == this_job() else ()

    def remove(self) -> None:
        if self.pools():
            remove()


def _lives(job: str) -> bool:
    return any(one["JobID"] == job and not one["IsDead"] for one in _jobs())


def _jobs() -> list[Mapping[str, Any]]:
    import ray

    state: Any = ray._private.state.state
    jobs: list[Mapping[str, Any]] = state.job_table()
    return jobs


__all__ = [
    "Phase",
    "Registration",
    "ServiceRecord",
    "changing",
    "of_this_process",
    "read",
    "remove",
    "service_ends",
    "this_job",
    "write",
]
