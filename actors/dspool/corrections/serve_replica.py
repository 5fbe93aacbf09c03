"""`serve-replica-address`: where a Serve replica listens for calls of other replicas, and for HTTP of the proxies.

Serve 2.60 opens the first port on all interfaces (`"[::]:0"`), also on a node that is on loopback. Replicas tell each
other the address of their node, so that is where it listens here.

The second one it opens at the address of the service alone. HAProxy looks for the replicas of its own node on loopback
and for others at their node's address: with a service on loopback it does not find those of other nodes, with one on
the address of a node it finds none. Here a replica that has to be reached from other nodes listens at both.

`serve-replica-drain`: how long a replica that others take the place of can be reached.

A HAProxy that was reloaded keeps the connections of clients that were open, and sends what comes over them to the
replicas that it knew. One that has gone by then is a connection that breaks, and HAProxy hangs up on the client without
a word. So a replica stays until no such connection can be left, unless the whole service ends. Until then it also says
that it is healthy: the HAProxy of a node that was not reloaded yet would take it for down and break what is under way
(`on-marked-down shutdown-sessions`, where there are several nodes).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import ModuleType
from typing import Any

from dspool.corrections import active
from dspool.corrections.haproxy_frontend import KEEP_ALIVE_S

STAY_S = KEEP_ALIVE_S + 5.0
"""So long an old HAProxy has clients' connections; the rest is for its reload on a busy machine."""
_LOOK_S = 0.01
_ASK_S = 0.2
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


def stay(replica: ModuleType, ends: Callable[[], Awaitable[bool]], *, stay_s: float = STAY_S) -> None:
    """Make replicas of this process stay for `stay_s` when they are to stop, or until the whole service `ends`."""
    if not active("serve-replica-drain"):
        return
    drain = replica.Replica._drain_behind_haproxy
    health = replica.Replica._dataplane_health_check

    async def drain_later(self: Any, least_s: float) -> None:
        until = time.monotonic() + max(stay_s, least_s)
        self.dspool_stays = True
        await asyncio.sleep(least_s)
        # Nobody tells when the last of those connections has gone.
        while time.monotonic() < until and not await ends():  # noqa: ASYNC110
            await asyncio.sleep(_ASK_S)
        self.dspool_stays = False
        await drain(self, 0.0)

    async def health_of_one_that_stays(self: Any) -> tuple[bool, str]:
        if getattr(self, "dspool_stays", False):
            return True, replica.HEALTHY_MESSAGE
        healthy: tuple[bool, str] = await health(self)
        return healthy

    replica.Replica._drain_behind_haproxy = drain_later
    replica.Replica._dataplane_health_check = health_of_one_that_stays


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


__all__ = ["STAY_S", "install", "stay"]
