"""From the tables of earlier versions to those of this one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from types import MappingProxyType

from sqlalchemy import Connection, insert, inspect, select, text, update

from dspool.causes import met
from dspool.errors import StoreFailed
from dspool.store.schema import idempotency, identity, metadata, schema_version, usage


def _create_idempotency(connection: Connection) -> None:
    idempotency.create(connection)


def _count_usage(connection: Connection) -> None:
    usage.create(connection)
    for name in ("sessions", "session_items"):
        connection.execute(text(f"ALTER TABLE {name} ADD COLUMN size BIGINT NOT NULL DEFAULT 0"))


def _claim_pools(connection: Connection) -> None:
    identity.create(connection)
    _identify(connection)
    for column in (
        "store_epoch BIGINT NOT NULL DEFAULT 0",
        "served_by TEXT",
        "heartbeat BIGINT NOT NULL DEFAULT 0",
    ):
        connection.execute(text(f"ALTER TABLE pools ADD COLUMN {column}"))


def _identify(connection: Connection) -> None:
    connection.execute(insert(identity).values(identity=uuid.uuid4().hex, created_at=time.time()))


SCHEMA_VERSION = 4
RUNNING_FROM = 4
"""`dspool upgrade` has the store migrate tables from this version on, and requests wait meanwhile. A step that rewrites
what is stored raises it: then the service has to be down."""

MIGRATIONS: Mapping[int, Callable[[Connection], None]] = MappingProxyType(
    {1: _create_idempotency, 2: _count_usage, 3: _claim_pools}
)
"""The step from version N to N + 1, by N. It runs inside the transaction that then writes the new version."""


def known_version(version: int) -> None:
    """Raises: StoreFailed: a newer dspool wrote it."""
    if version > SCHEMA_VERSION:
        raise met("store_newer", version=version, known=SCHEMA_VERSION).error()


def migrate(connection: Connection) -> None:
    """Bring the database to `SCHEMA_VERSION`, inside the caller's transaction.

    Raises:
        StoreFailed: it was written by a newer dspool, or no migration leads to this version.
    """
    if connection.dialect.name == "postgresql":
        # Several pools may start at once on an empty database.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('dspool.schema'))"))
    if not inspect(connection).has_table("schema_version"):
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
        _identify(connection)
        return
    current = connection.execute(select(schema_version.c.version)).scalar_one()
    known_version(current)
    for version in range(current, SCHEMA_VERSION):
        if version not in MIGRATIONS:
            raise StoreFailed(
                f"no migration of the session store from schema version {version}", found=current
            )
        MIGRATIONS[version](connection)
        connection.execute(update(schema_version).values(version=version + 1))
