"""Connections to a PostgreSQL server, or to whichever of several hosts takes writes now.

`store_url` is what libpq takes: several hosts, `sslmode`, `target_session_attrs`. The driver reads it itself:
SQLAlchemy would not understand most of that. A failure to connect is said in words that name
the cause, and never the password.
"""

from __future__ import annotations

import importlib.util
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from dspool.config.store import StoreConfig
from dspool.errors import ConfigError
from dspool.store.failures import not_connected

STANDING_S: Final = 3.0
"""A transaction in which nothing happens holds its locks no longer, as that of a store whose machine is gone: the store
that takes its place is there in about that time."""
_PARTS: Final = re.compile(
    r"postgres(?:ql)?(?:\+asyncpg)?://"
    r"(?:(?P<user>[^:@/?]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<hosts>[^/?]*)"
    r"(?:/(?P<database>[^?]*))?"
    r"(?:\?(?P<query>.*))?"
)
_UNDERSTOOD: Final = (
    *(
        "host",
        "port",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslcrl",
        "sslpassword",
        "sslnegotiation",
    ),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "passfile"),
    *("application_name", "krbsrvname", "gsslib", "options", "prepared_statement_cache_size"),
)
_READ_ONLY: Final = frozenset({"25006"})
"""The server became a standby under its connections: others of its hosts may take writes."""


def parse_postgres(url: str) -> URL:
    """`url` with its driver; several hosts, which SQLAlchemy does not read, stand in its query.

    Raises:
        ConfigError: not such a URL, an option that nobody would heed, or no driver installed.
    """
    found = _PARTS.fullmatch(url)
    if found is None:
        raise ConfigError("store_url is not a database URL such as postgresql://user@host/database")
    if importlib.util.find_spec("asyncpg") is None:
        raise ConfigError("a PostgreSQL store_url needs the driver: pip install 'dspool[postgres]'")
    query = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    if strange := sorted(query.keys() - set(_UNDERSTOOD)):
        names = ", ".join(sorted(_UNDERSTOOD))
        raise ConfigError(
            f"store_url has the option {strange[0]!r}; those that count are {names}", option=strange[0]
        )
    hosts = [_host_and_port(part) for part in (found["hosts"] or "").split(",") if part]
    if hosts and "host" in query:
        raise ConfigError("store_url names hosts in two places: before the database, and as host=")
    if hosts:
        query["host"] = ",".join(host for host, _ in hosts)
        query["port"] = ",".join(str(port) for _, port in hosts)
    one = len(hosts) == 1
    return URL.create(
        "postgresql+asyncpg",
        username=_plain(found["user"]),
        password=_plain(found["password"]),
        host=hosts[0][0] if one else None,
        port=hosts[0][1] if one else None,
        database=_plain(found["database"]),
        query={name: value for name, value in query.items() if not (one and name in ("host", "port"))},
    )


def _plain(text: str | None) -> str | None:
    return unquote(text) if text else None


def _host_and_port(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]]+)(?::(\d+))?", text)
    if found is None:
        raise ConfigError(
            "store_url has a host that is not one: write host or host:port, with commas between"
        )
    return unquote(found[1].strip("[]")), int(found[2] or 5432)


def postgres_engine(url: URL, settings: StoreConfig) -> AsyncEngine:
    """An engine whose connections go to the first host that takes writes; it does not connect yet."""
    engine = create_async_engine(
        url.set(query={}),
        async_creator=_connector(url, settings),
        hide_parameters=True,  # they are users' content, and errors are logged
        pool_reset_on_return=None,
        pool_pre_ping=True,
        pool_size=settings.connections,
        max_overflow=0,
        pool_timeout=settings.statement_timeout_s,
        # The one used last: idle ones go, and with them those to a host that is a standby by now.
        pool_use_lifo=True,
    )
    event.listen(engine.sync_engine, "handle_error", _leave_standby)
    return engine


def _leave_standby(context: Any) -> None:
    cause = getattr(context.original_exception, "sqlstate", None)
    if cause in _READ_ONLY:
        context.is_disconnect = True


def _connector(url: URL, settings: StoreConfig) -> Callable[[], Awaitable[Any]]:
    import asyncpg

    query = {name: str(value) for name, value in url.query.items() if name != "prepared_statement_cache_size"}
    query.setdefault("target_session_attrs", "read-write")
    if url.host:
        query |= {"host": url.host, "port": str(url.port or 5432)}
    dsn = f"postgresql:///{quote(url.database or '', safe='')}?{urlencode(query)}"
    limit = str(round(1000 * settings.statement_timeout_s))
    standing = str(round(1000 * min(settings.statement_timeout_s, STANDING_S)))
    server = {
        "application_name": query.get("application_name", "dspool"),
        "statement_timeout": limit,
        "lock_timeout": limit,
        # A store that stands still in a transaction would keep the pool from the store that takes its place.
        "idle_in_transaction_session_timeout": standing,
        # Nor may one whose host is gone.
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
    }

    async def connect() -> Any:
        try:
            connection = await asyncpg.connect(
                dsn,
                user=url.username,
                password=url.password,
                timeout=settings.connect_timeout_s,
                # The server ends a statement first, if it answers at all.
                command_timeout=settings.statement_timeout_s + 1.0,
                server_settings=server,
            )
            _notice_loss(connection, settings.connect_timeout_s)
            return connection
        except (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
        ) as failed:
            raise not_connected(failed, url) from failed

    return connect


def _notice_loss(connection: Any, within_s: float) -> None:
    """A server that is powered off says nothing: what it does not acknowledge in that time is lost."""
    transport = getattr(connection, "_transport", None)
    link = transport.get_extra_info("socket") if transport is not None else None
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
    if link is not None and option is not None and link.family in (socket.AF_INET, socket.AF_INET6):
        link.setsockopt(socket.IPPROTO_TCP, option, round(within_s * 1000))


__all__ = ["parse_postgres", "postgres_engine"]
