"""The DSPy side of a worker: runs commands, in sessions or for the whole pool.

`SessionHost` configures DSPy once; each operation gets what it needs in a context of its own, so that operations run
side by side in tasks and threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal

from dspool import raised as told
from dspool.answers import AnswersLink
from dspool.config import PoolConfig
from dspool.core.lifecycle.source import ImportedSource
from dspool.errors import Cancelled, InternalError, PoolError, is_cancellation
from dspool.messages import (
    JSON,
    AnyCommand,
    CreateProgram,
    Deployment,
    ExecuteCode,
    ExecuteProgram,
    ExecuteSandboxed,
    GetProgramInfo,
    Ping,
    StreamEvent,
    StreamProgram,
)
from dspool.messages.operations import total_cost
from dspool.programs.models.errors import translate
from dspool.programs.models.lm import LMs
from dspool.programs.models.operation import OperationScope
from dspool.programs.models.shared_answers import answers_of
from dspool.programs.outputs import outputs_of
from dspool.programs.program import Definition, Program, load_program
from dspool.programs.scripted import ScriptedLM
from dspool.programs.sessions.code import run_code
from dspool.programs.sessions.commands import CommandResult, SessionCommands
from dspool.programs.sessions.defaults import Defaults
from dspool.programs.sessions.pool_programs import PoolPrograms
from dspool.programs.sessions.runs import Run, Runs
from dspool.programs.sessions.scopes import (
    Scopes,
    answer_of,
    await_outputs,
    context_of,
    deadline,
    running_in,
)
from dspool.programs.sessions.session import Session
from dspool.programs.sessions.streaming import Emit, stream_call, stream_in_thread
from dspool.programs.setup import configure_dspy
from dspool.programs.sizes import is_large
from dspool.programs.versioned import source_of, warn_of_other_versions
from dspool.proxies import keep_loopback_direct

__all__ = ["CommandResult", "Session", "SessionHost"]


class SessionHost:
    """One per worker process. All `run_*` raise only `PoolError`s; cancelling `run_async` stops its LM call.

    `principal` is who asks. Only the same principal finds a cached answer; without one, only the same session does.
    Programs may raise anything, `KeyboardInterrupt`, `SystemExit` and `CancelledError` too: it ends their operation.
    """

    def __init__(
        self,
        config: PoolConfig,
        *,
        clock: Callable[[], float] = time.time,
        scripts: Mapping[str, ScriptedLM] | None = None,
        answers: AnswersLink | None = None,
    ) -> None:
        """`scripts` answer in place of the models of the LM profiles that they are given for. With them, even if there
        are none, no model is called out of this process. `answers` is the pool's cache, if it has one; None: one of
        this host's own.
        """
        self.config = config
        self.clock = clock
        # Before anything makes a connection.
        keep_loopback_direct(profile.endpoint for profile in config.lm_profiles.values())
        self.lms = LMs.of(config, scripts)
        self._scopes = Scopes(config, answers_of(config, answers, self.lms.counts))
        self.pool_programs = PoolPrograms(self.load, self.source)
        self._runs = Runs(self.pool_programs, self.lms, config.request_lm)
        self._commands = SessionCommands(
            self.lms, self.pool_programs, load=self.load, history_limit=config.history_limit
        )
        self._building = threading.Lock()
        self.defaults = Defaults(self.pool_programs.loaded, local=scripts is not None)
        told.own(config.allowed_imports)
        configure_dspy(cache=bool(config.cache), show_content=config.telemetry.capture_content)

    # --- pool programs -------------------------------------------------------------------------------

    def deploy(self, d: Deployment) -> None:
        """Load one version of a pool program, see `PoolPrograms.deploy`."""
        self.pool_programs.deploy(d)
        warn_of_other_versions(d, self.config.name)

    def retire(self, program: str, version: int) -> None:
        """Forget one version. Raises `UnknownProgram`; `Conflict` if it is current and not the last."""
        self.pool_programs.retire(program, version)

    def current(self, program: str) -> int:
        """The current version of a pool program. Raises `UnknownProgram`."""
        return self.pool_programs.version_of(program)

    def activate(self, program: str, version: int) -> None:
        """Make a loaded version the current one. Raises `UnknownProgram`."""
        self.pool_programs.activate(program, version)

    def source(self, paths: Iterable[str]) -> ImportedSource:
        """What this process has of the source around those paths that the configuration allows."""
        return source_of(paths, self.config)

    def is_offline(self, program: str) -> bool:
        """Whether the current version of a pool program runs on the offline engine, so costs nothing."""
        loaded = self.pool_programs.get(program)[0]
        return all(self.lms.in_process(lm) for lm in (self._runs.usual_lm(loaded), *loaded.brought()))

    def take_model_calls(self) -> dict[str, int]:
        """What became of calls of models since the last time, as `MetricsSnapshot.model_calls`."""
        return self.lms.counts.take()

    def lm(self, profile: str) -> Any:
        """The LM of a profile, built and ready. Raises `UnknownName`, `ModelAuthFailed`, `ConfigError`."""
        return self.lms.get(profile)

    def load(self, definition: Definition) -> Program:
        """The program of `definition`, whose LM profile exists. Not for the event loop. Raises `PoolError`."""
        if definition.import_path is None:
            # One at a time: the event loop shares the interpreter with what builds.
            with self._building:
                program = load_program(definition, self.config)
        else:
            program = load_program(definition, self.config)
        if program.lm is not None:
            self.lms.check(program.lm)
        self.defaults.apply(program)
        return program

    # --- running -------------------------------------------------------------------------------------

    def plan(
        self, command: AnyCommand, session: Session | None
    ) -> Literal["inline", "async", "apart", "thread", "build"]:
        """How to run `command` so that the event loop stays free. A bad one goes "inline": `run_inline` refuses it.

        "apart": asynchronously, but its code may block the event loop that it runs on.
        "build": its program in the session is not built yet; call `build` in a thread, then ask again.
        """
        kind = type(command)
        if kind is ExecuteProgram or kind is StreamProgram or kind is GetProgramInfo:
            if session is not None and session.is_unbuilt(command.program):  # type: ignore[union-attr]
                return "build"
            if kind is GetProgramInfo:
                # Its schemas are made at the first time, and they may be large.
                return "thread"
            try:
                program, _, lm = self._runs.of(command, session)  # type: ignore[arg-type]
            except PoolError:
                return "inline"
            if program.way == "thread":
                return "thread"
            if program.way == "async" and program.has_code:
                return "apart"
            if kind is StreamProgram or program.way == "async" or not self.lms.in_process(lm):
                return "async"
            # The engine reads long texts in a thread.
            outputs = 1 if program.signature is None else len(program.signature.outputs)
            return "async" if is_large(command.inputs, outputs) else "inline"  # type: ignore[union-attr]
        if kind is ExecuteSandboxed or kind is CreateProgram:
            return "thread"
        return "thread" if kind is ExecuteCode and self.config.allow_execute_code else "inline"

    def build(self, command: AnyCommand, session: Session | None) -> None:
        """Build the program of the session that `command` names. Raises `PoolError`."""
        if session is not None and isinstance(command, ExecuteProgram | StreamProgram | GetProgramInfo):
            session.program(command.program)

    def version_for(self, command: ExecuteProgram | StreamProgram, session: Session | None) -> int:
        """The version of the pool program that `command` runs; 0 for a session's own program or an unknown one."""
        if session is not None and command.program in session.definitions:
            return 0
        return command.version or self.pool_programs.current.get(command.program, 0)

    def run_inline(
        self, command: AnyCommand, session: Session | None, principal: str | None = None
    ) -> CommandResult:
        """Run it here and now. `execute_program` answers `{"outputs": {...}}`; the others: `SessionCommands`."""
        if session is None and type(command) is ExecuteProgram:
            # The hot path: a pool program without a session.
            program, version, lm = self._runs.of(command, None)
            if program.way != "direct":
                return self._run_sync(command, None, self._scopes.of(None, principal), None)
            inputs = program.check_inputs(command.inputs)
            scope = self._scopes.of(None, principal)
            try:
                with context_of(program, lm, scope):
                    outputs = outputs_of(program.module(**inputs))
            except BaseException as raised:
                raise translate(raised) from raised
            return answer_of(outputs, scope, version)
        scope = self._scopes.of(session, principal)
        return self._record_run(command, session, lambda: self._run_sync(command, session, scope, None))

    def run_thread(
        self,
        command: AnyCommand,
        session: Session | None,
        emit_threadsafe: Callable[[StreamEvent], None] | None = None,
        *,
        stop: threading.Event | None = None,
        principal: str | None = None,
    ) -> CommandResult:
        """Run it in the calling thread, which may block for long. Once `stop` is set, it makes no further LM call."""
        scope = self._scopes.of(session, principal, stop)
        scope.deadline = deadline()
        return self._record_run(
            command, session, lambda: self._run_sync(command, session, scope, emit_threadsafe)
        )

    async def run_async(
        self,
        command: AnyCommand,
        session: Session | None,
        emit: Callable[[StreamEvent], Awaitable[None]] | None = None,
        *,
        principal: str | None = None,
    ) -> CommandResult:
        """Run it on the event loop. Cancelling the task closes the connection of a running LM call.

        Raises:
            PoolError: as all `run_*`. asyncio.CancelledError passes through if the task was cancelled, so that
                `asyncio.timeout` works.
        """
        if not isinstance(command, ExecuteProgram | StreamProgram):
            return self.run_inline(command, session, principal)
        started_at = self.clock()
        scope = self._scopes.of(session, principal)
        scope.deadline = deadline()
        try:
            result = await self._run_program(command, session, scope, emit)
        except PoolError as refused:
            self._record(command, session, started_at, error=refused)
            raise
        except BaseException:
            self._record(command, session, started_at, error=Cancelled("cancelled"))
            raise
        self._record(command, session, started_at, result=result)
        return result

    async def _run_program(
        self,
        command: ExecuteProgram | StreamProgram,
        session: Session | None,
        scope: OperationScope,
        emit: Emit | None,
    ) -> CommandResult:
        run = self._runs.of(command, session)
        inputs = run.program.check_inputs(command.inputs)
        module = run.program.runnable()
        try:
            with running_in(run.program, scope), context_of(run.program, run.lm, scope):
                if emit is None or type(command) is ExecuteProgram:
                    outputs = outputs_of(await module.acall(**inputs))
                else:
                    outputs = await stream_call(run.program, emit, lambda: await_outputs(module, inputs))
        except BaseException as raised:
            if is_cancellation(raised):
                raise
            raise translate(raised) from raised
        return answer_of(outputs, scope, run.version)

    def _run_sync(
        self,
        command: AnyCommand,
        session: Session | None,
        scope: OperationScope,
        emit: Callable[[StreamEvent], None] | None,
    ) -> CommandResult:
        stop = scope.stop
        if session is not None:
            session.forget_mark()
        if type(command) is ExecuteCode:
            return run_code(command, session, self.config)
        if type(command) is ExecuteSandboxed:
            # Few pools need it, and importing it reads files.
            from dspool.programs.sessions.sandbox import run_sandboxed

            return run_sandboxed(command, session, self.config, stop)
        if not isinstance(command, ExecuteProgram | StreamProgram):
            return self._commands.run(command, session, stop)
        run = self._runs.of(command, session)
        inputs = run.program.check_inputs(command.inputs)
        try:
            with running_in(run.program, scope):
                if emit is not None and type(command) is StreamProgram:
                    outputs = stream_in_thread(
                        run.program,
                        emit,
                        lambda **settings: self._call(run, inputs, scope, **settings),
                    )
                else:
                    outputs = self._call(run, inputs, scope)
        except BaseException as raised:
            if stop is not None and stop.is_set():
                raise Cancelled("the operation was cancelled") from raised
            raise translate(raised) from raised
        if stop is not None and stop.is_set():
            # A program that survives failing attempts may have answered without its LM: nobody wants that answer.
            raise Cancelled("the operation was cancelled")
        return answer_of(outputs, scope, run.version)

    def _call(
        self, run: Run, inputs: Mapping[str, Any], scope: OperationScope, **settings: Any
    ) -> dict[str, JSON]:
        if run.program.way == "thread":
            # BestOfN and Refine write to the trace: each operation gets a list of its own.
            # There is no event loop here, so async tools can be awaited.
            settings |= {"trace": [], "allow_tool_async_sync_conversion": True}
        with context_of(run.program, run.lm, scope, **settings):
            return outputs_of(run.program.runnable()(**inputs))

    # --- what a session remembers --------------------------------------------------------------------

    def _record_run(
        self, command: AnyCommand, session: Session | None, run: Callable[[], CommandResult]
    ) -> CommandResult:
        started_at = self.clock()
        try:
            result = run()
        except PoolError as refused:
            self._record(command, session, started_at, error=refused)
            raise
        except Exception as defect:
            failed = InternalError(f"{type(command).__name__} failed: {type(defect).__name__}")
            self._record(command, session, started_at, error=failed)
            raise failed from defect
        except BaseException as raised:  # only a user's code raises such
            stopped = translate(raised)
            self._record(command, session, started_at, error=stopped)
            raise stopped from raised
        self._record(command, session, started_at, result=result)
        return result

    def _record(
        self,
        command: AnyCommand,
        session: Session | None,
        started_at: float,
        *,
        result: CommandResult | None = None,
        error: PoolError | None = None,
    ) -> None:
        if session is None or type(command) is Ping:
            return
        session.last_used = now = self.clock()
        session.operations += 1
        session.errors += error is not None and error.outcome != "client_error"
        if result is not None:
            session.tokens += sum(int(counts.get("total_tokens", 0)) for counts in result.usage.values())
            session.cost_usd += total_cost(result.usage) or 0.0
        if self.config.history_limit:
            self._commands.remember(command, session, started_at, now, result, error)
