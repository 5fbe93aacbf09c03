"""Sizes: asked for by hand, and decided by the sizing loop."""

from __future__ import annotations

import asyncio

import pytest

from dspool.core.autoscale.inputs import Window
from dspool.errors import (
    InvalidRequest,
    UnknownWorker,
)
from dspool.supervisor.sizing import MAX_DECISIONS, MAX_DRY_RUNS
from dspool.telemetry import events as telemetry
from dspool.testing.doubles import settle
from tests.unit.supervision import busy, only, pool

# --- size ---


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
        old = s.runtime.worker(ordinal=0)
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
        old = s.runtime.worker(ordinal=0)
        draining = asyncio.create_task(s.supervisor.drain(old.worker_id))
        await s.clock.advance(1.0)
        old.die()
        await draining
        assert len(await s.members()) == 2


async def test_restart_replaces_warm_first():
    async with pool(only(start_s=1.0), pool_size=2) as s:
        await s.clock.advance(1.0)
        old = s.runtime.worker(ordinal=0)
        restarting = asyncio.create_task(s.supervisor.restart(old.worker_id))
        await s.clock.advance(0.5)
        assert old.worker_id in await s.members()
        await s.clock.advance(0.6)
        await restarting
        assert len(await s.members()) == 2
        assert not old.alive


async def test_what_a_worker_has_when_warm_is_known_before_its_first_regular_health_check():
    async with pool(pool_size=1, recycle={"max_memory_mb": 150.0}) as s:
        old = s.runtime.worker(ordinal=0)
        old.own_mb = 200.0  # grown since: recycling it helps
        await s.clock.advance(s.config.health_check_interval_s + 1)
        assert not old.alive
        assert len(await s.members()) == 1


async def test_a_memory_limit_that_no_worker_keeps_does_not_recycle_for_ever():
    async with pool(only(own_mb=200.0), pool_size=2, recycle={"max_memory_mb": 150.0}) as s:
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


# --- sizing ---


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


# --- sizing that is off ---

SIZES = {"pool_size": 2, "max_pool_size": 6, "optimization_interval_s": 1.0}


async def test_sizing_is_off_unless_it_is_switched_on_and_what_it_would_have_done_is_on_record():
    async def observe():
        return busy()

    async with pool(observe=observe, **SIZES) as s:
        await s.clock.advance(1.0)
        assert (await s.status()).desired == len(await s.members()) == 2
        (would,) = await s.supervisor.decisions(10)
        assert (would.previous, would.action, would.source) == (2, "grow", "dry run")
        assert would.target > 2
        assert would.reason
        assert would.numbers


async def test_a_dry_run_goes_on_as_if_the_pool_had_its_size():
    load = busy()

    async def observe():
        return load

    async with pool(observe=observe, **SIZES) as s:
        await s.clock.advance(10.0)
        held, grew = await s.supervisor.decisions(10)
        assert (held.previous, held.target, held.action) == (grew.target, grew.target, "hold")
        assert held.times == 9
        idle = Window(span_s=60.0)
        load = busy(running=0, queued=0, oldest_wait_s=0.0, short=idle, long=idle)
        await s.clock.advance(1200.0)
        assert (await s.supervisor.decisions(1))[0].target == 1
        assert (await s.status()).desired == 2


async def test_a_dry_run_starts_again_from_the_size_that_is_set_by_hand():
    async def observe():
        return busy(queued=0, oldest_wait_s=0.0)

    async with pool(observe=observe, **SIZES) as s:
        await s.clock.advance(3.0)
        await s.supervisor.resize(5)
        await s.clock.advance(1.0)
        would, by_hand = (await s.supervisor.decisions(10))[:2]
        assert (by_hand.target, by_hand.source) == (5, "manual")
        assert (would.previous, would.source) == (5, "dry run")


async def test_dry_runs_are_no_events_and_push_out_nothing_that_was_decided():
    told = []
    handler = telemetry.attach(lambda name, numbers, about: told.append(about["source"]), ["pool.decision"])
    try:
        async with pool(**SIZES) as s:
            await s.supervisor.resize(3)
            for number in range(MAX_DECISIONS):
                s.supervisor._sizing.dry_run(busy(queued=0) if number % 2 else busy(age_s=None))
            decisions = await s.supervisor.decisions(2 * MAX_DECISIONS)
    finally:
        telemetry.detach(handler)
    assert told == ["manual"]
    assert [one.source for one in decisions].count("manual") == 1
    assert len(decisions) <= MAX_DRY_RUNS + 1


async def test_without_metrics_there_is_no_dry_run():
    asked = []

    async def observe():
        asked.append("nobody is there to answer")

    async with pool(observe=observe, enable_metrics=False, **SIZES) as s:
        await s.clock.advance(5.0)
    assert asked == []


async def test_a_dry_run_without_data_warns_nobody(caplog):
    async def observe():
        raise RuntimeError("the metrics actor starts again")

    async with pool(observe=observe, **SIZES) as s:
        await s.clock.advance(5.0)
        assert await s.supervisor.decisions(10) == []
    assert "nothing observed" not in caplog.text


# --- sizing that is on ---


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
