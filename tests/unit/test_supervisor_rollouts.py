"""New versions of pool programs: canary, comparison, going on, rolling back."""

from __future__ import annotations

import asyncio

import pytest

from dspool.errors import (
    Conflict,
    InvalidRequest,
    PoolNotReady,
    ProgramError,
    UnknownProgram,
)
from dspool.messages import Deployment, VersionNumbers
from dspool.testing.doubles import settle
from tests.unit.supervision import NEW, SPEC, Traffic, deploying, only, pool


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
