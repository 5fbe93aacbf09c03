"""`serve-replica-address`: where a Serve replica listens for calls of other replicas, and for HTTP of the proxies.

Serve 2.60 opens the first port on all interfaces (`"[::]:0"`), also on a node that is on loopback. Replicas tell each
other the address of their node, so that is where it listens here.

The second one it opens at the address of the service alone. HAProxy looks for the replicas of its own node on loopback
and for others at their node's address: with a service on loopback it does not find those of other nodes, with one on
the address of a node it finds none. Here a replica that has to be reached from other nodes listens at both.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from types import ModuleType
from typing import Any

from dspool.corrections import active

_LOOK_S = 0.01
_BACKLOG = 2048


def install(replica: ModuleType, node: str, *, is_reachable: bool = False) -> None:
    """Make replicas of this process listen at `node`, for HTTP too if it `is_reachable` from other nodes.

    `replica` is the module `ray.serve._private.replica`.
    """
    if not active("serve-replica-address"):
        return
    if is_reachable:
        serve_http = replica.start_asgi_http_server
        replica.start_asgi_http_server = partial(_serve_at_both, serve_http, node)  # type: ignore[attr-defined]
    open_port = replica.add_port_to_grpc_server

    def at_node(server: Any, address: str) -> Any:
        host, _, port = address.rpartition(":")
        if host == "[::]":
            host = f"[{node}]" if ":" in node else node
        return open_port(server, f"{host}:{port}")

    replica.add_port_to_grpc_server = at_node  # type: ignore[attr-defined]


async def _serve_at_both(serve_http: Any, node: str, app: Any, options: Any, **more: Any) -> Any:
    """As Serve's `start_asgi_http_server`, but on loopback and at `node`, on the same port."""
    loopback = "::1" if ":" in node else "127.0.0.1"
    second = None
    if node != loopback:
        second = socket.socket(socket.AF_INET6 if ":" in node else socket.AF_INET)
        try:
            second.bind((node, options.port))
        except OSError as taken:
            second.close()
            # Serve then tries another port.
            raise RuntimeError(f"Failed to bind to address '{node}:{options.port}'.") from taken
    try:
        task, server = await serve_http(app, options.model_copy(update={"host": loopback}), **more)
    except BaseException:
        if second is not None:
            second.close()
        raise
    if second is not None:
        task.dspool_second = asyncio.ensure_future(_listen_too(server, second))
    return task, server


async def _listen_too(server: Any, second: socket.socket) -> None:
    """Take connections of `second` as well, once the uvicorn `server` has started; it closes both when it ends."""
    # It tells nobody.
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)

    def protocol() -> Any:
        config = server.config
        return config.http_protocol_class(
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )

    loop = asyncio.get_running_loop()
    server.servers.append(await loop.create_server(protocol, sock=second, backlog=_BACKLOG))


__all__ = ["install"]
