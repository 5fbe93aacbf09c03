"""The worker: one process that holds DSPy sessions and runs operations for every client that connects to it.

A plain class; `runtime` makes an actor of it. Control (warm up, drain, deploy, health) comes through actor
calls from the supervisor; operations come over connections, see `wire`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from dspool.config import (
    ConfigureLMStep,
    CustomCode,
    ImportModules,
    LoadPrograms,
    PoolConfig,
    Probe,
    SetupStep,
    WorkerStep,
)
from dspool.core.admission.quotas import MB
from dspool.core.lifecycle.source import ImportedSource
from dspool.core.metrics.recorder import WorkerDelta, WorkerRecorder
from dspool.errors import NotAllowed, PoolError, ProgramError, WorkerStartFailed, is_cancellation, is_own
from dspool.messages import (
    Deployment,
    ExecuteProgram,
    Member,
    VersionNumbers,
    WorkerState,
    WorkerStatus,
)
from dspool.quotations import without_secrets
from dspool.release import VERSION
from dspool.telemetry import log_files, logs
from dspool.telemetry.event_log import EventBatch, EventBuffer
from dspool.telemetry.events import emit
from dspool.telemetry.log_files import LogPage, LogQuery, LogTail
from dspool.telemetry.pseudonyms import try_read_key
from dspool.telemetry.tracing import Tracing
from dspool.worker.execution import held, stuck
from dspool.worker.failures import FailureLog
from dspool.worker.listener import Listener
from dspool.worker.loop_watch import LoopWatch, Watched
from dspool.worker.operations import Operations
from dspool.worker.ownership import Ownership
from dspool.worker.session_store import Store

if TYPE_CHECKING:
    from dspool.answers import AnswersLink
    from dspool.programs.sessions.host import SessionHost

_log = logging.getLogger(__name__)
_SHUTDOWN_NOTICE_S = 1.0
"""How long a drained worker waits for its clients to hear of it and leave."""
_KEEP_INTERVAL_S = 5.0


class Worker:
    """`report` delivers a delta to the metrics actor; it may fail, and nothing here waits for it.

    `start` says how this process started, as `WorkerStatus.start` does. `session_host` runs the commands; the default
    is a new one for `config` in this process.
    """

    def __init__(
        self,
        worker_id: str,
        ordinal: int,
        config: PoolConfig,
        secret: bytes,
        store: Store,
        *,
        host: str = "127.0.0.1",
        node: str = "",
        report: Callable[[WorkerDelta | EventBatch], Awaitable[None]] | None = None,
        overflow: bool = False,
        start: str = "exec",
        session_host: SessionHost | None = None,
        answers: AnswersLink | None = None,
    ) -> None:
        self._id, self._ordinal, self._config = worker_id, ordinal, config
        self._address, self._node, self._report = host, node, report
        self._start = start
        self._store = store
        self._started_at = time.time()
        self._process = psutil.Process()
        if session_host is None:
            from dspool.programs.sessions.host import SessionHost

            session_host = SessionHost(config, answers=answers)
        self._host: SessionHost = session_host
        self._recorder = WorkerRecorder(
            config.name, worker_id, ordinal, config.slots_per_worker, now=time.monotonic(), overflow=overflow
        )
        self._tracing = Tracing(config, worker_id)
        self._events = EventBuffer(config.name, worker_id)
        self._watch = LoopWatch(
            config.loop_blocked_after_s,
            {"pool": config.name, "worker": worker_id, "slot": ordinal},
            is_user_code=config.allows_module,
        )
        self._operations = Operations(
            self._host,
            recorder=self._recorder,
            stream_window=config.stream_window,
            tracing=self._tracing,
            failures=FailureLog(config.telemetry),
            watch=self._watch,
        )
        self._ownership = Ownership(
            pool=config.name,
            worker_id=worker_id,
            store=store,
            host=self._host,
            limit=config.max_sessions_per_worker,
            size_limit=_bytes(config.limits.max_worker_sessions_mb),
            ttl_s=config.session_ttl_s,
            clock=time.monotonic,
            start=self._operations.start,
            moved=self._operations.moved,
            refuse=self._operations.refuse,
        )
        self._operations.ownership = self._ownership
        self._listener = Listener(secret, worker_id, self._operations)
        self._port: int | None = None
        self._opening = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._state: WorkerState = "starting"
        self._spans_lost = 0
        self.settings = ""
        """See `WorkerStatus`."""
        self._named = False
        """It has the key of the pool's pseudonyms."""

    def __repr__(self) -> str:
        return f"dspool worker {self._config.name}[{self._ordinal}] {self._state}"

    # --- life ---

    async def describe(self) -> Member:
        """Where clients reach this worker; the first call starts listening."""
        async with self._opening:
            if self._port is None:
                self._named = await try_read_key(self._config.name, self._store.get_record)
                self._port = await self._listen()
        return Member(
            worker_id=self._id,
            ordinal=self._ordinal,
            host=self._address,
            port=self._port,
            slots=self._config.slots_per_worker,
            pid=os.getpid(),
            node=self._node,
        )

    async def _listen(self) -> int:
        from dspool.corrections.dspy_calls import Threads

        loop = asyncio.get_running_loop()
        # DSPy's async path and threaded programs share it; the loop's own default has six threads.
        new_executor = partial(Threads, max(8, min(256, self._config.slots_per_worker * 2)))
        loop.set_default_executor(new_executor())
        self._operations.runner.new_executor = new_executor
        self._watch.add(Watched(loop, None, "", lambda: self._operations.executions))
        self._watch.start()
        self._events.attach()
        self._report_fallback()
        self._tasks = [loop.create_task(self._flush_metrics()), loop.create_task(self._keep_sessions())]
        if self._config.telemetry.sampling > 0:
            self._tasks.append(loop.create_task(asyncio.to_thread(self._tracing.prepare)))
        return await self._listener.open(self._address)

    async def warm(self, step: WorkerStep, deployments: list[Deployment]) -> None:
        """Run one warm-up step.

        Raises:
            PoolError: the step failed; the worker must not take traffic.
        """
        self._state = "warming"
        started_at = time.monotonic()
        try:
            if isinstance(step, ImportModules):
                # Not at the top: it loads DSPy.
                from dspool.programs.settings import import_module

                for module in step.modules:
                    await asyncio.to_thread(import_module, module)
            elif isinstance(step, SetupStep):
                await self._host.defaults.set_up(step.import_path)
            elif isinstance(step, CustomCode):
                await self._host.defaults.call(step.import_path)
            elif isinstance(step, ConfigureLMStep):
                await asyncio.to_thread(self._host.lm, step.profile)
            elif isinstance(step, LoadPrograms):
                for deployment in deployments:
                    await asyncio.to_thread(self._host.deploy, deployment)
            elif isinstance(step, Probe):
                await self._probe(step)
        except BaseException as failed:
            if is_own(failed) or is_cancellation(failed):
                raise
            # A step may be anybody's code: its KeyboardInterrupt or SystemExit would end the process or its loop.
            told = ProgramError.of(failed, f"warm-up step {step.step!r}", loading=True, hide=without_secrets)
            raise WorkerStartFailed(str(told), worker=self._id, step=step.step, **told.details) from failed
        logs.include_own(self._config)
        self._state = "ready"
        _log.info(
            "worker %s: warm-up step %s took %.3f s", self._id, step.step, time.monotonic() - started_at
        )

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let what runs finish (at most `timeout_s`), give all sessions back."""
        self._state = "draining"
        self._operations.draining = True
        await self._ownership.release_idle()
        await self._operations.idle(timeout_s, self._config.recycle.stuck_s)
        await self._ownership.release_idle()
        # Clients leave as soon as they hear of it. Until then they get "busy" for what they send, and results that are
        # still on their way arrive; with the connection cut, both would look like the death of a worker.
        await self._listener.wait_clients_gone(_SHUTDOWN_NOTICE_S)
        await asyncio.to_thread(self._tracing.flush)
        await self._deliver()

    async def stop(self) -> None:
        """Close the listener and the connections. The runtime ends the process itself."""
        self._state = "stopped"
        for task in self._tasks:
            task.cancel()
        self._events.detach()
        self._watch.close()
        self._operations.runner.close()
        await asyncio.to_thread(self._tracing.close)
        self._listener.close()

    async def until_dead(self) -> str:
        """Never returns: the call fails when this process is gone, so that others notice at once."""
        await asyncio.Event().wait()
        return "unreachable"

    # --- calls of the supervisor ---

    async def health(self) -> WorkerStatus:
        """The event loop that runs operations answers: if it is blocked, there is no answer."""
        now = time.monotonic()
        late = stuck(self._operations.executions, now, self._config.recycle.stuck_s)
        rss_mb = self._rss_mb()
        return WorkerStatus(
            id=self._id,
            ordinal=self._ordinal,
            state="failed" if late and self._state == "ready" else self._state,
            reason=f"stuck: operation {late}" if late else "",
            pid=os.getpid(),
            node=self._node,
            sessions=len(self._ownership),
            running=self._operations.running,
            slots=self._config.slots_per_worker,
            started_at=self._started_at,
            operations=self._recorder.operations,
            errors=self._recorder.errors,
            busy_s=self._recorder.busy_s(now),
            rss_mb=rss_mb,
            own_mb=await asyncio.to_thread(_private_mb) if self._start.startswith("fork") else rss_mb,
            overflow=self._recorder.overflow,
            start=self._start,
            settings=self.settings,
            version=VERSION,
        )

    async def versions(self, program: str) -> dict[int, VersionNumbers]:
        """What each version of a pool program did here; the numbers that judge a canary."""
        return self._operations.versions(program)

    async def running(self) -> list[dict[str, Any]]:
        """What each slot in use does: operation id, command, program, session, seconds."""
        return [held(operation, held_s) for operation, held_s in self._operations.details()]

    async def cancel(self, operation_id: str) -> bool:
        """End an operation as if its caller had asked for it; False: it is not here."""
        return self._operations.cancel(operation_id)

    async def memory(self) -> dict[str, float]:
        """RSS, PSS and USS in MB. Reading them walks the whole memory map of the process: call it seldom."""
        info = await asyncio.to_thread(self._process.memory_full_info)
        return {f"{kind}_mb": round(getattr(info, kind) / 2**20, 1) for kind in ("rss", "pss", "uss")}

    async def log_tail(self, lines: int) -> LogTail:
        """The end of this process's log; only dspool's own records unless content capture is on."""
        show = self._config.telemetry.capture_content
        return await asyncio.to_thread(log_files.tail, log_files.own_log(), lines, show_content=show)

    async def log_lines(self, query: LogQuery) -> LogPage:
        """Lines of all processes of the pool on this node; see `log_files`."""
        return await log_files.search_node(self._config, query)

    async def deploy(self, deployment: Deployment) -> None:
        await asyncio.to_thread(self._host.deploy, deployment)
        logs.include_own(self._config)

    async def retire(self, program: str, version: int) -> None:
        self._host.retire(program, version)
        self._operations.runner.retire(program, version)

    async def activate(self, program: str, version: int) -> None:
        self._host.activate(program, version)

    async def source(self, paths: tuple[str, ...]) -> ImportedSource:
        """The modules around these import paths as this process imported them, and which files changed since."""
        return await asyncio.to_thread(self._host.source, paths)

    async def release(self, session_id: str) -> bool:
        """Give the session back if nothing of it runs here; returns whether it is free now."""
        return await self._ownership.release(session_id)

    async def forget(self, sessions: list[str]) -> None:
        """These sessions are gone from the store (expired or ended by others)."""
        self._ownership.forget(sessions)

    # --- within ---

    async def _probe(self, step: Probe) -> None:
        if not step.paid and not self._host.is_offline(step.program):
            raise NotAllowed(
                f"the warm-up probe of {step.program!r} would call a paid model; `paid: true` in the step allows it",
                program=step.program,
            )
        command = ExecuteProgram(step.program, step.inputs)
        plan = self._host.plan(command, None)
        if plan == "inline":
            self._host.run_inline(command, None)
        elif plan == "apart":
            await self._operations.runner.run_apart(command)
        elif plan == "async":
            await self._host.run_async(command, None, None)
        else:
            await asyncio.to_thread(self._host.run_thread, command, None)

    async def _flush_metrics(self) -> None:
        while True:
            await asyncio.sleep(self._config.metrics_flush_interval_s)
            await self._deliver()

    async def _deliver(self) -> None:
        if self._report is None:
            return
        await self._events.deliver(self._report)
        dropped, self._spans_lost = self._tracing.dropped - self._spans_lost, self._tracing.dropped
        delta = self._recorder.take_delta(
            time.monotonic(),
            sessions=len(self._ownership),
            rss_mb=self._rss_mb(),
            dropped=dropped,
            model_calls=self._host.take_model_calls,
        )
        try:
            await self._report(delta)
        except Exception:
            # Whatever it was: the recorder sends the delta again, and it counts once.
            self._recorder.give_back(delta)

    async def _keep_sessions(self) -> None:
        while True:
            await asyncio.sleep(min(_KEEP_INTERVAL_S, self._config.session_ttl_s / 4))
            if not self._named:
                self._named = await try_read_key(self._config.name, self._store.get_record)
            with contextlib.suppress(PoolError):  # the store is away: the next round tries again
                await self._ownership.tidy()

    def _report_fallback(self) -> None:
        method, _, why = self._start.partition(": ")
        if why:
            emit(
                "worker.fallback" if method == "exec" else "worker.unshared",
                {"count": 1},
                {"pool": self._config.name, "worker": self._id, "slot": self._ordinal, "reason": why},
            )

    def _rss_mb(self) -> float:
        return round(self._process.memory_info().rss / 2**20, 1)


def _private_mb() -> float:
    """What this process shares with no other, in MB. The kernel needs about a millisecond for each 300 MB."""
    fields = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines())
    return round(sum(int(kb) for name, kb, *_ in fields if name.startswith("Private_")) / 1024, 1)


def _bytes(mb: float | None) -> float | None:
    return None if mb is None else mb * MB
