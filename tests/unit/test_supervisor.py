"""The supervisor against workers, a runtime and a store in memory. Time passes only when told."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager

import pytest

from dspool import telemetry
from dspool.commands import Deployment, Membership, VersionNumbers
from dspool.config import PoolConfig
from dspool.core.sizing import Observed, Window
from dspool.errors import (
    Conflict,
    InvalidRequest,
    PoolClosed,
    PoolNotReady,
    ProgramError,
    StoreFailed,
    UnknownProgram,
    UnknownWorker,
)
from dspool.supervisor import Supervisor
from dspool.testing.doubles import FakeClock, FakeRuntime, FakeStore, FakeWorker, settle

SPEC = {"signature": "question -> answer", "module": "Predict"}


class Scene:
    def __init__(self, script=None, store=None, observe=None, report=None, **config):
        self.clock = FakeClock()
        self.runtime = FakeRuntime(self.clock, script)
        self.store = store or FakeStore()
        self.config = PoolConfig(**{"programs": {"qa": {"spec": SPEC}}, **config})
        self._hex = itertools.count()
        self._callbacks = {"observe": observe, "report": report}
        self.supervisor = self.new_supervisor()

    def new_supervisor(self):
        return Supervisor(
            self.config,
            self.runtime,
            self.store,
            random=lambda: 0.5,
            new_hex=lambda: f"{next(self._hex):06x}",
            **self._callbacks,
            **self.clock.as_arguments(),
        )

    async def successor(self):
        """The supervisor dies without a word; the next one starts."""
        old = self.supervisor
        for loop in old._loops:
            loop.cancel()
        await old._crew.close()
        self.supervisor = self.new_supervisor()
        await self.supervisor.start()
        await settle()

    async def members(self):
        return [m.worker_id for m in (await self.supervisor.watch(0, 0)).workers]

    async def status(self):
        return await self.supervisor.status(fresh=False)

    async def end(self):
        await self.supervisor.detach()


@asynccontextmanager
async def pool(script=None, traffic=None, **arguments):
    scene = Scene(script, **arguments)
    await scene.supervisor.start()
    await settle()
    scene.traffic = asyncio.create_task(traffic.run(scene)) if traffic else None
    try:
        yield scene
    finally:
        if scene.traffic:
            scene.traffic.cancel()
        await scene.end()


def only(**faults):
    """Faults for the workers of one slot number, or, without `slot`, of every worker."""
    slot = faults.pop("slot", None)

    def script(worker):
        if slot is None or worker.slot == slot:
            for name, value in faults.items():
                setattr(worker, name, value)

    return script


# --- life, membership, death ---------------------------------------------------------------------------


async def test_it_starts_its_workers_warm_and_publishes_them():
    async with pool(pool_size=3, warmup={"steps": [{"step": "import_modules", "modules": ["json"]}]}) as s:
        assert [w.slot for w in s.runtime.workers] == [0, 1, 2]
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
        s.runtime.worker(slot=0).die()
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
        dead = s.runtime.worker(slot=0)
        spare = s.runtime.worker(slot=2)
        dead.die()
        await settle()
        assert await s.members() == [s.runtime.worker(slot=1).worker_id, spare.worker_id]
        assert s.store.dead == [dead.worker_id]
        assert (await s.status()).spares == 1


async def test_the_new_membership_does_not_wait_for_a_store_that_does_not_answer():
    async with pool(pool_size=2, spares=1) as s:
        dead = s.runtime.worker(slot=0)
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
        s.runtime.worker(slot=0).die()
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


async def test_of_two_running_workers_with_one_slot_number_the_one_that_was_warm_stays():
    async with pool(pool_size=1) as s:
        await s.supervisor.detach()
        warm = s.runtime.worker(slot=0)
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


# --- faults of warm-up ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("raise", "scripted fault: cannot run warm-up step load_programs"),
        ("hang", "not done within 4 s"),
        ("die", "died while it should run warm-up step load_programs"),
    ],
)
async def test_a_warm_up_step_that_fails_keeps_its_worker_out_and_the_pool_serving(fault, why):
    script = only(slot=1, step_faults={0: fault})
    async with pool(script, pool_size=2, warmup={"worker_deadline_s": 4.0}) as s:
        await s.clock.advance(4.5)
        assert await s.members() == [s.runtime.worker(slot=0).worker_id]
        assert why in (await s.status()).reason
        s.runtime.script = None
        await s.clock.advance(10.0)
        assert len(await s.members()) == 2, "it was tried again once the fault was gone"


async def test_one_slow_step_has_its_own_deadline():
    steps = [{"step": "import_modules", "modules": ["json"], "timeout_s": 1.0}]
    async with pool(only(slot=1, step_s=3.0), pool_size=2, warmup={"steps": steps}) as s:
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
    async with pool(only(slot=0, start_fault="die"), pool_size=2) as s:
        assert len(await s.members()) == 1
        s.runtime.script = None
        await s.clock.advance(1.0)
        assert len(await s.members()) == 2


async def test_a_start_that_comes_through_after_it_was_given_up_is_killed():
    gate = asyncio.Event()
    scene = Scene(pool_size=1, init_timeout_s=10.0, warmup={"worker_deadline_s": 10.0})
    start = scene.runtime.start_worker

    async def slow_start(worker_id, slot):
        if not gate.is_set():
            await gate.wait()
        return await start(worker_id, slot)

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
        survivor = s.runtime.worker(slot=1)
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


# --- health --------------------------------------------------------------------------------------------


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


# --- size ----------------------------------------------------------------------------------------------


async def test_a_size_outside_the_bounds_is_refused_with_the_bounds():
    async with pool(pool_size=2, max_pool_size=4) as s:
        with pytest.raises(InvalidRequest, match="between min_pool_size 1 and max_pool_size 4, got 9"):
            await s.supervisor.resize(9)
        assert (await s.status()).desired == 2


async def test_of_two_resizes_at_once_the_later_one_holds_and_both_are_on_record():
    async with pool(pool_size=2) as s:
        assert await asyncio.gather(s.supervisor.resize(6), s.supervisor.resize(3)) == [6, 3]
        await settle()
        assert len(await s.members()) == 3
        await s.clock.advance(1.0)
        assert len(s.runtime.alive) == 3
        assert [(d.previous, d.target, d.source) for d in await s.supervisor.decisions(10)] == [
            (6, 3, "manual"),
            (2, 6, "manual"),
        ]


async def test_growing_while_draining_ends_at_the_size_asked_for():
    async with pool(only(drain_s=10.0), pool_size=3) as s:
        await s.supervisor.resize(1)
        await s.clock.advance(1.0)
        assert len(await s.members()) == 1
        await s.supervisor.resize(3)
        await settle()
        assert len(await s.members()) == 3
        assert len(s.runtime.alive) == 5, "those that drain are left in peace"
        await s.clock.advance(10.0)
        assert len(s.runtime.alive) == 3
        assert not any(w.killed for w in s.runtime.workers)


async def test_draining_one_worker_returns_when_it_is_gone_and_a_replacement_serves():
    async with pool(only(drain_s=2.0), pool_size=2) as s:
        old = s.runtime.worker(slot=0)
        draining = asyncio.create_task(s.supervisor.drain(old.worker_id))
        await s.clock.advance(1.0)
        assert not draining.done()
        assert len(await s.members()) == 2
        await s.clock.advance(1.0)
        await draining
        assert not old.alive
        assert not old.killed


async def test_a_worker_killed_while_it_drains_ends_the_drain():
    async with pool(only(drain_fault="hang"), pool_size=2) as s:
        old = s.runtime.worker(slot=0)
        draining = asyncio.create_task(s.supervisor.drain(old.worker_id))
        await s.clock.advance(1.0)
        old.die()
        await draining
        assert len(await s.members()) == 2


async def test_restart_replaces_warm_first():
    async with pool(only(start_s=1.0), pool_size=2) as s:
        await s.clock.advance(1.0)
        old = s.runtime.worker(slot=0)
        restarting = asyncio.create_task(s.supervisor.restart(old.worker_id))
        await s.clock.advance(0.5)
        assert old.worker_id in await s.members()
        await s.clock.advance(0.6)
        await restarting
        assert len(await s.members()) == 2
        assert not old.alive


async def test_what_a_worker_has_when_warm_is_known_before_its_first_regular_health_check():
    async with pool(pool_size=1, recycle={"max_memory_mb": 150.0}) as s:
        old = s.runtime.worker(slot=0)
        old.rss_mb = 200.0  # grown since: recycling it helps
        await s.clock.advance(s.config.health_check_interval_s + 1)
        assert not old.alive
        assert len(await s.members()) == 1


async def test_a_memory_limit_that_no_worker_keeps_does_not_recycle_for_ever():
    async with pool(only(rss_mb=200.0), pool_size=2, recycle={"max_memory_mb": 150.0}) as s:
        await s.clock.advance(600.0)
        assert len(s.runtime.workers) == 2
        await s.successor()
        await s.clock.advance(600.0)
        assert len(s.runtime.workers) == 4, "adopted ones are exchanged once"


async def test_there_is_no_such_worker():
    async with pool(pool_size=1) as s:
        for request in (s.supervisor.drain, s.supervisor.restart):
            with pytest.raises(UnknownWorker, match="nobody"):
                await request("nobody")


async def test_pause_is_published_and_resume_takes_it_back():
    async with pool(pool_size=1) as s:
        await s.supervisor.pause()
        assert (await s.supervisor.watch(0)).paused
        assert (await s.status()).state == "paused"
        await s.supervisor.resume()
        assert not (await s.supervisor.watch(0)).paused


async def test_a_lazy_pool_starts_when_somebody_wants_something():
    async with pool(pool_size=2, lazy=True) as s:
        await s.clock.advance(100.0)
        assert s.runtime.workers == []
        await s.supervisor.wake()
        await settle()
        assert len(await s.members()) == 2


# --- sizing --------------------------------------------------------------------------------------------


def busy(**numbers):
    """Both of two workers full, and operations waiting for a slot."""
    window = Window(span_s=1.0, arrivals=60, finished=16, busy_slot_s=16.0, run_s=16.0, peak_demand=56)
    seen = {"age_s": 0.1, "slots_per_worker": 8, "desired": 0, "actual": 0, "short": window, "long": window}
    return Observed(**{**seen, "running": 16, "queued": 40, "oldest_wait_s": 0.5, **numbers})


async def test_the_pool_grows_when_operations_wait_and_says_why():
    async def observe():
        return busy()

    sizes = {"pool_size": 2, "max_pool_size": 4, "optimization_interval_s": 1.0}
    async with pool(observe=observe, enable_optimizer=True, **sizes) as s:
        await s.clock.advance(1.0)
        assert len(await s.members()) > 2
        last = (await s.supervisor.decisions(1))[0]
        assert (last.previous, last.action, last.source) == (2, "grow", "sizing")
        assert last.reason
        assert last.numbers


async def test_a_size_set_by_hand_is_not_shrunk_before_the_cooldown():
    idle = Window(span_s=60.0)
    async with pool(enable_optimizer=True, pool_size=2, shrink_cooldown_s=30.0) as s:
        quiet = busy(running=0, queued=0, oldest_wait_s=0.0, short=idle, long=idle)
        for _ in range(120):
            await s.supervisor.observe(quiet)
            await s.clock.advance(1.0)
        assert (await s.status()).desired == 1
        await s.supervisor.resize(3)
        for _ in range(28):
            await s.supervisor.observe(quiet)
            assert (await s.status()).desired == 3
            await s.clock.advance(1.0)
        await s.clock.advance(5.0)
        await s.supervisor.observe(quiet)
        assert (await s.status()).desired == 1


async def test_sizing_is_off_unless_it_is_switched_on():
    async def observe():
        return busy()

    async with pool(observe=observe, pool_size=2) as s:
        await s.clock.advance(5.0)
        assert await s.supervisor.decisions(10) == []
        await s.supervisor.enable_optimizer(True)
        await s.clock.advance(1.0)
        assert await s.supervisor.decisions(10)


@pytest.mark.parametrize("what", ["nothing", "raise", "hang"])
async def test_what_cannot_be_observed_changes_nothing_and_ends_no_loop(what):
    seen = []

    async def observe():
        seen.append(what)
        if what == "raise":
            raise RuntimeError("no metrics")
        if what == "hang":
            await asyncio.Event().wait()
        return

    async with pool(observe=observe, enable_optimizer=True, pool_size=2) as s:
        await s.clock.advance(10.0)
        assert len(seen) >= 3
        assert (await s.status()).desired == 2


async def test_a_hold_that_differs_only_in_its_numbers_is_no_new_record():
    async with pool(enable_optimizer=True, pool_size=2) as s:
        for age in range(50):
            await s.supervisor.observe(busy(age_s=100.0 + age / 7))
        (held,) = await s.supervisor.decisions(10)
        assert (held.times, held.reason) == (50, "data are 107.0 s old")


async def test_each_decision_is_an_event_with_its_numbers_and_a_repeated_one_is_told_once():
    told = []
    handler = telemetry.attach(lambda name, numbers, about: told.append((numbers, about)), ["pool.decision"])
    try:
        async with pool(enable_optimizer=True, pool_size=2, max_pool_size=4) as s:
            await s.supervisor.observe(busy())
            for _ in range(5):
                await s.supervisor.observe(busy(age_s=None))
    finally:
        telemetry.detach(handler)
    (numbers, about), (_, held) = told
    assert (numbers["previous"], about["action"], about["source"]) == (2, "grow", "sizing")
    assert numbers["target"] > 2
    assert about["numbers"]
    assert (held["action"], held["reason"]) == ("hold", "no data yet")


async def test_repeated_holds_are_one_record_so_that_the_last_change_stays_visible():
    async with pool(enable_optimizer=True, pool_size=2) as s:
        await s.supervisor.resize(3)
        for _ in range(1000):
            await s.clock.advance(0.1)
            await s.supervisor.observe(busy(age_s=None))
        decisions = await s.supervisor.decisions(10)
        assert decisions[0].times > 900
        assert decisions[-1].source == "manual"


# --- a supervisor's own death --------------------------------------------------------------------------


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
        dead = s.runtime.worker(slot=0)
        dead.die()
        s.supervisor = s.new_supervisor()
        await s.supervisor.start()
        await settle()
        assert dead.worker_id not in s.store.alive[-1]
        assert len(await s.members()) == 2


async def test_a_running_worker_that_does_not_answer_is_killed_and_replaced():
    async with pool(pool_size=2) as s:
        await s.supervisor.detach()
        stuck = s.runtime.worker(slot=0)
        stuck.healthy = False
        s.supervisor = s.new_supervisor()
        starting = asyncio.create_task(s.supervisor.start())
        await s.clock.advance(2.0)
        await starting
        await settle()
        assert stuck.killed
        assert len(await s.members()) == 2


async def test_a_worker_that_was_in_warm_up_when_the_supervisor_died_is_warmed_again_before_it_serves():
    async with pool(only(slot=1, step_s=5.0), pool_size=2) as s:
        await s.clock.advance(1.0)
        half = s.runtime.worker(slot=1)
        await s.successor()
        assert await s.members() == [s.runtime.worker(slot=0).worker_id]
        await s.clock.advance(6.0)
        assert half.worker_id in await s.members()
        assert len(s.runtime.workers) == 2


async def test_a_worker_that_was_draining_when_the_supervisor_died_goes_on_draining():
    async with pool(only(drain_s=5.0), pool_size=2) as s:
        going = s.runtime.worker(slot=0)
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
        going = s.runtime.worker(slot=0)
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


# --- warm-up on demand ---------------------------------------------------------------------------------


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
        s.runtime.worker(slot=0).die()
        await settle()
        report = await s.supervisor.warmup_report()
        assert (len(report.workers), report.workers_warm) == (3, 3)


# --- deployment ----------------------------------------------------------------------------------------

NEW = Deployment("qa", 0, spec={"signature": "question -> answer", "module": "ChainOfThought"})


class Traffic:
    """What every worker measures, by version: operations, errors and mean run time each quarter of a second.

    A version that is not named does fifty operations, all well.
    """

    def __init__(self, **rows):
        self.rows = {int(key[1:]): value for key, value in rows.items()}

    async def run(self, s):
        while True:
            for worker in s.runtime.alive:
                version = worker.active.get("qa", 0)
                operations, errors, run_s = self.rows.get(version, (50, 0, 0.1))
                mine = worker.measured.setdefault("qa", {})
                before = mine.get(version, VersionNumbers())
                mine[version] = VersionNumbers(before.operations + operations, before.errors + errors, run_s)
            await s.clock.sleep(0.25)


async def deploying(s, deployment=NEW, seconds=30.0):
    task = asyncio.create_task(s.supervisor.deploy(deployment))
    await s.clock.advance(seconds)
    return await task


async def test_a_new_version_goes_to_a_canary_and_then_to_all_and_is_published():
    async with pool(traffic=Traffic(), pool_size=3, spares=1) as s:
        done = await deploying(s)
        assert done.version == 2
        assert all(w.active == {"qa": 2} for w in s.runtime.alive)
        assert (await s.supervisor.watch(0)).programs == {"qa": 2}
        assert await s.store.current_versions("default") == {"qa": 2}


async def test_while_the_canary_is_watched_only_it_has_the_new_version():
    async with pool(traffic=Traffic(v2=(0, 0, 0.0)), pool_size=3) as s:
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await s.clock.advance(1.0)
        assert sorted(w.active["qa"] for w in s.runtime.alive) == [1, 1, 2]
        assert (await s.supervisor.watch(0)).programs == {"qa": 1}
        await s.clock.advance(30.0)
        await task


@pytest.mark.parametrize(
    ("traffic", "why"),
    [(Traffic(v2=(10, 5, 0.1)), "error rate 50.0%"), (Traffic(v2=(10, 0, 0.9)), "mean run time 0.900 s")],
)
async def test_a_version_that_does_worse_is_rolled_back_by_itself(traffic, why):
    async with pool(traffic=traffic, pool_size=3) as s:
        with pytest.raises(ProgramError, match=why):
            await deploying(s)
        assert all(w.active == {"qa": 1} for w in s.runtime.alive)
        assert all(w.loaded == {"qa": {1}} for w in s.runtime.alive)
        assert (await s.supervisor.watch(0)).programs == {"qa": 1}
        assert len(s.store.versions) == 1, "a version that was never current is not kept"


async def test_a_version_under_which_operations_hang_is_rolled_back_though_none_has_ended():
    async with pool(traffic=Traffic(v2=(0, 0, 0.0)), pool_size=2) as s:
        await s.clock.advance(5.0)
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await settle()
        canary = next(w for w in s.runtime.alive if w.active["qa"] == 2)
        canary.measured["qa"][2] = VersionNumbers(running=8, running_s=9.0)
        s.traffic.cancel()
        await s.clock.advance(12.0)
        with pytest.raises(ProgramError, match="8 still running"):
            await task
        assert all(w.active == {"qa": 1} for w in s.runtime.alive)


async def test_the_only_worker_is_compared_with_what_it_did_before():
    async with pool(traffic=Traffic(v2=(10, 0, 0.9)), pool_size=1) as s:
        await s.clock.advance(5.0)
        with pytest.raises(ProgramError, match=r"mean run time 0.900 s, before 0.100 s"):
            await deploying(s)


async def test_a_version_that_blocks_its_canary_is_rolled_back_and_that_worker_replaced():
    async with pool(traffic=Traffic(), pool_size=2) as s:
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await settle()
        canary = next(w for w in s.runtime.alive if w.active["qa"] == 2)
        canary.healthy = canary.obedient = False
        await s.clock.advance(20.0)
        with pytest.raises(ProgramError, match="does not answer any more"):
            await task
        assert canary.killed, "it would serve the version that was taken back as soon as it is free again"
        assert len(await s.members()) == 2
        assert all(w.active == {"qa": 1} for w in s.runtime.alive)


async def test_while_nobody_asks_for_the_program_a_canary_is_not_watched_for_long():
    async with pool(traffic=Traffic(), pool_size=2) as s:
        await s.clock.advance(5.0)
        s.traffic.cancel()
        await s.clock.advance(1.0)
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await s.clock.advance(2.5)
        assert task.done()
        assert (await task).version == 2


async def test_a_roll_out_shows_how_far_it_is_and_what_the_canary_did():
    async with pool(traffic=Traffic(v2=(10, 5, 0.1)), pool_size=2) as s:
        assert await s.supervisor.recent_rollouts() == []
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await s.clock.advance(0.3)
        (now,) = await s.supervisor.recent_rollouts()
        assert (now.phase, now.program, now.version, now.previous) == ("canary", "qa", 2, 1)
        assert now.canary in await s.members()
        assert (await s.supervisor.rollouts())[0] == now
        await s.clock.advance(30.0)
        with pytest.raises(ProgramError):
            await task
        (ended,) = await s.supervisor.recent_rollouts()
        assert (ended.phase, ended.new.error_rate, ended.old.error_rate) == ("rolled back", 0.5, 0.0)
        assert ended.reason.startswith("error rate 50.0%")
        assert ended.ended_at > ended.began_at
        s.runtime.worker(slot=0).deploy_faults = {"qa": "raise"}
        with pytest.raises(ProgramError):
            await deploying(s)
        s.runtime.worker(slot=0).deploy_faults = {}
        await s.supervisor.deploy(Deployment("other", 0, spec=SPEC))
        phases = [one.phase for one in await s.supervisor.recent_rollouts()]
        assert phases == ["done", "failed", "rolled back"]
        assert (await s.supervisor.rollouts())[1].program == "other"


async def test_a_version_that_fails_on_load_is_refused_and_nothing_changes():
    async with pool(pool_size=2) as s:
        for worker in s.runtime.alive:
            worker.deploy_faults = {"qa": "raise"}
        before = await s.supervisor.watch(0)
        with pytest.raises(ProgramError, match="cannot load qa"):
            await deploying(s)
        assert await s.supervisor.watch(0) == before
        assert all(w.loaded == {"qa": {1}} and w.active == {"qa": 1} for w in s.runtime.alive)
        assert len(s.store.versions) == 1
        assert len(await s.members()) == 2


async def test_a_version_that_hangs_on_load_is_refused():
    async with pool(pool_size=2, warmup={"worker_deadline_s": 5.0}) as s:
        s.runtime.worker(slot=0).deploy_faults = {"qa": "hang"}
        with pytest.raises(ProgramError, match="did not load: no answer within 5 s"):
            await deploying(s)
        assert (await s.supervisor.watch(0)).programs == {"qa": 1}


async def test_with_a_spare_a_bad_version_never_touches_a_worker_with_traffic():
    async with pool(pool_size=2, spares=1) as s:
        s.runtime.worker(slot=2).deploy_faults = {"qa": "die"}
        serving = await s.members()
        with pytest.raises(Exception, match="died"):
            await deploying(s)
        assert await s.members() == serving
        assert all(w.loaded == {"qa": {1}} for w in s.runtime.alive if w.worker_id in serving)


async def test_a_canary_that_dies_takes_the_version_back():
    async with pool(traffic=Traffic(v2=(0, 0, 0.0)), pool_size=2) as s:
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await s.clock.advance(0.3)
        next(w for w in s.runtime.alive if w.active["qa"] == 2).die()
        await s.clock.advance(1.0)
        with pytest.raises(ProgramError, match="left the pool"):
            await task
        assert all(w.active == {"qa": 1} for w in s.runtime.alive)


async def test_a_worker_that_joins_during_a_deployment_has_the_new_version_before_it_serves():
    async with pool(pool_size=2, traffic=Traffic()) as s:
        s.runtime.script = only(step_s=20.0)
        await s.supervisor.resize(3)
        await settle()
        await deploying(s, seconds=10.0)
        assert len(await s.members()) == 2
        await s.clock.advance(15.0)
        assert len(await s.members()) == 3
        assert all(w.active == {"qa": 2} for w in s.runtime.alive)


async def test_a_worker_that_joins_with_an_old_version_takes_no_traffic_until_it_has_the_new_one():
    steps = [{"step": "load_programs"}, {"step": "import_modules", "modules": ["json"]}]
    async with pool(pool_size=2, traffic=Traffic(), warmup={"steps": steps}) as s:
        s.runtime.script = only(step_s=10.0)
        await s.supervisor.resize(3)
        await s.clock.advance(15.0)
        joining = s.runtime.worker(slot=2)
        assert joining.active == {"qa": 1}
        await deploying(s, seconds=3.0)
        joining.deploy_faults = {"qa": "hang"}
        await s.clock.advance(10.0)
        assert joining.steps == ["load_programs", "import_modules"]
        assert joining.worker_id not in await s.members()


async def test_a_worker_that_cannot_load_the_new_version_after_the_canary_did_is_replaced():
    async with pool(pool_size=2) as s:
        bad = s.runtime.worker(slot=1)
        bad.deploy_faults = {"qa": "raise"}
        await deploying(s)
        await s.clock.advance(1.0)
        assert bad.killed
        assert all(w.active == {"qa": 2} for w in s.runtime.alive)
        assert len(await s.members()) == 2


async def test_a_new_program_needs_no_comparison():
    async with pool(pool_size=2, traffic=Traffic()) as s:
        done = await s.supervisor.deploy(Deployment("other", 0, spec=SPEC))
        assert done.version == 1
        assert (await s.supervisor.watch(0)).programs == {"qa": 1, "other": 1}


async def test_rollback_goes_to_the_version_before_and_to_a_named_one():
    async with pool(pool_size=2) as s:
        for _ in range(3):
            await deploying(s)
        assert (await s.supervisor.rollback("qa")).version == 3
        assert (await s.supervisor.rollback("qa", 1)).version == 1
        assert all(w.active == {"qa": 1} for w in s.runtime.alive)
        for program, version in (("qa", 99), ("nothing", None)):
            with pytest.raises(UnknownProgram):
                await s.supervisor.rollback(program, version)


async def test_old_versions_are_retired_but_for_the_one_before():
    async with pool(pool_size=2) as s:
        for _ in range(4):
            await deploying(s)
        assert all(w.loaded["qa"] == {4, 5} for w in s.runtime.alive)


async def test_two_deployments_at_once_conflict_and_bad_ones_are_refused():
    async with pool(pool_size=2, traffic=Traffic(v2=(0, 0, 0.0))) as s:
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await settle()
        with pytest.raises(Conflict):
            await s.supervisor.deploy(NEW)
        await s.clock.advance(30.0)
        await task
        with pytest.raises(InvalidRequest, match="exactly one of spec and import_path"):
            await s.supervisor.deploy(Deployment("qa", 0))


async def test_there_must_be_a_warm_worker_to_deploy_to():
    async with pool(pool_size=1, lazy=True) as s:
        with pytest.raises(PoolNotReady):
            await s.supervisor.deploy(NEW)


async def test_a_version_deployed_by_hand_outlives_the_supervisor_and_a_changed_configuration_does_win():
    async with pool(pool_size=1) as s:
        await deploying(s)
        await s.successor()
        assert (await s.supervisor.watch(0)).programs == {"qa": 2}
        s.config = s.config.override(programs={"qa": {"spec": {**SPEC, "module": "ReAct"}}})
        await s.successor()
        assert (await s.supervisor.watch(0)).programs == {"qa": 3}
        assert s.runtime.worker(slot=0).active == {"qa": 3}


async def test_a_configured_program_from_an_import_path_keeps_its_lm_and_adapter():
    chosen = {"import_path": "a.b:C", "lm": "fast", "adapter": "json"}
    profiles = {"fast": {"model": "openai/x"}, "slow": {"model": "openai/y"}}
    config = {"programs": {"qa": chosen}, "allowed_imports": ("a",), "lm_profiles": profiles}
    async with pool(pool_size=1, **config) as s:
        (stored,) = await s.supervisor.deployments()
        assert (stored.import_path, stored.spec) == ("a.b:C", {"lm": "fast", "adapter": "json"})
        by_hand = Deployment("qa", 0, spec={"lm": "slow"}, import_path="a.b:C")
        assert (await deploying(s, by_hand)).spec == {"lm": "slow"}
        both = Deployment("qa", 0, spec=SPEC, import_path="a.b:C")
        with pytest.raises(InvalidRequest, match="exactly one"):
            await s.supervisor.deploy(both)


async def test_saved_state_alone_is_loaded_into_the_spec_of_the_current_version():
    async with pool(pool_size=1, allowed_imports=("a",)) as s:
        state = {"demos": [], "signature": {}}
        done = await deploying(s, Deployment("qa", 0, state=state))
        assert (done.version, done.spec, done.state) == (2, SPEC, state)
        await deploying(s, Deployment("qa", 0, import_path="a:B"))
        for program in ("qa", "nothing"):
            with pytest.raises(InvalidRequest, match="saved state alone"):
                await s.supervisor.deploy(Deployment(program, 0, state=state))


async def test_a_successor_ends_a_canary_that_was_being_tried():
    async with pool(traffic=Traffic(v2=(0, 0, 0.0)), pool_size=2) as s:
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await s.clock.advance(0.5)
        await s.successor()
        assert all(w.active == {"qa": 1} and w.loaded == {"qa": {1}} for w in s.runtime.alive)
        task.cancel()


# --- observation and expiry ----------------------------------------------------------------------------


async def test_expired_sessions_are_forgotten_by_the_workers_that_held_them():
    async with pool(pool_size=2, session_ttl_s=100.0) as s:
        holder = s.runtime.worker(slot=1)
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
            s.runtime.worker(slot=0).die()
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
