"""The death of a supervisor, and what its successor takes over."""

from __future__ import annotations

import asyncio

from dspool.errors import (
    StoreFailed,
)
from dspool.messages import Membership
from dspool.testing.doubles import settle
from tests.unit.supervision import busy, only, pool


async def test_a_successor_adopts_every_worker_and_starts_no_duplicate():
    async with pool(pool_size=2, spares=1) as s:
        await s.supervisor.resize(4)
        await s.supervisor.pause()
        await s.clock.advance(1.0)
        before = await s.supervisor.watch(0)
        processes = list(s.runtime.workers)
        await s.successor()
        after = await s.supervisor.watch(before.version)
        assert after.version > before.version
        assert after.workers == before.workers
        assert after.paused
        assert s.runtime.workers == processes
        assert s.store.alive[-1] == [w.worker_id for w in processes]
        assert (await s.status()).desired == 4
        assert (await s.status()).spares == 1
        assert [d.target for d in await s.supervisor.decisions(1)] == [4]


async def test_a_successor_leaves_the_current_versions_on_the_workers():
    async with pool(pool_size=2) as s:
        await s.successor()
        await settle()
        assert [worker.loaded["qa"] for worker in s.runtime.alive] == [{1}, {1}]


async def test_at_a_new_start_the_configured_size_holds_and_no_pause():
    async with pool(pool_size=2) as s:
        await s.supervisor.resize(4)
        await s.supervisor.pause()
        await s.clock.advance(1.0)
        for worker in list(s.runtime.alive):
            worker.die()
        s.life = "another start"
        await s.successor()
        assert (await s.status()).desired == 2
        assert not (await s.supervisor.watch(0)).paused


async def test_a_successor_knows_the_decisions_up_to_the_last_change_with_their_reasons_and_numbers():
    async with pool(enable_optimizer=True, pool_size=2, max_pool_size=4) as s:
        await s.supervisor.observe(busy(age_s=None))
        await s.supervisor.observe(busy(age_s=None))
        await s.supervisor.observe(busy())
        await s.clock.advance(0.1)
        before = await s.supervisor.decisions(10)
        assert [(d.action, bool(d.numbers), d.times) for d in before] == [
            ("grow", True, 1),
            ("hold", False, 2),
        ]
        await s.successor()
        assert await s.supervisor.decisions(10) == before


async def test_a_successor_keeps_the_overflow_workers_until_sizing_lets_them_go():
    sizes = {"pool_size": 1, "max_pool_size": 1, "max_overflow": 1, "enable_optimizer": True}
    async with pool(**sizes) as s:
        await s.supervisor.observe(busy(queued=400))
        await s.clock.advance(1.0)
        before = await s.members()
        assert len(before) == 2
        await s.successor()
        assert await s.members() == before
        assert not any(w.state == "draining" for w in s.runtime.alive)
        assert [w.overflow for w in (await s.status()).workers] == [False, True]


async def test_a_successor_without_sizing_keeps_no_overflow_because_nobody_would_let_it_go():
    sizes = {"pool_size": 1, "max_pool_size": 1, "max_overflow": 1}
    async with pool(**sizes, enable_optimizer=True) as s:
        await s.supervisor.observe(busy(queued=400))
        await s.clock.advance(1.0)
        s.config = s.config.override(enable_optimizer=False)
        await s.successor()
        await s.clock.advance(1.0)
        assert len(await s.members()) == 1


async def test_every_version_a_successor_publishes_is_above_all_before():
    async with pool(pool_size=2) as s:
        seen = []
        for _ in range(4):
            s.runtime.alive[0].die()
            await s.clock.advance(1.0)
            seen.append((await s.supervisor.watch(0)).version)
            await s.successor()
            seen.append((await s.supervisor.watch(0)).version)
        assert seen == sorted(set(seen))


async def test_a_watcher_gets_nothing_before_the_workers_are_adopted():
    async with pool(pool_size=2) as s:
        known = await s.supervisor.watch(0)
        await s.supervisor.detach()
        s.supervisor = s.new_supervisor()
        early = asyncio.create_task(s.supervisor.watch(known.version, 1.0))
        await s.clock.advance(1.0)
        assert await early == Membership(version=known.version), "nothing new is known, and nobody was lost"
        asking = asyncio.create_task(s.supervisor.watch(0, 5.0))
        await settle()
        assert not asking.done()
        await s.supervisor.start()
        assert len((await asking).workers) == 2


async def test_a_worker_that_died_with_the_supervisor_is_replaced_and_its_leases_are_freed():
    async with pool(pool_size=2) as s:
        await s.supervisor.detach()
        dead = s.runtime.worker(ordinal=0)
        dead.die()
        s.supervisor = s.new_supervisor()
        await s.supervisor.start()
        await settle()
        assert dead.worker_id not in s.store.alive[-1]
        assert len(await s.members()) == 2


async def test_a_running_worker_that_does_not_answer_is_killed_and_replaced():
    async with pool(pool_size=2) as s:
        await s.supervisor.detach()
        stuck = s.runtime.worker(ordinal=0)
        stuck.healthy = False
        s.supervisor = s.new_supervisor()
        starting = asyncio.create_task(s.supervisor.start())
        await s.clock.advance(2.0)
        await starting
        await settle()
        assert stuck.killed
        assert len(await s.members()) == 2


