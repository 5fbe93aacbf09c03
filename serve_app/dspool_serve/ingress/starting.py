"""The start of a service, step by step: told to people, bounded, tried again where another's program gave up early."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from dspool import private_files
from dspool.core.lifecycle.start_steps import SAY_AFTER_S, StartStep, StartSteps, StepTiming
from dspool.errors import PoolError, WorkerStartFailed

T = TypeVar("T")
Report = Callable[[str, str], None]
"""Called with a step ("ray", "pool", "http", ...) and what happened, for people."""

RAY: Final = StartStep("ray", "Ray", log="raylet", repeatable=True)
POOL: Final = StartStep("pool", "warm workers", log="core-worker", keeps_time=True)
SERVE: Final = StartStep("serve", "Ray Serve and its proxy", log="serve/", repeatable=True)
HTTP: Final = StartStep("http", "the HTTP service's replicas", log="serve/", repeatable=True)
ANSWER: Final = StartStep("answer", "the first answer", log="serve/", keeps_time=True)

LOG_NAME: Final = "start_failed.log"
_TAIL_BYTES: Final = 16 * 1024
_FILES: Final = 20


class Starting:
    """The steps of one start, as they run."""

    def __init__(self, limit_s: float, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._report = clock, report
        self._steps = StartSteps(limit_s, now=clock())
        self._failed: StartStep | None = None

    @property
    def failed(self) -> StartStep | None:
        """The first step that failed."""
        return self._failed

    def timings(self) -> list[StepTiming]:
        return self._steps.timings()

    async def run(
        self,
        step: StartStep,
        work: Callable[[], Awaitable[T]],
        undo: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """What `work` gives. What failed because Ray or Serve gave up early is undone and tried once more.

        Raises:
            PoolError: as `work`.
            WorkerStartFailed: the step took too long, or failed for good; names it.
        """
        self._steps.begin(step, now=self._clock())
        try:
            for attempt in (1, 2):
                try:
                    left_s = None if step.keeps_time else self._steps.left_s(step, now=self._clock())
                    async with asyncio.timeout(left_s):
                        return await work()
                except PoolError:
                    raise
                except Exception as failed:
                    why = said_by(failed)
                    if undo is None or not self._steps.may_repeat(step, attempt, now=self._clock()):
                        late = f" within {self._steps.limit_s:g} s (init_timeout_s)"
                        raise WorkerStartFailed(
                            f"step {step.name}: {step.what} did not come up{late if not why else ''}"
                            + (f": {why}" if why else "")
                        ) from failed
                    self._report("warning", f"{step.what} gave up ({why}); once more")
                    await undo()
            raise AssertionError("unreachable")
        except BaseException:
            self._failed = self._failed or step
            raise
        finally:
            self._steps.end(step, now=self._clock())

    @contextlib.asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """In the block it is said every few seconds what is waited for."""
        task = asyncio.ensure_future(self._tell())
        try:
            yield
        finally:
            task.cancel()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(SAY_AFTER_S)
            for line in self._steps.waiting(now=self._clock()):
                self._report("wait", line)


async def in_thread(call: Callable[[], T]) -> T:
    """As `asyncio.to_thread`, but cancelled it ends with the thread: what that has started can be taken down then."""
    work = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


def said_by(failed: BaseException) -> str:
    """Why it failed, in one line; empty for a time that ran out."""
    # Ray's texts are tracebacks: their last line says it.
    if isinstance(failed, TimeoutError) and not str(failed):
        return ""
    lines = [
        line.strip() for line in str(getattr(failed, "cause", None) or failed).splitlines() if line.strip()
    ]
    return f"{type(failed).__name__}: {lines[-1] if lines else 'without a word'}"[:500]


def start_limits(init_timeout_s: float, given: Mapping[str, str]) -> dict[str, str]:
    """Serve gives up on a proxy after 5 s, with a bare `ActorDiedError`: too soon on a busy machine.

    It waits as long as the pool does, unless `given`, the environment, says how long.
    """
    names = (
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S",
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S",
        # How long Ray waits for a process to become a worker, and for its control plane.
        "RAY_worker_register_timeout_seconds",
        "RAY_gcs_server_port_wait_time_s",
    )
    return {name: str(math.ceil(init_timeout_s)) for name in names if name not in given}


def keep_logs(session: Path, to: Path, step: StartStep) -> bool:
    """Write the ends of what Ray's processes logged into one file, those of `step` first; whether there was any.

    The session's own directory goes with the failed start.
    """
    found = [path for path in (session / "logs").rglob("*") if path.is_file() and path.stat().st_size]
    found.sort(key=lambda path: (step.log not in str(path), path.suffix != ".err", -path.stat().st_mtime))
    parts = []
    for path in found[:_FILES]:
        text = path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        parts.append(f"==> {path.relative_to(session / 'logs')} <==\n{text}\n")
    if parts:
        private_files.replace(to, "\n".join(parts).encode(errors="replace"))
    return bool(parts)


def with_log(
    failed: WorkerStartFailed, step: StartStep | None, temp_dir: Path | None, path: Path
) -> WorkerStartFailed:
    """The error, which also says where the logs of the processes are that took part in the start: in `path`."""
    if step is None or temp_dir is None:
        return failed
    with contextlib.suppress(OSError):
        if keep_logs(temp_dir / "ray" / "session_latest", path, step):
            details = {**failed.details, "step": step.name, "log": str(path)}
            return type(failed)(f"{failed.message}; the ends of Ray's logs are in {path}", **details)
    return failed


__all__ = [
    "ANSWER",
    "HTTP",
    "LOG_NAME",
    "POOL",
    "RAY",
    "SERVE",
    "Report",
    "Starting",
    "in_thread",
    "keep_logs",
    "said_by",
    "start_limits",
    "with_log",
]
