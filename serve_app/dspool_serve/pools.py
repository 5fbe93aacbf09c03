"""The pools that a service serves, and how it behaves. `RayPools` (in `ingress.deployment`) are the real ones."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from dspool.protocols import ClusterPool


class Settings(Struct, frozen=True, kw_only=True):
    """How the HTTP layer behaves; made from `PoolConfig`."""

    max_body_bytes: int = 1_048_576
    operation_timeout_s: float = 30.0
    """The longest deadline a request may ask for, and the one it gets when it asks for none."""
    max_batch: int = 256
    body_timeout_s: float = 30.0
    heartbeat_s: float = 15.0
    idempotency_ttl_s: float = 86_400.0
    execute_code: bool = False
    session_imports: bool = False
    """Callers may name import paths in their sessions; without tokens everybody is an admin anyway."""
    echo_request_id: bool = True
    """Off behind Ray Serve, whose server adds `x-request-id` to every answer itself."""
    tls: bool = False
    """Cookies are marked to travel over TLS only."""


class Pools(Protocol):
    """The pools that one service serves."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    def names(self) -> list[str]: ...

    def get(self, name: str) -> ClusterPool:
        """The pool called `name`.

        Raises:
            UnknownPool: there is none; the message names those there are.
        """
        ...
