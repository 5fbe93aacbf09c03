"""Warm-up: what a failing, hanging or dying worker does to it, and warming on demand."""

from __future__ import annotations

import asyncio

import pytest

from dspool.errors import (
    Conflict,
)
from dspool.testing.doubles import settle
from tests.unit.supervision import Scene, only, pool

# --- faults of warm-up ---


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("raise", "scripted fault: cannot run warm-up step load_programs"),
        ("hang", "not done within 4 s"),
        ("die", "died while it should run warm-up step load_programs"),
    ],
)
async def test_a_warm_up_step_that_fails_keeps_its_worker_out_and_the_pool_serving(fault, why):
    script = only(ordinal=1, step_faults={0: fault})
    async with pool(script, pool_size=2, warmup={"worker_deadline_s": 4.0}) as s:
        await s.clock.advance(4.5)
        assert await s.members() == [s.runtime.worker(ordinal=0).worker_id]
        assert why in (await s.status()).reason
        s.runtime.script = None
        await s.clock.advance(10.0)
        assert len(await s.members()) == 2, "it was tried again once the fault was gone"


async def test_one_slow_step_has_its_own_deadline():
    steps = [{"step": "import_modules", "modules": ["json"], "timeout_s": 1.0}]
    async with pool(only(ordinal=1, step_s=3.0), pool_size=2, warmup={"steps": steps}) as s:
        await s.clock.advance(1.0)
        assert "not done within 1 s" in (await s.status()).reason


async def test_a_worker_that_cannot_be_started_is_tried_again_with_a_backoff():
    def refuse(worker):
        raise RuntimeError("no room")

    async with pool(refuse, pool_size=1) as s:
        assert "could not be started: no room" in (await s.status()).reason
        s.runtime.script = None
        await s.clock.advance(1.0)
        assert len(await s.members()) == 1


async def test_a_worker_that_dies_before_it_listens_is_replaced():
    async with pool(only(ordinal=0, start_fault="die"), pool_size=2) as s:
        assert len(await s.members()) == 1
        s.runtime.script = None
        await s.clock.advance(1.0)
        assert len(await s.members()) == 2


async def test_a_start_that_comes_through_after_it_was_given_up_is_killed():
    gate = asyncio.Event()
    scene = Scene(pool_size=1, init_timeout_s=10.0, warmup={"worker_deadline_s": 10.0})
    start = scene.runtime.start_worker

    async def slow_start(worker_id, ordinal, node):
        if not gate.is_set():
            await gate.wait()
        return await start(worker_id, ordinal, node)

    scene.runtime.start_worker = slow_start
    await scene.supervisor.start()
    await scene.clock.advance(11.0)
    assert [w.state for w in (await scene.status()).workers] == ["failed", "starting"]
    gate.set()
    await settle()
    first = scene.runtime.workers[0]
    assert first.killed
    assert first.worker_id not in await scene.members()
    await scene.end()


async def test_a_failed_canary_stops_a_staged_start():
    script = only(step_faults={0: "raise"})
    async with pool(script, pool_size=7, warmup={"strategy": "staged"}, restart={"backoff_s": 1.0}) as s:
        assert len(s.runtime.workers) == 1
        assert "warm-up step 0" in (await s.status()).reason
        s.runtime.script = None
        await s.clock.advance(2.0)
        assert len(await s.members()) == 7


async def test_a_crash_loop_degrades_the_pool_and_it_serves_with_what_is_left():
    async with pool(pool_size=2, restart={"intensity": 3, "period_s": 30.0}) as s:
        survivor = s.runtime.worker(ordinal=1)
        for _ in range(6):
            for worker in s.runtime.alive:
                if worker is not survivor:
                    worker.die("exit 1")
            await s.clock.advance(0.05)
        status = await s.status()
        assert status.state == "degraded"
        assert "exit 1" in status.reason
        assert status.ready
        assert survivor.worker_id in await s.members()
        await s.clock.advance(60.0)
        assert (await s.status()).state == "ready"
        assert len(await s.members()) == 2


# --- warm-up on demand ---


async def test_warming_on_demand_reaches_each_worker_once_and_proves_it():
    async with pool(pool_size=3, spares=1, max_pool_size=8) as s:
        report = await s.supervisor.warm("staged")
        assert report.stages == (1, 1, 1, 1)
        assert {w.worker_id for w in report.workers} == {w.worker_id for w in s.runtime.workers}
        assert (report.workers_warm, report.workers_failed, report.stopped) == (4, 0, "")
        assert all(w.steps == ["load_programs"] * 2 for w in s.runtime.workers)
        assert len(await s.members()) == 3, "they went on serving"


async def test_a_failed_canary_stops_a_warm_up_on_demand_and_keeps_the_partial_report():
    async with pool(pool_size=3, warmup={"steps": [{"step": "import_modules", "modules": ["json"]}]}) as s:
        for worker in s.runtime.workers:
            worker.step_faults = {3: "raise"}
        report = await s.supervisor.warm("staged")
        assert report.stopped.startswith("the canary failed: default-w0-")
        assert len(report.workers) == 1
        assert [(step.step, step.failures) for step in report.steps] == [
            ("import_modules", 0),
            ("load_programs", 1),
        ]
        assert len(await s.members()) == 3


async def test_two_warm_ups_on_demand_at_once_conflict():
    async with pool(only(step_s=1.0), pool_size=2) as s:
        await s.clock.advance(2.0)
        first = asyncio.create_task(s.supervisor.warm())
        await settle()
        with pytest.raises(Conflict):
            await s.supervisor.warm()
        await s.clock.advance(1.0)
        assert (await first).workers_warm == 2


async def test_warm_progress_tells_each_step_of_each_worker_and_waits_for_more():
    async with pool(pool_size=2) as s:
        seen = (await s.supervisor.warm_progress(0, 0))[-1].sequence
        waiting = asyncio.create_task(s.supervisor.warm_progress(seen, 10.0))
        await settle()
        assert not waiting.done()
        await s.supervisor.warm("sequential")
        await waiting
        told = await s.supervisor.warm_progress(seen, 0)
        assert [moment.kind for moment in told] == ["begin", "stage", "step", "stage", "step", "end"]
        assert len({moment.worker_id for moment in told if moment.kind == "step"}) == 2


async def test_warming_a_pool_without_workers_is_safe():
    async with pool(pool_size=2, lazy=True) as s:
        report = await s.supervisor.warm()
        assert (report.runs, report.success_rate, report.workers) == (0, 1.0, ())


async def test_the_report_of_all_starts_counts_replacements_too():
    async with pool(pool_size=2) as s:
        s.runtime.worker(ordinal=0).die()
        await settle()
        report = await s.supervisor.warmup_report()
        assert (len(report.workers), report.workers_warm) == (3, 3)
