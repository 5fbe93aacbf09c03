"""A pool changed step by step: few operations go to workers with the new settings, then more, or it goes back.

Whoever calls holds the way back: cut off (SIGKILL), the pool stays at its step, with workers of both kinds, until the
next `dspool apply`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from dspool.config import PoolConfig
from dspool.core.lifecycle.config_changes import PoolChange
from dspool.core.lifecycle.gradual_watch import Course, GradualWatch, HeldAlert, StepFacts
from dspool.errors import ChangeWentBack, ConfigError, Conflict, PoolError, PoolNotReady, WorkerStartFailed
from dspool.messages import PoolStatus
from dspool_serve.ingress.starting import Report

if TYPE_CHECKING:
    from dspool.runtime.installed import StartCommand
    from dspool.telemetry.snapshot import Snapshot

LOOK_S: Final = 5.0
"""Between two looks at a pool, if the hold is long enough for several."""
BEFORE_S: Final = 10.0
"""How long to look before the change, at most: what is wrong already is not its fault."""
ANSWER_S: Final = 5.0


class JudgedAlert(Protocol):
    """One alert as it stands."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def severity(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    @property
    def when(self) -> str: ...


class PoolAlerts(Protocol):
    """The alerts of one pool, judged with each snapshot; None: its metrics do not answer."""

    @property
    def alerts(self) -> Iterable[JudgedAlert]: ...
    def take(self, snapshot: Snapshot | None) -> None: ...


class Gradually(NamedTuple):
    """How to go, and what judges: `alerts(pool)` are those of a pool from now on."""

    course: Course
    alerts: Callable[[str], PoolAlerts]


def needs_steps(change: PoolChange) -> bool:
    """Whether it replaces workers."""
    return change.deed == "change" and "workers" in change.parts


def check(changes: Iterable[PoolChange], configs: dict[str, PoolConfig], standing: Iterable[str]) -> None:
    """Before anything is changed.

    Raises:
        ConfigError: a pool that keeps no metrics cannot be judged.
        Conflict: an earlier change of a pool stands half-way: nobody could say what to go back to.
    """
    for name in standing:
        raise half_way(name)
    for change in filter(needs_steps, changes):
        if not configs[change.pool].enable_metrics:
            raise ConfigError(
                f"--gradual judges by the metrics of pool {change.pool}, and enable_metrics is off; "
                "nothing was changed",
                key="enable_metrics",
            )


def half_way(pool: str) -> Conflict:
    return Conflict(
        f"an earlier change of pool {pool} stands half-way: finish it, or take it back, by `dspool apply` without "
        "--gradual, with its file or with the one before; nothing was changed",
        pool=pool,
    )


async def finish(config: PoolConfig) -> None:
    """Let go through what stands half-way; nothing is fine too."""
    from dspool.runtime.exchange import gradual_step, status_of

    if (await status_of(config.name)).gradual is not None:
        await gradual_step(config, None)


