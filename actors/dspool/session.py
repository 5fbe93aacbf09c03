"""The methods of a session, whichever way its commands travel."""

from __future__ import annotations

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
    GetVariable,
    ListPrograms,
    ListVariables,
    ResetSession,
    Result,
    SetVariable,
)


class SessionMethods:
    """Each builds a command, and `run` sends it: to a worker of the cluster, or to a service."""

    async def run(
        self, command: AnyCommand, *, timeout_s: float | None = None, idempotent: bool | None = None
    ) -> Result:
        """Any command in this session; see `Pool.run`."""
        raise NotImplementedError

    async def create_program(
        self,
        name: str,
        spec: str | dict[str, JSON] | None = None,
        *,
        state: dict[str, JSON] | None = None,
        import_path: str | None = None,
        kwargs: dict[str, JSON] | None = None,
        replace: bool = False,
    ) -> JSON:
        """Create a program from a spec (or just a signature string), saved state, or an allowed import path."""
        if isinstance(spec, str):
            spec = {"signature": spec}
        command = CreateProgram(name, spec, state, import_path, kwargs or {}, replace)
        return (await self.run(command)).value

    async def execute(self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON) -> Result:
        return await self.run(ExecuteProgram(program, inputs), timeout_s=timeout_s)

    async def configure_lm(self, profile: str, **overrides: JSON) -> JSON:
        """Use a configured LM profile for all programs of this session."""
        return (await self.run(ConfigureLM(profile, overrides))).value

    async def programs(self) -> JSON:
        return (await self.run(ListPrograms())).value

    async def program_info(self, name: str) -> JSON:
        return (await self.run(GetProgramInfo(name))).value

    async def delete_program(self, name: str) -> None:
        await self.run(DeleteProgram(name))

    async def set_variable(self, name: str, value: JSON) -> None:
        await self.run(SetVariable(name, value))

    async def get_variable(self, name: str) -> JSON:
        return (await self.run(GetVariable(name))).value

    async def variables(self) -> JSON:
        return (await self.run(ListVariables())).value

    async def delete_variable(self, name: str) -> None:
        await self.run(DeleteVariable(name))

    async def history(self, limit: int = 50) -> JSON:
        """The last operations of this session, newest last. Kept by its worker: gone if that one dies."""
        return (await self.run(GetHistory(limit))).value

    async def reset(self) -> None:
        """Forget programs, variables, LM choice and history."""
        await self.run(ResetSession())

    async def end(self) -> None:
        await self.run(EndSession())
