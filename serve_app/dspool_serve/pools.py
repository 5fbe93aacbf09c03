"""What the routes need of a pool, and where they find it.

The routes know this small interface only, so that they run the same against a real `dspool.Pool`, and
against a double in a test. `RayPools` (in `deployment.py`) gives the real ones.
"""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from dspool.commands import AnyCommand, PoolStatus, SessionInfo


class Settings(Struct, frozen=True, kw_only=True):
    """How the HTTP layer behaves; made from `PoolConfig`."""

    max_body_bytes: int = 1_048_576
    operation_timeout_s: float = 30.0
    """The longest deadline a request may ask for, and the one it gets when it asks for none."""
    echo_request_id: bool = True
    """Off behind Ray Serve, whose server adds `x-request-id` to every answer itself."""


class Answer(Protocol):
    """The part of `dspool.pool.Result` that the routes use."""

    @property
    def operation_id(self) -> str: ...
    @property
    def worker(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def program_version(self) -> int: ...
    @property
    def wait_s(self) -> float: ...
    @property
    def run_s(self) -> float: ...
    @property
    def usage(self) -> dict[str, dict[str, int]]: ...
    @property
    def offline(self) -> bool: ...


class ServedPool(Protocol):
    """A pool as the routes see it. Methods raise `PoolError`s only; cancelling `run` frees its slot."""

    @property
    def name(self) -> str: ...

    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> Answer: ...

    async def status(self) -> PoolStatus: ...

    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]: ...

    async def session_info(self, id: str) -> SessionInfo:
        """Raises: UnknownSession."""
        ...

    async def end_session(self, id: str) -> None:
        """Raises: UnknownSession."""
        ...


class Pools(Protocol):
    """The pools that one service serves."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    def names(self) -> list[str]: ...

    def get(self, name: str) -> ServedPool:
        """The pool called `name`.

        Raises:
            UnknownPool: there is none; the message names those there are.
        """
        ...
