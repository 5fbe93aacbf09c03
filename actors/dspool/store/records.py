"""A pool's own records, and the versions of its programs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from dspool.errors import UnknownProgram
from dspool.messages import JSON, Deployment
from dspool.messages.programs import VERSIONS_KEPT
from dspool.store import schema as store_schema
from dspool.store.requests import check_names, encode
from dspool.store.schema import upsert
from dspool.store.writer import Transaction

_records, _deployments = store_schema.records, store_schema.deployments
_current = store_schema.current_versions


class PoolRecords:
    """The part of the session store that keeps what the pool itself must remember."""

    _read: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
    _write: Callable[[Transaction], Awaitable[Any]]

    async def put_record(self, pool: str, key: str, value: JSON) -> None:
        """Keep `value` under `key`, in place of an earlier one."""
        check_names(pool=pool, key=key)
        row = {"pool": pool, "key": key, "value": encode(value, f"record {key!r}")}

        async def run(connection: AsyncConnection) -> None:
            await connection.execute(upsert(connection, _records), row)

        await self._write(Transaction(pool, run))

    async def get_record(self, pool: str, key: str) -> JSON | None:
        """The value last put under `key`, or None."""
        async with self._read() as connection:
            query = select(_records.c.value).where(_records.c.pool == pool, _records.c.key == key)
            text = (await connection.execute(query)).scalar_one_or_none()
        return None if text is None else msgspec.json.decode(text)

    async def add_deployment(self, pool: str, deployment: Deployment, at_least: int = 0) -> Deployment:
        """Keep a new version of a pool program; returns it with its number (1, 2, ...), whatever it came with: the next
        one, and `at_least` this one. Of each program the newest `VERSIONS_KEPT` are kept, and the current one.

        A program's first version is current at once; later ones become current by `set_current`.
        """
        program = deployment.program
        check_names(pool=pool, program=program)
        # Its source is a record of its own: the first version's is known only after a worker has loaded it.
        kept = msgspec.structs.replace(deployment, source=None)
        body = encode(msgspec.structs.asdict(kept), f"deployment of {program!r}")

        async def run(connection: AsyncConnection) -> int:
            where = (_deployments.c.pool == pool, _deployments.c.program == program)
            last = (await connection.execute(select(func.max(_deployments.c.version)).where(*where))).scalar()
            version = max(int(last or 0) + 1, at_least)
            row = {"pool": pool, "program": program, "version": version}
            await connection.execute(upsert(connection, _deployments), row | {"body": body})
            if last is None:
                await connection.execute(upsert(connection, _current), row)
            of_program = (_current.c.pool == pool, _current.c.program == program)
            in_use = select(_current.c.version).where(*of_program)
            old = (_deployments.c.version <= version - VERSIONS_KEPT, _deployments.c.version.not_in(in_use))
            await connection.execute(delete(_deployments).where(*where, *old))
            return version

        return msgspec.structs.replace(
            deployment, version=await self._write(Transaction(pool, run, adds=True))
        )

    async def deployments(self, pool: str) -> list[Deployment]:
        """All versions of all pool programs, by program and version."""
        query = select(_deployments).where(_deployments.c.pool == pool)
        async with self._read() as connection:
            rows = await connection.execute(query.order_by(_deployments.c.program, _deployments.c.version))
            return [
                msgspec.structs.replace(msgspec.json.decode(row.body, type=Deployment), version=row.version)
                for row in rows
            ]

    async def set_current(self, pool: str, program: str, version: int | None) -> None:
        """Make `version` the current one of `program`, or none. Raises `UnknownProgram` if there is no such version."""
        row = {"pool": pool, "program": program, "version": version}

        async def run(connection: AsyncConnection) -> None:
            if version is None:
                where = [_current.c.pool == pool, _current.c.program == program]
                await connection.execute(delete(_current).where(*where))
                return
            where = [_deployments.c[name] == value for name, value in row.items()]
            if (await connection.execute(select(_deployments.c.version).where(*where))).first() is None:
                raise UnknownProgram(f"no version {version} of {program!r} in pool {pool!r}", program=program)
            await connection.execute(upsert(connection, _current), row)

        await self._write(Transaction(pool, run))

    async def current_versions(self, pool: str) -> dict[str, int]:
        """The current version of each pool program."""
        async with self._read() as connection:
            rows = await connection.execute(select(_current).where(_current.c.pool == pool))
            return {row.program: row.version for row in rows}
