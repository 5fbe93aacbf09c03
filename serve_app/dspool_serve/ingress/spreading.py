"""Where the HTTP ingress runs on a cluster: on which nodes a proxy and replicas, and where replicas listen.

A proxy finds a replica of its own node on loopback, and one of another node at that node's address. So replicas listen
at both where there are several nodes, whatever the service's own address is; see `corrections.serve_replica`.
"""

from __future__ import annotations

import os
from typing import Any, Final, Literal, NamedTuple

from dspool.config import PoolConfig
from dspool.errors import ConfigError
from dspool.tokens import TokenSource, from_environment

_ANY: Final = ("0.0.0.0", "::")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
HEAD: Final = {"node:__internal_head__": 0.001}
"""As `runtime.cluster` has it; that imports Ray."""


class Spread(NamedTuple):
    replicas: int
    per_node: int | None
    """Most on one node; None: Serve chooses."""
    location: Literal["HeadOnly", "EveryNode"]
    """Where a proxy runs."""
    is_reachable: bool
    """Replicas listen at their node's address for the proxies of other nodes, and on loopback for their own."""
    resources: dict[str, float]


def spread_of(config: PoolConfig, *, nodes: int, has_tokens: bool) -> Spread:
    """The ingress of `config` on a cluster of so many nodes.

    Raises:
        ConfigError: some of it could not be reached, or could be by anybody.
    """
    host, per_node = config.service.host, config.ingress.per_node
    replicas = config.ingress_processes(nodes)
    if nodes < 2:
        return Spread(replicas, None, "HeadOnly", False, {})
    if not has_tokens:
        # What listens at a node's address is open to the network.
        if per_node:
            raise ConfigError(
                "the ingress processes of several nodes are reached over the network, and there are no access tokens; "
                "make one (`dspool token new`) and set service.tokens_file, or leave ingress.per_node out",
                key="ingress.per_node",
            )
        return Spread(replicas, None, "HeadOnly", False, HEAD)
    is_reachable = host not in _ANY
    if not per_node:
        return Spread(replicas, None, "HeadOnly", is_reachable, {})
    if host not in (*_ANY, *_LOOPBACK):
        raise ConfigError(
            f"{host} is the address of one node, and with ingress.per_node each has a proxy that listens: use 0.0.0.0, "
            "or 127.0.0.1 with a balancer on each node",
            key="service.host",
        )
    return Spread(replicas, per_node, "EveryNode", is_reachable, {})


def spread_here(config: PoolConfig) -> Spread:
    """`spread_of` the cluster that this process has joined."""
    from dspool.runtime.cluster import living_nodes

    tokens = TokenSource(config.service.tokens_file, from_environment(os.environ))
    return spread_of(config, nodes=len(living_nodes()), has_tokens=len(tokens) > 0)


def serve_options() -> Any:
    """The HTTP options of the Serve that runs."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    return client.http_config


__all__ = ["HEAD", "Spread", "serve_options", "spread_here", "spread_of"]
