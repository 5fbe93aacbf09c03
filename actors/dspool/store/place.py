"""Where the store may run."""

from __future__ import annotations

from collections.abc import Collection

from dspool.errors import ConfigError


def node_of_store(url: str, nodes: Collection[str]) -> str | None:
    """The one of the cluster's living `nodes` (ids) that the store of `url` may run on; None: any.

    An SQLite file is on one node. A store on another node would open another file, and deny sessions that it has
    acknowledged. A shared file is no way out: SQLite's log (WAL) needs memory, which nodes do not share.

    Raises:
        ConfigError: there are several nodes, and the database is an SQLite file.
    """
    if not url.startswith("sqlite"):
        return None
    if len(nodes) > 1:
        raise ConfigError(
            f"the session store is an SQLite file, which is on one node, and this Ray cluster has {len(nodes)}: "
            "sessions would be lost; set store_url to a PostgreSQL server that all nodes reach, such as "
            "postgresql://dspool@db.example/dspool",
            key="store_url",
            nodes=len(nodes),
        )
    (node,) = nodes
    return node
