"""The methods of a session, whichever way its commands travel."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from dspool.errors import InvalidRequest
from dspool.messages import (
    JSON,
    AnyCommand,
    ConfigureLM,
    CreateProgram,
    DeleteProgram,
    DeleteVariable,
    EndSession,
    ExecuteProgram,
    GetHistory,
    GetProgramInfo,
    GetStats,
    GetVariable,
    ListPrograms,
    ListVariables,
    ResetSession,
    Result,
    SetVariable,
    StreamEvent,
    StreamProgram,
)

NAME_LIMIT = 200
"""Characters of a session's id."""


class PoolOperations(Protocol):
    """A pool that runs commands: in the cluster, or over HTTP."""

    @property
    def name(self) -> str: ...

    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        idempotent: bool | None = None,
        operation_id: str | None = None,
    ) -> Result:
        """Run one command and wait for its end."""
        ...

    def stream(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        operation_id: str | None = None,
    ) -> AsyncGenerator[StreamEvent | Result]:
        """The events of one command, then its `Result`. Leaving the iteration early cancels the operation."""
        ...


class SessionMethods:
    """One session of a pool. Holds no state: two of one id are the same session."""

    def __init__(self, pool: PoolOperations, session_id: str) -> None:
        self.id = checked_id(session_id)
        self._pool = pool

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, pool={self._pool.name!r})"

    async def run(
        self, command: AnyCommand, *, timeout_s: float | None = None, idempotent: bool | None = None
    ) -> Result:
        """Any command in this session; see `Pool.run`."""
        return await self._pool.run(command, session=self.id, timeout_s=timeout_s, idempotent=idempotent)

    def stream(
        self,
        program: str,
        /,
        *,
        timeout_s: float | None = None,
        lm: dict[str, JSON] | None = None,
        **inputs: JSON,
    ) -> AsyncGenerator[StreamEvent | Result]:
        """The program's output as it comes, then its `Result`."""
        return self._pool.stream(StreamProgram(program, inputs, lm=lm), session=self.id, timeout_s=timeout_s)

    async def create_program(
        self,
        name: str,
        spec: str | dict[str, JSON] | None = None,
        *,
        state: dict[str, JSON] | None = None,
        import_path: str | None = None,
        kwargs: dict[str, JSON] | None = None,
        copy_of: str | None = None,
        version: int = 0,
        replace: bool = False,
    ) -> JSON:
        """Create a program from a spec (or just a signature string), saved state, or an allowed import path.

        With `copy_of` it is that pool program, as its `version` is (0: the current one), or with another `state`: so a
        candidate runs without a deployment. Over HTTP that needs an admin, or `service.session_imports`.
        """
        if isinstance(spec, str):
            spec = {"signature": spec}
        command = CreateProgram(name, spec, state, import_path, kwargs or {}, replace, copy_of, version)
        return (await self.run(command)).value

    async def execute(
        self,
        program: str,
        /,
        *,
        timeout_s: float | None = None,
        lm: dict[str, JSON] | None = None,
        **inputs: JSON,
    ) -> Result:
        """Run a program of this session, or one of the pool."""
        return await self.run(ExecuteProgram(program, inputs, lm=lm), timeout_s=timeout_s)

    async def configure_lm(self, /, profile: str, **overrides: JSON) -> JSON:
        """Use a configured LM profile for all programs of this session."""
        return (await self.run(ConfigureLM(profile, overrides))).value

    async def programs(self) -> JSON:
        """The programs that this session can run: its own and the pool's."""
        return (await self.run(ListPrograms())).value

    async def program_info(self, name: str) -> JSON:
        """What a program takes and gives."""
        return (await self.run(GetProgramInfo(name))).value

    async def delete_program(self, name: str) -> None:
        """Forget a program of this session."""
        await self.run(DeleteProgram(name))

    async def set_variable(self, name: str, value: JSON) -> None:
        """Keep a value under a name."""
        await self.run(SetVariable(name, value))

    async def get_variable(self, name: str) -> JSON:
        """The value of a name. Raises: UnknownName."""
        return (await self.run(GetVariable(name))).value

    async def variables(self) -> JSON:
        """The names of all variables."""
        return (await self.run(ListVariables())).value

    async def delete_variable(self, name: str) -> None:
        """Forget a variable."""
        await self.run(DeleteVariable(name))

    async def history(self, limit: int = 50) -> JSON:
        """The last operations of this session, newest last. Kept by its worker: gone if that one dies."""
        return (await self.run(GetHistory(limit))).value

    async def stats(self) -> JSON:
        """What its worker knows of itself."""
        return (await self.run(GetStats())).value

    async def execute_code(self, code: str) -> JSON:
        """Run Python in this session: what it printed, and the value of its last expression."""
        raise NotImplementedError

    async def reset(self) -> None:
        """Forget programs, variables, LM choice and history."""
        await self.run(ResetSession())

    async def end(self) -> None:
        """End the session: all that it keeps is gone."""
        await self.run(EndSession())


def checked_id(session_id: str) -> str:
    """Raises: InvalidRequest: it is empty or too long."""
    if not 0 < len(session_id) <= NAME_LIMIT:
        raise InvalidRequest(f"a session id has 1 to {NAME_LIMIT} characters, got {len(session_id)}")
    return session_id


__all__ = ["PoolOperations", "SessionMethods", "checked_id"]
