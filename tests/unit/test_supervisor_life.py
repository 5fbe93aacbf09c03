"""Starts, members, deaths and the end of a pool, and what the supervisor reports meanwhile."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from dspool.errors import (
    PoolClosed,
    StoreFailed,
)
from dspool.runtime.lifecycle import SupervisorActor
from dspool.supervisor import Supervisor
from dspool.telemetry import events as telemetry
from dspool.testing.doubles import FakeStore, FakeWorker, settle
from tests.unit.supervision import Scene, deploying, only, pool

# --- life, membership, death ---


async def test_it_starts_its_workers_warm_and_publishes_them():
    async with pool(pool_size=3, warmup={"steps": [{"step": "import_modules", "modules": ["json"]}]}) as s:
        assert [w.ordinal for w in s.runtime.workers] == [0, 1, 2]
        assert all(w.steps == ["import_modules", "load_programs"] for w in s.runtime.workers)
        assert all(w.active == {"qa": 1} for w in s.runtime.workers)
        membership = await s.supervisor.watch(0)
        assert {m.worker_id for m in membership.workers} == {w.worker_id for w in s.runtime.workers}
        assert membership.programs == {"qa": 1}
        assert (await s.supervisor.wait_ready()).state == "ready"


async def test_workers_are_warmed_in_parallel():
    async with pool(only(step_s=1.0), pool_size=4) as s:
        assert await s.members() == []
        await s.clock.advance(1.0)
        assert len(await s.members()) == 4


async def test_a_watcher_hears_of_the_next_membership_and_not_before():
    async with pool(pool_size=2) as s:
        known = await s.supervisor.watch(0)
        waiting = asyncio.create_task(s.supervisor.watch(known.version, 100.0))
        await s.clock.advance(50.0)
        assert not waiting.done()
        s.runtime.worker(ordinal=0).die()
        assert (await waiting).version > known.version


async def test_a_watcher_gets_the_old_membership_when_its_time_is_over():
    async with pool(pool_size=1) as s:
        known = await s.supervisor.watch(0)
        waiting = asyncio.create_task(s.supervisor.watch(known.version, 10.0))
        await s.clock.advance(10.0)
        assert await waiting == known


async def test_a_watcher_that_knows_a_later_version_is_not_left_waiting():
    async with pool(pool_size=1) as s:
        assert (await s.supervisor.watch(10**6, 10.0)).version > 10**6


async def test_a_dead_worker_is_replaced_by_the_spare_with_no_time_passing():
    async with pool(pool_size=2, spares=1) as s:
        s.store.down = None
        dead = s.runtime.worker(ordinal=0)
        spare = s.runtime.worker(ordinal=2)
        dead.die()
        await settle()
        assert await s.members() == [s.runtime.worker(ordinal=1).worker_id, spare.worker_id]
        assert s.store.dead == [dead.worker_id]
        assert (await s.status()).spares == 1


async def test_the_new_membership_does_not_wait_for_a_store_that_does_not_answer():
    async with pool(pool_size=2, spares=1) as s:
        dead = s.runtime.worker(ordinal=0)
        s.store.down = StoreFailed("no store")
        dead.die()
        await settle()
        assert len(await s.members()) == 2
        assert s.store.dead == []
        s.store.down = None
        await s.clock.advance(5.0)
        assert s.store.dead == [dead.worker_id], "the leases are freed as soon as the store is back"


async def test_without_a_spare_a_dead_worker_is_replaced_after_a_warm_start():
    async with pool(only(start_s=0.5, step_s=0.2), pool_size=2) as s:
        await s.clock.advance(1.0)
        s.runtime.worker(ordinal=0).die()
        await s.clock.advance(0.6)
        assert len(await s.members()) == 1
        await s.clock.advance(0.2)
        assert len(await s.members()) == 2


async def test_shutdown_drains_every_worker_and_returns_when_all_are_gone():
    async with pool(only(drain_s=3.0), pool_size=2, spares=1) as s:
        closing = asyncio.create_task(s.supervisor.shutdown(30.0))
        await s.clock.advance(2.0)
        assert (await s.supervisor.watch(0, 0)).closed
        assert not closing.done()
        assert s.runtime.alive
        await s.clock.advance(2.0)
        await closing
        assert s.runtime.alive == []
        assert not any(w.killed for w in s.runtime.workers)
        with pytest.raises(PoolClosed):
            await s.supervisor.resize(2)


async def test_shutdown_kills_what_does_not_end_in_time():
    async with pool(only(drain_fault="hang"), pool_size=2) as s:
        closing = asyncio.create_task(s.supervisor.shutdown(5.0))
        await s.clock.advance(5.1)
        await closing
        assert s.runtime.alive == []
        assert all(w.killed for w in s.runtime.workers)


async def test_shutdown_returns_even_if_a_kill_never_shows():
    async with pool(only(drain_fault="hang", immortal=True), pool_size=1) as s:
        closing = asyncio.create_task(s.supervisor.shutdown(5.0))
        await s.clock.advance(20.0)
        await closing


async def test_start_says_that_the_store_is_down_and_starts_nothing():
    store = FakeStore()
    store.down = StoreFailed("no store")
    scene = Scene(store=store, pool_size=2)
    with pytest.raises(StoreFailed):
        await scene.supervisor.start()
    assert scene.runtime.workers == []


async def test_a_start_that_failed_half_way_can_be_tried_again_and_kills_nobody():
    async with pool(pool_size=2) as s:
        await s.supervisor.detach()
        s.supervisor = s.new_supervisor()
        workers_alive = s.store.workers_alive

        async def failing(pool, workers):
            raise StoreFailed("no store")

        s.store.workers_alive = failing
        with pytest.raises(StoreFailed):
            await s.supervisor.start()
        s.store.workers_alive = workers_alive
        await s.supervisor.start()
        await settle()
        assert len(await s.members()) == 2
        assert len(s.runtime.workers) == 2
        assert not any(w.killed for w in s.runtime.workers)


async def test_of_two_running_workers_with_one_ordinal_the_one_that_was_warm_stays():
    async with pool(pool_size=1) as s:
        await s.supervisor.detach()
        warm = s.runtime.worker(ordinal=0)
        twin = FakeWorker("default-w0-aaaaaa", 0, s.clock)
        s.runtime.workers.insert(0, twin)
        s.supervisor = s.new_supervisor()
        await s.supervisor.start()
        await settle()
        assert twin.killed
        assert await s.members() == [warm.worker_id]
        assert twin.worker_id in s.store.dead


async def test_not_being_ready_in_time_says_why():
    async with pool(only(step_faults={0: "raise"}), pool_size=1) as s:
        waiting = asyncio.create_task(s.supervisor.wait_ready(5.0))
        await s.clock.advance(5.0)
        with pytest.raises(TimeoutError, match=r"warm-up step 0 \(load_programs\) failed: scripted fault"):
            await waiting


# --- observation and expiry ---


async def test_expired_sessions_are_forgotten_by_the_workers_that_held_them():
    async with pool(pool_size=2, session_ttl_s=100.0) as s:
        holder = s.runtime.worker(ordinal=1)
        s.store.expiring = [("a", holder.worker_id), ("b", None), ("c", "long gone")]
        await s.clock.advance(10.0)
        assert holder.forgotten == ["a"]


async def test_the_status_is_reported_every_second_and_a_broken_reporter_hurts_nobody():
    told = []

    async def report(status):
        told.append(status)
        raise RuntimeError("no metrics actor")

    async with pool(report=report, pool_size=2) as s:
        await s.clock.advance(5.0)
        assert len(told) >= 5
        assert told[-1].actual == 2


async def test_every_event_it_emits_is_in_the_table():
    seen = []

    def handler(name, measurements, metadata):
        seen.append(name)
        assert telemetry.undeclared(name, measurements, metadata) == set()
        assert metadata["pool"] == "default"

    telemetry.attach(handler)
    try:
        async with pool(pool_size=2, spares=1, session_ttl_s=100.0) as s:
            s.store.expiring = [("a", None)]
            s.runtime.worker(ordinal=0).die()
            await s.clock.advance(11.0)
            await s.supervisor.resize(3)
            await deploying(s)
            await s.supervisor.warm()
            closing = asyncio.create_task(s.supervisor.shutdown(5.0))
            await s.clock.advance(6.0)
            await closing
    finally:
        telemetry.detach(handler)
    assert set(seen) >= {
        "pool.init",
        "pool.terminate",
        "pool.warmup",
        "pool.resize",
        "pool.decision",
        "program.canary",
        "pool.error",
        "pool.recovery",
        "worker.init",
        "worker.terminate",
        "worker.health_check",
        "session.expired",
        "program.deployed",
    }


def test_every_call_of_a_supervisors_actor_waits_for_its_start():
    public = {
        name
        for name, _ in inspect.getmembers(Supervisor, inspect.iscoroutinefunction)
        if not name.startswith("_") and name not in ("start", "detach")
    }
    assert public <= vars(SupervisorActor).keys()
