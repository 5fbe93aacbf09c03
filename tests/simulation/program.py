"""The programs of a simulated worker: scripts that sleep, fail, block, stream, kill it, and note that they ran."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from dspool.errors import PoolError, ProgramError, UnknownProgram
from dspool.messages import (
    AnyCommand,
    Change,
    Deployment,
    ExecuteProgram,
    GetVariable,
    SetVariable,
    StreamEvent,
    StreamProgram,
)
from dspool.programs.sessions.host import CommandResult
from dspool.testing.host import Script, ScriptedHost
from tests.simulation.history import History
from tests.simulation.loop import current

PROGRAM = "work"
FIRST_CODE = "first"


class SimulatedHost(ScriptedHost):
    """In the place of `SessionHost`: what runs is noted in the history, by the program itself."""

    def __init__(self, worker: str, history: History, dice: random.Random) -> None:
        super().__init__({PROGRAM: Script("async", lambda inputs, session, emit: None)})
        self._worker, self._history, self._dice = worker, history, dice
        self._codes: dict[tuple[str, int], str] = {}

    # --- versions ---

    def deploy(self, d: Deployment) -> None:
        code = (d.spec or {}).get("code", FIRST_CODE)
        if code == "broken":
            raise ProgramError("it does not load")
        self._codes[d.program, d.version] = code
        self.versions[d.program] = d.version

    def retire(self, program: str, version: int) -> None:
        self._codes.pop((program, version), None)

    def activate(self, program: str, version: int) -> None:
        if (program, version) not in self._codes:
            raise UnknownProgram(f"no version {version}")
        self.versions[program] = version

    def take_model_calls(self) -> dict[str, int]:
        return {}

    def plan(self, command: AnyCommand, session: Any) -> Any:
        if isinstance(command, ExecuteProgram) and command.inputs.get("how") == "inline":
            return "inline"
        return super().plan(command, session)

    # --- running ---

    @contextmanager
    def _noted(self, command: AnyCommand, session: Any) -> Any:
        inputs = getattr(command, "inputs", None) or {}
        call = inputs.get("call") or getattr(command, "value", None) or ""
        version = getattr(command, "version", 0) or self.versions.get(PROGRAM, 0)
        code = self._codes[PROGRAM, version] if inputs else ""
        run = self._history.began(
            str(call), self._worker, None if session is None else session.id, version if inputs else 0, code
        )
        try:
            yield run
        finally:
            if current().alive:
                run.ended_at = self._history.clock()

    def run_inline(self, command: AnyCommand, session: Any, principal: str | None = None) -> CommandResult:
        with self._noted(command, session) as run:
            if isinstance(command, ExecuteProgram):
                return self._answer(command, session, run)
            return super().run_inline(command, session, principal)

    async def run_async(
        self, command: AnyCommand, session: Any, emit: Callable[[StreamEvent], Any] | None, **options: Any
    ) -> CommandResult:
        assert isinstance(command, ExecuteProgram | StreamProgram)
        inputs = command.inputs
        with self._noted(command, session) as run:
            until = asyncio.get_running_loop().time() + inputs["seconds"]
            try:
                for number in range(inputs.get("events", 0)):
                    await asyncio.sleep(inputs["seconds"] / 10)
                    if emit is not None:
                        await emit(StreamEvent("token", "text", f"{inputs['call']}:{number}"))
                await asyncio.sleep(max(0.0, until - asyncio.get_running_loop().time()))
            except asyncio.CancelledError:
                if inputs["how"] != "ignores cancellation":
                    raise
                await asyncio.sleep(max(0.0, until - asyncio.get_running_loop().time()))
            if inputs["how"] == "kills":
                process = current()
                process.kill()
                await asyncio.get_running_loop().create_future()
            return self._answer(command, session, run)

    def _answer(self, command: ExecuteProgram | StreamProgram, session: Any, run: Any) -> CommandResult:
        inputs = command.inputs
        if inputs["how"] == "fails":
            raise ProgramError("it failed")
        if inputs["how"] == "blocks":
            process = current()
            process.pause()
            process.loop.outside.soon(process.resume, after_s=inputs["seconds"])
            now = self._history.clock()
            self._history.blocked.append((self._worker, now, now + inputs["seconds"]))
        outputs: dict[str, Any] = {"call": inputs["call"], "code": run.code, "version": run.version}
        if session is not None:
            outputs["session"] = session.id
        changes: tuple[Change, ...] = ()
        if key := inputs.get("set"):
            session.mark()
            session.variables[key] = inputs["call"]
            changes = (Change("variable", key, {"value": inputs["call"]}),)
        return CommandResult({"outputs": outputs}, program_version=run.version, changes=changes)


def value_of(command: SetVariable | GetVariable, answer: Any) -> Any:
    return answer


__all__ = ["PROGRAM", "PoolError", "SimulatedHost"]
