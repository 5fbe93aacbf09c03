"""Who serves a pool, as it stands in the pool's row: what each transaction that writes compares."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import psutil
from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from dspool.errors import StoreFailed
from dspool.process_start import process_start, runs_since, this_machine
from dspool.store.schema import insert_into, pools


class StoreServer(Struct, frozen=True, kw_only=True):
    """A store that serves a pool."""

    id: str
    """Of the actor: one that is started again is the same."""
    machine: str
    pid: int
    pid_started: float
    host: str
    node: str = ""
    """The Ray node, if there is one."""
    epoch: int = 0
    nonce: str = ""
    """No two claims are alike, even if a database that takes over has forgotten the last of them."""

    def is_gone(self) -> bool:
        """Whether its process was on this machine and is not any more; False where nobody can know."""
        if self.machine != this_machine():
            return False
        try:
            return not runs_since(self.pid, self.pid_started)
        except psutil.Error:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_server(id: str, *, node: str = "") -> StoreServer:
    """This process, as the server that `id` names."""
    pid = os.getpid()
    return StoreServer(
        id=id,
        machine=this_machine(),
        pid=pid,
        pid_started=process_start(pid),
        host=platform.node(),
        node=node,
    )


def encoded(server: StoreServer) -> str:
    return msgspec.json.encode(server).decode()


def decoded(text: str | None) -> StoreServer | None:
    """What is none of ours is nobody's claim."""
    try:
        return None if text is None else msgspec.json.decode(text, type=StoreServer)
    except msgspec.DecodeError:
        return None


def refuse_superseded(claim: str | None, row: Any) -> None:
    """`row` is the pool's, locked; `claim` is that of the store that writes, if it claims its pools.

    Raises:
        StoreFailed: another store serves the pool by now.
    """
    if claim is None or row.served_by == claim:
        return
    mine, other = decoded(claim), decoded(row.served_by)
    now = f"{other} at epoch {other.epoch}" if other else "nobody"
    raise StoreFailed(
        f"this store of pool {row.pool!r} was replaced and has ended: it had epoch {mine.epoch if mine else 0}, and "
        f"the pool is served by {now} now; try again",
        pool=row.pool,
        superseded=True,
    )


async def refuse_superseded_of(
    connection: AsyncConnection, names: Iterable[str], claims: Mapping[str, str]
) -> None:
    """As `hold_pools` refuses, for what only reads."""
    for row in await connection.execute(select(pools).where(pools.c.pool.in_(sorted(names)))):
        refuse_superseded(claims.get(row.pool), row)


async def hold_pools(
    connection: AsyncConnection, pool_names: Iterable[str], claims: Mapping[str, str]
) -> dict[str, int]:
    """Lock `names` against other writers until the transaction ends; returns the last epoch given out in each.

    Raises `StoreFailed` if another store than that of `claims` serves one. What the lock reads says so: it costs no
    round trip.

    SQLite has one writer at a time anyway. PostgreSQL locks the pools' rows, in one order, so that two stores on
    one pool (an old one that has not noticed its replacement) decide one after the other.
    """
    names = sorted(set(pool_names))
    query = select(pools).where(pools.c.pool.in_(names)).order_by(pools.c.pool).with_for_update()
    epochs = _epochs(await connection.execute(query), claims)
    if missing := [pool for pool in names if pool not in epochs]:
        new = insert_into(connection, pools).on_conflict_do_nothing()
        await connection.execute(new, [{"pool": pool, "epoch": 0} for pool in missing])
        epochs = _epochs(await connection.execute(query), claims)
    return epochs


def _epochs(rows: Iterable[Any], claims: Mapping[str, str]) -> dict[str, int]:
    epochs = {}
    for row in rows:
        refuse_superseded(claims.get(row.pool), row)
        epochs[row.pool] = row.epoch
    return epochs