async def test_a_worker_that_was_declared_dead_is_not_taken_back_by_a_successor_however_well_it_is_now():
    async with pool(only(ordinal=0, immortal=True), pool_size=2) as s:
        frozen = s.runtime.worker(ordinal=0)
        frozen.healthy = False
        await s.clock.advance(17.5)
        assert frozen.killed
        assert frozen.alive, "nobody could reach it"
        frozen.healthy, frozen.immortal = True, False
        await s.successor()
        assert not frozen.alive
        assert frozen.worker_id not in s.store.alive[-1]
        assert not (await s.supervisor.watch(0)).lives(frozen.worker_id)


async def given_up_by_a_successor(s):
    """The worker of ordinal 0, which does not answer a new supervisor; the order to end is lost."""
    worker = s.runtime.worker(ordinal=0)
    worker.healthy = False
    starting = asyncio.create_task(s.successor())
    await s.clock.advance(3.0)
    await starting
    assert worker.killed
    assert worker.alive
    return worker


async def test_a_worker_that_a_successor_gives_up_gets_no_lease_though_it_lives_on():
    async with pool(only(ordinal=0, immortal=True), pool_size=2) as s:
        worker = await given_up_by_a_successor(s)
        assert worker.worker_id in s.store.dead


async def test_no_later_successor_takes_back_who_was_given_up_however_well_it_is_now():
    async with pool(only(ordinal=0, immortal=True), pool_size=2) as s:
        worker = await given_up_by_a_successor(s)
        worker.healthy, worker.immortal = True, False
        await s.successor()
        assert not worker.alive
        assert worker.worker_id not in s.store.alive[-1]
        assert not (await s.supervisor.watch(0)).lives(worker.worker_id)


async def test_a_client_learns_from_a_successor_that_a_worker_died_between_the_two():
    async with pool(pool_size=2) as s:
        await s.supervisor.detach()
        dead, other = s.runtime.worker(ordinal=0), s.runtime.worker(ordinal=1)
        dead.die()
        s.supervisor = s.new_supervisor()
        await s.supervisor.start()
        await settle()
        membership = await s.supervisor.watch(0)
        assert (membership.lives(dead.worker_id), membership.lives(other.worker_id)) == (False, True)


async def test_a_worker_whose_promotion_was_not_written_down_keeps_its_clients_while_it_is_warmed_again():
    async with pool(pool_size=1) as s:
        serving = s.runtime.worker(ordinal=0)
        s.store.records["default", "roster"] = {}
        serving.step_s = 1.0
        await s.successor()
        membership = await s.supervisor.watch(0)
        assert (membership.workers, membership.finishing) == ((), (serving.worker_id,))
        await s.clock.advance(5.0)
        assert await s.members() == [serving.worker_id]


async def test_a_worker_that_was_in_warm_up_when_the_supervisor_died_is_warmed_again_before_it_serves():
    async with pool(only(ordinal=1, step_s=5.0), pool_size=2) as s:
        await s.clock.advance(1.0)
        half = s.runtime.worker(ordinal=1)
        await s.successor()
        assert await s.members() == [s.runtime.worker(ordinal=0).worker_id]
        await s.clock.advance(6.0)
        assert half.worker_id in await s.members()
        assert len(s.runtime.workers) == 2


async def test_a_worker_that_was_draining_when_the_supervisor_died_goes_on_draining():
    async with pool(only(drain_s=5.0), pool_size=2) as s:
        going = s.runtime.worker(ordinal=0)
        task = asyncio.create_task(s.supervisor.drain(going.worker_id))
        await s.clock.advance(1.0)
        task.cancel()
        await s.successor()
        assert going.worker_id not in await s.members()
        await s.clock.advance(6.0)
        assert not going.alive
        assert len(await s.members()) == 2


async def test_a_worker_started_by_the_last_order_of_a_dead_supervisor_is_removed():
    async with pool(pool_size=1) as s:
        orphan = await s.runtime.start_worker("default-w7-orphan", 7)
        await s.clock.advance(31.0)
        assert orphan.killed
        assert orphan.worker_id in s.store.dead
        assert len(s.runtime.alive) == 1


async def test_a_worker_that_is_started_while_orphans_are_looked_for_is_none():
    async with pool(pool_size=1) as s:

        async def running_workers():
            await s.supervisor.resize(2)
            await settle()
            return s.runtime.alive

        s.runtime.running_workers = running_workers
        await s.clock.advance(31.0)
        assert not any(w.killed for w in s.runtime.workers)
        assert len(await s.members()) == 2


async def test_a_worker_that_says_it_drains_takes_no_traffic_though_it_was_written_down_as_ready():
    async with pool(only(drain_s=5.0), pool_size=2) as s:
        await s.clock.advance(1.0)
        going = s.runtime.worker(ordinal=0)
        going.state = "draining"
        await s.successor()
        assert going.worker_id not in await s.members()
        assert going.alive


async def test_records_that_could_not_be_written_are_written_later():
    async with pool(pool_size=2) as s:
        s.store.down = StoreFailed("no store")
        await s.supervisor.resize(4)
        await s.clock.advance(1.0)
        s.store.down = None
        await s.clock.advance(10.0)
        assert s.store.records["default", "desired"] == 4
