"""A supervisor in a change that goes step by step, and its successors."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from dspool.core.lifecycle import events as ev
from dspool.errors import Conflict
from dspool.messages import Share
from dspool.testing.doubles import settle
from tests.unit.supervision import NEW as NEXT_VERSION
from tests.unit.supervision import pool

OLD, NEW = "the old settings", "the new settings"


@asynccontextmanager
async def changing(**arguments):
    """A pool with the old settings; `exchanged` gives it a supervisor with others."""
    current = [OLD]

    def script(worker):
        worker.settings = current[0]

    async with pool(script, **arguments) as s:
        s.supervisor._state.gradual.settings = OLD

        async def exchanged(settings, **config):
            current[0] = settings
            s.config = s.config.override(**config)
            make = s.new_supervisor

            def made():
                supervisor = make()
                supervisor._state.gradual.settings = current[0]
                return supervisor

            s.new_supervisor = made
            await s.supervisor._records.flush()
            await s.successor()
            s.new_supervisor = make
            await s.clock.advance(3 * s.config.health_check_interval_s)

        async def step(settings, percent):
            s.supervisor._feed(ev.GradualStep(settings, percent))
            await s.clock.advance(3 * s.config.health_check_interval_s)

        s.exchanged, s.step = exchanged, step
        s.kinds = lambda: sorted(w.settings for w in s.runtime.alive if w.state != "draining")
        yield s


async def share_of(s) -> Share | None:
    return (await s.supervisor.watch(0, 0)).share


async def test_a_record_written_before_the_exchange_keeps_the_successor_from_replacing_too_many():
    async with changing(pool_size=2) as s:
        await s.step(NEW, 10)
        assert await share_of(s) is None, "the settings are not yet this supervisor's"
        await s.exchanged(NEW)
        assert s.kinds() == [NEW, OLD, OLD]
        [tried] = [w.worker_id for w in s.runtime.alive if w.settings == NEW]
        assert await share_of(s) == Share(10, (tried,))
        assert (await s.status()).gradual.reached


async def test_without_a_record_all_are_replaced_as_ever():
    async with changing(pool_size=2) as s:
        await s.exchanged(NEW)
        assert s.kinds() == [NEW, NEW]
        assert await share_of(s) is None


async def test_a_change_that_stands_survives_the_supervisor_and_stands_until_it_is_moved():
    async with changing(pool_size=2) as s:
        await s.step(NEW, 10)
        await s.exchanged(NEW)
        await s.step(NEW, 50)
        assert s.kinds() == [NEW, OLD]
        await s.exchanged(NEW)
        await s.clock.advance(600.0)
        assert s.kinds() == [NEW, OLD]
        assert (await s.status()).gradual.percent == 50
        await s.step(NEW, None)
        assert s.kinds() == [NEW, NEW]
        assert (await s.status()).gradual is None


async def test_it_goes_back_by_the_exchange_of_the_settings_before():
    async with changing(pool_size=2) as s:
        await s.step(NEW, 50)
        await s.exchanged(NEW)
        await s.step(NEW, 0)
        assert (await share_of(s)).percent == 0
        await s.step(OLD, 100)
        await s.exchanged(OLD)
        assert s.kinds() == [OLD, OLD]
        assert (await share_of(s), (await s.status()).gradual) == (None, None)


async def test_a_program_that_changed_with_the_settings_is_not_loaded_by_the_workers_before():
    async with changing(pool_size=2) as s:
        await s.step(NEW, 10)
        await s.exchanged(NEW, programs={"qa": {"spec": NEXT_VERSION.spec}})
        assert {w.settings: w.active["qa"] for w in s.runtime.alive} == {OLD: 1, NEW: 2}


async def test_workers_of_the_settings_before_serve_on_when_a_program_of_the_new_ones_does_not_load():
    """Neither do they load it, nor do the new ones take anybody's place."""
    async with changing(pool_size=2) as s:
        before = await s.members()
        for worker in s.runtime.alive:
            worker.deploy_faults["qa"] = "raise"
        s.runtime.script = lambda w: (
            setattr(w, "settings", NEW),
            setattr(w, "step_faults", {0: "raise", 1: "raise"}),
        )
        await s.exchanged(NEW, programs={"qa": {"spec": NEXT_VERSION.spec}})
        assert await s.members() == before
        assert {w.active["qa"] for w in s.runtime.alive if w.settings == OLD} == {1}


async def test_nothing_is_deployed_while_a_change_stands():
    async with changing(pool_size=2) as s:
        await s.step(NEW, 10)
        await s.exchanged(NEW)
        for asked in (
            s.supervisor.deploy(NEXT_VERSION),
            s.supervisor.rollback("qa"),
            s.supervisor.warm(),
        ):
            with pytest.raises(Conflict, match="stands at 10 %"):
                await asked
        await s.step(NEW, None)
        assert (await s.supervisor.warm()).workers_warm == 2


async def test_a_worker_to_try_that_cannot_start_takes_nobodys_place():
    async with changing(pool_size=2) as s:
        s.runtime.script = lambda w: (setattr(w, "settings", NEW), setattr(w, "start_fault", "raise"))
        await s.step(NEW, 10)
        await s.exchanged(NEW)
        await settle()
        assert len(await s.members()) == 2
        status = await s.status()
        assert not status.gradual.reached
        assert [one.expected for one in status.ended][:1] == [False]
