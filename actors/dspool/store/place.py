"""Where the store may run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from msgspec import Struct

from dspool.errors import ConfigError


class RecordedStore(Struct, frozen=True, kw_only=True):
    """Where a pool's SQLite store was served last, as the cluster remembers it."""

    url: str
    node: str
    address: str
    identity: str
    """Of the database: a copy on another node is the same, an empty one is not."""


NOTHING: Mapping[str, str] = MappingProxyType({})


def node_of_store(
    url: str,
    nodes: Collection[str],
    *,
    found: Mapping[str, str] = NOTHING,
    recorded: RecordedStore | None = None,
) -> str | None:
    """The one of the cluster's living `nodes` (ids) that the store of `url` may run on; None: any.

    An SQLite file is on one node. A store on another node would open another file, and deny sessions that it has
    acknowledged. A shared file is no way out: SQLite's log (WAL) needs memory, which nodes do not share. So the store
    stays on the node that has served it, or that has its file: `found` are the identities of the files by node.

    Raises:
        ConfigError: the database is an SQLite file, and there are several nodes of which none, or more than one, has
            it; or the node that has it is away.
    """
    if not url.startswith("sqlite"):
        return None
    if recorded is not None and recorded.url == url:
        return _recorded_node(recorded, nodes, found)
    if len(nodes) == 1:
        return next(iter(nodes))
    having = [node for node in nodes if node in found]
    if len(having) == 1:
        return having[0]
    raise ConfigError(
        f"the session store is an SQLite file, which is on one node, and this Ray cluster has {len(nodes)}: "
        "sessions would be lost; set store_url to a PostgreSQL server that all nodes reach, such as "
        "postgresql://dspool@db.example/dspool",
        key="store_url",
        nodes=len(nodes),
    )


def _recorded_node(recorded: RecordedStore, nodes: Collection[str], found: Mapping[str, str]) -> str:
    if recorded.node in nodes:
        return recorded.node
    # A machine that comes back is another node to Ray.
    same = [node for node in nodes if found.get(node) == recorded.identity]
    if len(same) == 1:
        return same[0]
    raise ConfigError(
        f"the session store of this pool is an SQLite file on the node {recorded.address}, which is not in the "
        "cluster; another node would begin with an empty one, and sessions would be lost: bring that node back, or "
        "restore a backup and set store_url to it",
        key="store_url",
        node=recorded.node,
        address=recorded.address,
    )
