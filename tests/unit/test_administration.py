"""What operators ask of a pool, against a supervisor that answers from a script."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dspool.core.lifecycle.warmup import WarmupReport
from dspool.errors import Conflict, ProgramError
from dspool.messages import Deployment
from dspool.runtime import administration
from dspool.runtime.administration import Administration
from dspool.supervisor.canary import Rollout
from dspool.supervisor.warmup import WarmProgress

WANTED = Deployment("qa", 0, spec={"signature": "a -> b"})


def rollout(phase: str, began_at: float = 2.0) -> Rollout:
    return Rollout(program="qa", version=2, previous=1, phase=phase, began_at=began_at)  # type: ignore[arg-type]


class Supervisor:
    """Answers each method with the coroutine of this class that has its name behind an underscore."""

    def __init__(self) -> None:
        self.rollouts = [rollout("done", began_at=1.0)]
        self.progress = [WarmProgress(7, "end")]
        self.fail_with: Exception | None = None
        self.hold = asyncio.Event()

    async def _recent_rollouts(self) -> list[Rollout]:
        return list(self.rollouts)

    async def _deploy(self, deployment: Deployment) -> Deployment:
        if self.fail_with is not None and not isinstance(self.fail_with, ProgramError):
            raise self.fail_with
        for phase in ("loading", "canary", "rolled back" if self.fail_with else "done"):
            self.rollouts = [rollout(phase), self.rollouts[-1]]
            await asyncio.sleep(0.01)
        if self.fail_with is not None:
            raise self.fail_with
        return Deployment("qa", 2, spec=deployment.spec)

    async def _warm_progress(self, since: int, timeout_s: float) -> list[WarmProgress]:
        await asyncio.sleep(0)
        return [moment for moment in self.progress if moment.sequence > since]

    async def _warm(self, strategy: str | None) -> WarmupReport:
        if self.fail_with is not None:
            raise self.fail_with
        self.progress.append(WarmProgress(8, "begin", total=1))
        await self.hold.wait()
        self.progress.append(WarmProgress(9, "end"))
        return WarmupReport(strategy or "parallel")


class Pool(Administration):
    def __init__(self) -> None:
        self.supervisor: Any = Supervisor()
        self.caught_up = False
        self.client: Any = self

    async def catch_up(self) -> None:
        self.caught_up = True

    async def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        return await getattr(self.supervisor, f"_{method}")(*args, **options)

    _query = _ask


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(administration, "_ROLLOUT_S", 0.002)
    return Pool()


async def test_a_deployment_shows_its_own_roll_out_as_it_changes_and_then_its_version(pool):
    *states, done = [moment async for moment in pool.stream_deploy(WANTED)]
    assert [state.phase for state in states] == ["loading", "canary", "done"]
    assert all(state.began_at == 2.0 for state in states)
    assert (done.version, pool.caught_up) == (2, True)


async def test_a_deployment_that_is_rolled_back_shows_that_before_it_raises(pool):
    pool.supervisor.fail_with = ProgramError("it did worse")
    shown = []
    with pytest.raises(ProgramError):
        await collect(pool.stream_deploy(WANTED), shown)
    assert shown[-1].phase == "rolled back"
    pool.supervisor.fail_with = Conflict("a deployment is running")
    shown.clear()
    pool.supervisor.rollouts = [rollout("done", began_at=1.0)]
    with pytest.raises(Conflict):
        await collect(pool.stream_deploy(WANTED), shown)
    assert shown == []


async def test_a_warm_up_shows_its_steps_and_goes_on_if_nobody_listens(pool):
    events = pool.stream_warm("staged")
    assert await anext(events) == WarmProgress(8, "begin", total=1)
    pool.supervisor.hold.set()
    await asyncio.sleep(0)  # the warm-up ends while its last step has not been asked for
    assert [moment async for moment in events] == [WarmProgress(9, "end"), WarmupReport("staged")]
    pool.supervisor.fail_with = Conflict("a warm-up is running")
    with pytest.raises(Conflict):
        await anext(pool.stream_warm())


async def collect(events: Any, into: list[Any]) -> None:
    async for event in events:
        into.append(event)  # noqa: PERF401 - what came before the error is looked at
