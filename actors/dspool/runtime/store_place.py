"""Where on a Ray cluster the store of a pool runs, and how the cluster remembers it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dspool.runtime.cluster import join_cluster, living_nodes
from dspool.store.place import RecordedStore, node_of_store

_NAMESPACE: Final = b"dspool"
_LOOK_S: Final = 60.0


def find_node(pool: str, url: str) -> str | None:
    """As `node_of_store`, of this process's cluster; looks on the nodes where that must be known."""
    if not url.startswith("sqlite"):
        return None
    nodes, recorded = living_nodes(), recall(pool)
    known = recorded is not None and recorded.url == url
    is_there = recorded is not None and known and recorded.node in nodes
    found: Mapping[str, str] = {}
    if not is_there and (known or len(nodes) > 1):
        found = _identities(url.partition(":///")[2], nodes)
    return node_of_store(url, nodes, found=found, recorded=recorded)


def find_node_at(address: str, pool: str, url: str) -> str | None:
    """As `find_node`, of the cluster at `address`; joins it for a moment, with the operator's token."""
    join_cluster(address)
    try:
        return find_node(pool, url)
    finally:
        ray.shutdown()


def remember(pool: str, store: RecordedStore) -> None:
    """Let the cluster know, as long as it lives, where the file is."""
    internal_kv._internal_kv_put(_key(pool), msgspec.json.encode(store), overwrite=True, namespace=_NAMESPACE)


def recall(pool: str) -> RecordedStore | None:
    kept = internal_kv._internal_kv_get(_key(pool), namespace=_NAMESPACE)
    with contextlib.suppress(msgspec.DecodeError):
        return None if kept is None else msgspec.json.decode(kept, type=RecordedStore)
    return None


def _key(pool: str) -> bytes:
    return f"store:{pool}".encode()


def _identities(path: str, nodes: Iterable[str]) -> dict[str, str]:
    """Of the database at `path` on each of the nodes that has one. A node that does not answer has none."""
    look: Any = ray.remote(identity_of)
    asked = {
        node: look.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(path)
        for node in nodes
    }
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_LOOK_S)
    found = {}
    for node, reference in asked.items():
        with contextlib.suppress(RayError):
            if reference in ready and (identity := ray.get(reference)) is not None:
                found[node] = identity
    return found


def identity_of(path: str) -> str | None:
    """Of the session store in that file of this machine; None if there is none."""
    file = Path(path)
    if not file.is_file():
        return None
    with (
        contextlib.suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection,
    ):
        return str(connection.execute("SELECT identity FROM store_identity").fetchone()[0])
    # One of an earlier dspool, whose sessions count no less.
    return ""