class GradualApply:
    """One pool on its way."""

    def __init__(
        self,
        before: PoolConfig,
        config: PoolConfig,
        change: PoolChange,
        gradually: Gradually,
        patience_s: float,
        report: Report,
        *,
        code_of: Callable[[PoolConfig], StartCommand | None] = lambda config: None,
    ) -> None:
        """Actors that take another's place run the code of their configuration."""
        self._before, self._config, self._parts, self._code_of = before, config, change.parts, code_of
        self._course, self._patience_s, self._report = gradually.course, patience_s, report
        self._alerts = gradually.alerts(config.name)
        self._look_s = min(LOOK_S, max(0.1, self._course.hold_s / 4))
        self.steps: list[StepFacts] = []

    async def run(self) -> None:
        """All of it.

        Raises:
            ChangeWentBack: it did worse, or was interrupted; the pool has its settings from before, or says why not.
            PoolError: it did not begin.
        """
        from dspool.runtime.exchange import exchange, gradual_step, mark_of, status_of

        name = self._config.name
        status = await status_of(name)
        if self._config.lazy and not status.workers:
            self._report("gradual", f"pool {name} sleeps: there is nothing to try its new settings with")
            await exchange(self._config, self._parts, self._code_of(self._config))
            return
        alerts = await self._alerts_before()
        self._watch = GradualWatch(await status_of(name), await mark_of(self._config), alerts=alerts)
        # On record before the supervisor comes that has to know of it.
        await gradual_step(self._config, self._course.steps[0])
        async with self._back_again():
            await exchange(self._config, self._parts, self._code_of(self._config))
            for percent in self._course.steps:
                await self._step(percent)

    async def _step(self, percent: int) -> None:
        from dspool.runtime.exchange import gradual_step, until_rolled

        self._watch.begin(percent, time.monotonic())
        if percent < 100:
            await gradual_step(self._config, percent)
            await self._while_looking(self._reached())
            await self._look(replaced=True)
            told = self._watch.facts(time.monotonic())
            self._report(
                "gradual",
                f"pool {self._config.name} at {percent} %: new settings on {told.workers_new}, those before on "
                f"{told.workers_old}; holding for {self._course.hold_s:g} s",
            )
            self._watch.begin(percent, time.monotonic())
            await self._hold()
        else:
            await gradual_step(self._config, None)
            all_new = until_rolled(
                self._config, (), self._patience_s, lambda text: self._report("workers", text)
            )
            await self._while_looking(all_new)
            await self._look(replaced=True)
        facts = self._watch.facts(time.monotonic())
        self.steps.append(facts)
        self._report("gradual", f"pool {self._config.name} at {facts}")

    async def _hold(self) -> None:
        until = time.monotonic() + self._course.hold_s
        while (left_s := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, self._look_s))
            await self._look(replaced=True)
        await self._look(replaced=True, time_over=True)

    async def _while_looking(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=self._look_s)
                if not task.done():
                    await self._look(replaced=False)
            task.result()
        finally:
            task.cancel()

    async def _reached(self) -> None:
        """Until the workers of this step are there."""
        from dspool.runtime.exchange import cannot_start, status_of

        last, until = None, time.monotonic() + self._patience_s
        while True:
            status = await status_of(self._config.name)
            if status.gradual is None or status.gradual.reached:
                return
            if status.cannot_start:
                raise cannot_start(status)
            progress = (status.gradual.workers_new, status.gradual.workers_old)
            if progress != last:
                last, until = progress, time.monotonic() + self._patience_s
            if time.monotonic() > until:
                raise WorkerStartFailed(
                    f"the workers with the new settings did not come within {self._patience_s:g} s",
                    pool=self._config.name,
                )
            await asyncio.sleep(min(0.25, self._look_s))

    async def _look(self, *, replaced: bool, time_over: bool = False) -> None:
        """Raises: _Worse: the pool has to go back."""
        from dspool.runtime.exchange import status_of

        status: PoolStatus = await status_of(self._config.name)
        why = self._watch.look(status, await self._held(), replaced=replaced, time_over=time_over)
        if why:
            raise _Worse(why)

    async def _alerts_before(self) -> set[str]:
        """Those that hold before anything was changed."""
        self._report("gradual", f"looking at pool {self._config.name} as it is")
        held: set[str] = set()
        until = time.monotonic() + min(BEFORE_S, self._course.hold_s)
        while True:
            held |= {alert.name for alert in await self._held()}
            if time.monotonic() >= until:
                if "DspoolMetricsMissing" in held:
                    # It would not count later, nor would any other alert.
                    raise PoolNotReady(
                        f"--gradual judges by the metrics of pool {self._config.name}, and they do not answer; "
                        "it was not changed, try again",
                        pool=self._config.name,
                    )
                return held
            await asyncio.sleep(self._look_s)

    async def _held(self) -> list[HeldAlert]:
        from dspool.runtime.metrics import RemoteMetrics

        snapshot = None
        with contextlib.suppress(PoolError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                snapshot = await RemoteMetrics(self._config.name).ask("snapshot")
        self._alerts.take(snapshot)
        return [
            HeldAlert(alert.name, alert.value, alert.when)
            for alert in self._alerts.alerts
            if alert.state in ("pending", "firing") and alert.severity in ("warning", "critical")
        ]

    # --- the way back ---

    @asynccontextmanager
    async def _back_again(self) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            # Ctrl-C: asyncio cancels this task once; another one ends it where it stands.
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            await self._go_back("it was interrupted")
        except _Worse as worse:
            await self._go_back(worse.why)
        except Exception as failed:
            await self._go_back(failed.message if isinstance(failed, PoolError) else type(failed).__name__)

    async def _go_back(self, why: str) -> None:
        from dspool.runtime.exchange import exchange, gradual_step, heal, until_rolled

        facts = self._watch.facts(time.monotonic())
        self.steps.append(facts)
        name = self._config.name
        self._report("back", f"pool {name} goes back: {why}")
        details: dict[str, Any] = {
            "pool": name,
            "gradual": {
                "steps": msgspec.to_builtins(self.steps),
                "went_back": True,
                "percent": facts.percent,
                "reason": why,
            },
        }
        try:
            await heal(name)
            # At once: from here on the new workers get nothing but their sessions.
            with contextlib.suppress(PoolError):
                await gradual_step(self._config, 0)
            await gradual_step(self._before, 100)
            await exchange(self._before, self._parts, self._code_of(self._before))
            await until_rolled(self._before, (), self._patience_s, lambda text: self._report("workers", text))
        except PoolError as failed:
            details["gradual"]["went_back"] = False
            raise ChangeWentBack(
                f"pool {name} was to go back from {facts.percent} % ({why}), and is still on its way: "
                f"{failed.message}; `dspool apply` with the file before goes on",
                **details,
            ) from failed
        raise ChangeWentBack(
            f"pool {name} went back at {facts.percent} %: {why}; it has its settings from before, and nothing that "
            "would have followed was changed",
            **details,
        )


class _Worse(Exception):
    """The pool has to go back."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


__all__ = ["GradualApply", "Gradually", "check", "finish", "needs_steps"]
