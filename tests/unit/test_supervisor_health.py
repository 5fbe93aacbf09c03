"""Workers that do not answer their health check."""

from __future__ import annotations

import asyncio

import pytest

from dspool.testing.doubles import settle
from tests.unit.supervision import only, pool


async def test_a_worker_whose_event_loop_is_blocked_is_killed_and_replaced():
    async with pool(pool_size=2, max_health_failures=3) as s:
        stuck = s.runtime.worker(ordinal=0)
        stuck.healthy = False
        await s.clock.advance(5 * 2 + 2.1)
        assert stuck.worker_id in await s.members()
        await s.clock.advance(5.0)
        assert stuck.worker_id not in await s.members()
        assert stuck.killed
        assert len(await s.members()) == 2
        assert stuck.worker_id in s.store.dead


@pytest.mark.parametrize("hangs_at", [0.0, 0.001, 2.5, 4.999])
@pytest.mark.parametrize("drains", [False, True])
async def test_clients_hear_of_a_worker_that_hangs_within_the_time_that_the_configuration_gives_it(
    hangs_at, drains
):
    """docs/promises.md: the intervals between the checks that it may miss, and the time of the last one."""
    async with pool(only(drain_s=100.0), pool_size=2, max_pool_size=2) as s:
        config = s.config
        await s.clock.advance(2 * config.health_check_interval_s + hangs_at)
        stuck = s.runtime.worker(ordinal=0)
        if drains:
            draining = asyncio.create_task(s.supervisor.drain(stuck.worker_id))
            await settle()
        stuck.healthy = False
        known = await s.supervisor.watch(0)
        assert known.lives(stuck.worker_id)
        bound_s = config.max_health_failures * config.health_check_interval_s + config.health_check_timeout_s
        assert bound_s == 17.0

        async def told():
            version = known.version
            while (membership := await s.supervisor.watch(version)).lives(stuck.worker_id):
                version = membership.version

        telling = asyncio.create_task(told())
        await s.clock.advance(bound_s)
        assert telling.done()
        if drains:
            await draining


async def test_a_report_of_a_client_about_an_unreachable_worker_is_enough():
    async with pool(pool_size=2, spares=1) as s:
        lost = s.runtime.worker(ordinal=0)
        lost.unreachable = True
        await s.supervisor.report_dead(lost.worker_id, "connection reset")
        await settle()
        assert lost.worker_id not in await s.members()
        assert len(await s.members()) == 2


async def test_a_report_about_a_healthy_worker_does_not_kill_it():
    async with pool(pool_size=2) as s:
        fine = s.runtime.worker(ordinal=0)
        await s.supervisor.report_dead(fine.worker_id, "connection reset")
        await s.supervisor.report_dead("nobody", "connection reset")
        await settle()
        assert fine.worker_id in await s.members()


async def test_status_asks_the_workers_and_a_stuck_one_does_not_hold_it_up():
    async with pool(pool_size=2) as s:
        s.runtime.worker(ordinal=0).operations = 42
        s.runtime.worker(ordinal=1).healthy = False
        asking = asyncio.create_task(s.supervisor.status())
        await s.clock.advance(0.5)
        status = await asking
        assert [w.operations for w in status.workers] == [42, 0]
        assert [w.pid for w in status.workers] == [4000, 4001]


async def test_status_does_not_wait_for_a_worker_that_only_starts():
    """As after the loss of a machine, when everybody wants to know how things stand."""
    async with pool(only(ordinal=1, start_fault="hang", healthy=False), pool_size=2) as s:
        asking = asyncio.create_task(s.supervisor.status())
        await settle()
        assert [w.state for w in asking.result().workers] == ["ready", "starting"]


async def test_asking_for_the_status_again_and_again_is_no_health_check():
    async with pool(pool_size=1, max_health_failures=1, health_check_interval_s=1000.0) as s:
        busy_now = s.runtime.worker(ordinal=0)
        busy_now.healthy = False
        for _ in range(5):
            asking = asyncio.create_task(s.supervisor.status())
            await s.clock.advance(1.0)
            await asking
        assert await s.members() == [busy_now.worker_id]
