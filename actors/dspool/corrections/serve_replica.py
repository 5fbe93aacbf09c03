"""`serve-replica-address`: where a Serve replica listens for calls of other replicas.

Serve 2.60 opens that port on all interfaces (`"[::]:0"`), also on a node that is on loopback. Replicas tell each other
the address of their node, so that is where it listens here.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from dspool.corrections import active


def install(replica: ModuleType, node: str) -> None:
    """Make replicas of this process listen at `node`. `replica` is the module `ray.serve._private.replica`."""
    if not active("serve-replica-address"):
        return
    open_port = replica.add_port_to_grpc_server

    def at_node(server: Any, address: str) -> Any:
        host, _, port = address.rpartition(":")
        if host == "[::]":
            host = f"[{node}]" if ":" in node else node
        return open_port(server, f"{host}:{port}")

    replica.add_port_to_grpc_server = at_node  # type: ignore[attr-defined]


__all__ = ["install"]
