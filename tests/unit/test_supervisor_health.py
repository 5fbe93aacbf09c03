"""Workers that do not answer their health check."""

from __future__ import annotations

import asyncio

from dspool.testing.doubles import settle
from tests.unit.supervision import pool


async def test_a_worker_whose_event_loop_is_blocked_is_killed_and_replaced():
    async with pool(pool_size=2, max_health_failures=3) as s:
        stuck = s.runtime.worker(slot=0)
        stuck.healthy = False
        await s.clock.advance(5 * 2 + 2.1)
        assert stuck.worker_id in await s.members()
        await s.clock.advance(5.0)
        assert stuck.worker_id not in await s.members()
        assert stuck.killed
        assert len(await s.members()) == 2
        assert stuck.worker_id in s.store.dead


async def test_a_report_of_a_client_about_an_unreachable_worker_is_enough():
    async with pool(pool_size=2, spares=1) as s:
        lost = s.runtime.worker(slot=0)
        lost.unreachable = True
        await s.supervisor.report_dead(lost.worker_id, "connection reset")
        await settle()
        assert lost.worker_id not in await s.members()
        assert len(await s.members()) == 2


async def test_a_report_about_a_healthy_worker_does_not_kill_it():
    async with pool(pool_size=2) as s:
        fine = s.runtime.worker(slot=0)
        await s.supervisor.report_dead(fine.worker_id, "connection reset")
        await s.supervisor.report_dead("nobody", "connection reset")
        await settle()
        assert fine.worker_id in await s.members()


async def test_status_asks_the_workers_and_a_stuck_one_does_not_hold_it_up():
    async with pool(pool_size=2) as s:
        s.runtime.worker(slot=0).operations = 42
        s.runtime.worker(slot=1).healthy = False
        asking = asyncio.create_task(s.supervisor.status())
        await s.clock.advance(0.5)
        status = await asking
        assert [w.operations for w in status.workers] == [42, 0]
        assert [w.pid for w in status.workers] == [4000, 4001]


async def test_asking_for_the_status_again_and_again_is_no_health_check():
    async with pool(pool_size=1, max_health_failures=1, health_check_interval_s=1000.0) as s:
        busy_now = s.runtime.worker(slot=0)
        busy_now.healthy = False
        for _ in range(5):
            asking = asyncio.create_task(s.supervisor.status())
            await s.clock.advance(1.0)
            await asking
        assert await s.members() == [busy_now.worker_id]
