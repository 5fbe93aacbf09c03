"""New versions of pool programs: canary, comparison, going on, rolling back."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from dspool.core.lifecycle.source import ImportedSource
from dspool.errors import (
    Conflict,
    InvalidRequest,
    PoolNotReady,
    ProgramError,
    StoreFailed,
    UnknownProgram,
)
from dspool.messages import Deployment, VersionNumbers
from dspool.testing.doubles import settle
from tests.unit.supervision import NEW, SPEC, Traffic, another, deploying, only, pool


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


async def test_both_sides_are_measured_over_the_time_of_the_trial_whatever_was_before():
    async with pool(traffic=Traffic(v2=(30, 0, 0.1)), pool_size=2) as s:
        await s.clock.advance(100.0)
        await deploying(s)
        rollout = (await s.supervisor.recent_rollouts())[0]
        ticks = rollout.new.operations // 30
        assert rollout.old.operations == pytest.approx(50 * ticks, abs=50), "not those of 100 s before"
        assert rollout.watched_s == pytest.approx(ticks * 0.25, abs=0.5)
        assert rollout.base is None
        assert (rollout.workers_done, rollout.workers_total) == (2, 2)


async def test_a_canary_that_is_alone_is_compared_with_what_was_before_and_that_is_told_apart():
    async with pool(traffic=Traffic(v2=(10, 5, 0.1)), pool_size=1) as s:
        await s.clock.advance(10.0)
        with pytest.raises(ProgramError, match="rolled back"):
            await deploying(s)
        rollout = (await s.supervisor.recent_rollouts())[0]
        assert rollout.old.operations == 0, "the version before ran nowhere meanwhile"
        assert rollout.base.operations > 1000
        assert (rollout.workers_done, rollout.workers_total) == (0, 1)


async def test_who_deployed_and_rolled_back_and_how_it_ended_outlives_the_supervisor():
    async with pool(traffic=Traffic(v2=(10, 5, 0.1)), pool_size=2) as s:
        with pytest.raises(ProgramError):
            await deploying(s, msgspec.structs.replace(NEW, by="ada"))
        await deploying(s, msgspec.structs.replace(another(2), by="bob"))
        await s.supervisor.rollback("qa", 1, by="eve")
        await s.clock.advance(1.0)
        await s.successor()
        ended = await s.supervisor.recent_rollouts()
        assert [(one.kind, one.by, one.version, one.phase) for one in ended] == [
            ("rollback", "eve", 1, "done"),
            ("deploy", "bob", 3, "done"),
            ("deploy", "ada", 2, "rolled back"),
        ]
        assert "error rate 50.0%" in ended[-1].reason
        assert (await s.supervisor._deployments.versions("qa"))[-1].by == "bob"


async def test_a_mistyped_name_makes_no_program_unless_it_may():
    async with pool(pool_size=1) as s:
        mistyped = msgspec.structs.replace(NEW, program="qaa")
        with pytest.raises(UnknownProgram, match=r"no program 'qaa' to deploy; did you mean qa\?"):
            await s.supervisor.deploy(mistyped, new=False)
        assert await s.store.current_versions("default") == {"qa": 1}
        assert await s.supervisor.recent_rollouts() == []
        await deploying(s, mistyped)
        assert await s.store.current_versions("default") == {"qa": 1, "qaa": 1}


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
        await s.clock.advance(30.0)
        with pytest.raises(ProgramError):
            await task
        (ended,) = await s.supervisor.recent_rollouts()
        assert (ended.phase, ended.new.error_rate, ended.old.error_rate) == ("rolled back", 0.5, 0.0)
        assert ended.reason.startswith("error rate 50.0%")
        assert ended.ended_at > ended.began_at
        s.runtime.worker(ordinal=0).deploy_faults = {"qa": "raise"}
        with pytest.raises(ProgramError):
            await deploying(s)
        s.runtime.worker(ordinal=0).deploy_faults = {}
        await s.supervisor.deploy(Deployment("other", 0, spec=SPEC))
        phases = [one.phase for one in await s.supervisor.recent_rollouts()]
        assert phases == ["done", "failed", "rolled back"]
        assert (await s.supervisor.recent_rollouts())[0].program == "other"


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
        s.runtime.worker(ordinal=0).deploy_faults = {"qa": "hang"}
        with pytest.raises(ProgramError, match="did not load: no answer within 5 s"):
            await deploying(s)
        assert (await s.supervisor.watch(0)).programs == {"qa": 1}


async def test_with_a_spare_a_bad_version_never_touches_a_worker_with_traffic():
    async with pool(pool_size=2, spares=1) as s:
        s.runtime.worker(ordinal=2).deploy_faults = {"qa": "die"}
        serving = await s.members()
        with pytest.raises(Exception, match="died"):
            await deploying(s)
        assert await s.members() == serving
        assert all(w.loaded == {"qa": {1}} for w in s.runtime.alive if w.worker_id in serving)


async def test_a_worker_that_dies_while_it_takes_a_version_makes_it_fail_as_the_programs_error():
    async with pool(pool_size=2) as s:
        s.runtime.worker(ordinal=0).deploy_faults = {"qa": "die"}
        with pytest.raises(
            ProgramError, match=r"was rolled back: worker .* died or does not answer any more"
        ):
            await deploying(s)
        (ended,) = await s.supervisor.recent_rollouts()
        assert ended.phase == "rolled back"
        assert (await s.supervisor.watch(0)).programs == {"qa": 1}


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
        joining = s.runtime.worker(ordinal=2)
        assert joining.active == {"qa": 1}
        await deploying(s, seconds=3.0)
        joining.deploy_faults = {"qa": "hang"}
        await s.clock.advance(10.0)
        assert joining.steps == ["load_programs", "import_modules"]
        assert joining.worker_id not in await s.members()


async def test_a_worker_that_cannot_load_the_new_version_after_the_canary_did_is_replaced():
    async with pool(pool_size=2) as s:
        bad = s.runtime.worker(ordinal=1)
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
        for number in range(3):
            await deploying(s, another(number))
        assert (await s.supervisor.rollback("qa")).version == 3
        assert (await s.supervisor.rollback("qa", 1)).version == 1
        assert all(w.active == {"qa": 1} for w in s.runtime.alive)
        for program, version in (("qa", 99), ("nothing", None)):
            with pytest.raises(UnknownProgram):
                await s.supervisor.rollback(program, version)


async def test_old_versions_are_retired_but_for_the_one_before():
    async with pool(pool_size=2) as s:
        for number in range(4):
            await deploying(s, another(number))
        assert all(w.loaded["qa"] == {4, 5} for w in s.runtime.alive)


async def test_an_old_version_is_retired_once_however_many_follow():
    async with pool(pool_size=1) as s:
        [worker] = s.runtime.alive
        retire, asked = worker.retire, []

        async def noting(program, version):
            asked.append(version)
            await retire(program, version)

        worker.retire = noting
        for number in range(5):
            await deploying(s, another(number))
        assert asked == [1, 2, 3, 4]


async def test_a_retired_version_that_was_current_again_is_retired_again():
    async with pool(pool_size=2) as s:
        for number in range(4):
            await deploying(s, another(number))
        for version in (2, 3, 5):
            await s.supervisor.rollback("qa", version)
        await deploying(s, another(4))
        assert all(w.loaded["qa"] == {5, 6} for w in s.runtime.alive)


async def test_two_deployments_at_once_conflict_and_bad_ones_are_refused():
    async with pool(pool_size=2, traffic=Traffic(v2=(0, 0, 0.0))) as s:
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await settle()
        with pytest.raises(Conflict):
            await s.supervisor.deploy(NEW)
        await s.clock.advance(30.0)
        await task
        with pytest.raises(InvalidRequest, match="no program new to deploy again; there are: qa"):
            await s.supervisor.deploy(Deployment("new", 0))


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
        assert s.runtime.worker(ordinal=0).active == {"qa": 3}


async def test_a_program_that_left_the_configuration_is_gone_and_one_that_was_deployed_by_hand_stays():
    async with pool(pool_size=1) as s:
        await deploying(s, msgspec.structs.replace(NEW, program="by_hand"))
        s.config = s.config.override(programs={"other": {"spec": SPEC}})
        await s.successor()
        assert (await s.supervisor.watch(0)).programs == {"by_hand": 1, "other": 1}
        assert await s.store.current_versions(s.config.name) == {"by_hand": 1, "other": 1}
        s.config = s.config.override(programs={"qa": {"spec": SPEC}})
        await s.successor()
        assert (await s.supervisor.watch(0)).programs == {"by_hand": 1, "qa": 2}


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


async def test_saved_state_alone_is_loaded_into_the_current_version_whatever_it_was_made_from():
    async with pool(pool_size=1, allowed_imports=("a",)) as s:
        state = {"demos": [], "signature": {}}
        done = await deploying(s, Deployment("qa", 0, state=state))
        assert (done.version, done.spec, done.state) == (2, SPEC, state)
        await deploying(s, Deployment("qa", 0, import_path="a:B", kwargs={"n": 1}))
        done = await deploying(s, Deployment("qa", 0, state=state))
        assert (done.version, done.import_path, done.kwargs, done.state) == (4, "a:B", {"n": 1}, state)
        with pytest.raises(InvalidRequest, match="no program nothing to deploy again; there are: qa"):
            await s.supervisor.deploy(Deployment("nothing", 0, state=state))


async def test_a_successor_ends_a_canary_that_was_being_tried():
    async with pool(traffic=Traffic(v2=(0, 0, 0.0)), pool_size=2) as s:
        task = asyncio.create_task(s.supervisor.deploy(NEW))
        await s.clock.advance(0.5)
        await s.successor()
        assert all(w.active == {"qa": 1} and w.loaded == {"qa": {1}} for w in s.runtime.alive)
        task.cancel()


# --- what loads nothing new, or cannot be loaded ------------------------------------------------------


def imported(changed=(), **modules):
    """What a worker says to have imported: the digest of each module, and which of them were edited since."""
    names = {name.replace("__", "."): digest for name, digest in modules.items()}
    return ImportedSource(names, {name: f"/app/{name}.py" for name in changed})


def everybody(s, source):
    """All workers, those to come as well, have imported that."""
    s.runtime.script = only(imported=source)
    for worker in s.runtime.alive:
        worker.imported = source


SHOP = {"programs": {"qa": {"import_path": "shop.answers:Answer"}}, "allowed_imports": ("shop",)}
ANSWER = Deployment("qa", 0, import_path="shop.answers:Answer")
LOUDER = Deployment("qa", 0, import_path="shop.answers:Answer", kwargs={"mark": "!"})
OLD = imported(shop__answers="a1", shop__prompts="p1")


@pytest.mark.parametrize(
    "same",
    [
        Deployment("qa", 0, spec=SPEC),
        Deployment("qa", 0, spec=dict(reversed(SPEC.items()))),
    ],
)
async def test_what_runs_already_is_not_deployed_again(same):
    async with pool(pool_size=2) as s:
        before = await s.supervisor.watch(0)
        with pytest.raises(Conflict, match="version 1 of qa already runs exactly this") as refused:
            await deploying(s, same)
        assert refused.value.details == {"program": "qa", "version": 1, "reason": "nothing_changed"}
        assert await s.supervisor.watch(0) == before
        assert await s.supervisor.recent_rollouts() == []
        assert len(s.store.versions) == 1


async def test_state_that_runs_already_is_not_deployed_again():
    async with pool(pool_size=1) as s:
        await deploying(s, Deployment("qa", 0, state={"demos": [], "signature": {}}))
        with pytest.raises(Conflict, match="version 2 of qa already runs"):
            await deploying(s, Deployment("qa", 0, state={"signature": {}, "demos": []}))
        assert (await deploying(s, Deployment("qa", 0, state={"demos": [1], "signature": {}}))).version == 3


async def test_what_python_holds_for_equal_may_be_another_program():
    async with pool(pool_size=1, **SHOP) as s:
        everybody(s, OLD)
        for number, mark in enumerate((1, True, 1.0)):
            done = await deploying(s, msgspec.structs.replace(LOUDER, kwargs={"mark": mark}))
            assert done.version == 2 + number


async def test_a_version_before_the_current_one_may_be_deployed_again():
    async with pool(pool_size=1) as s:
        await deploying(s)
        assert (await deploying(s, Deployment("qa", 0, spec=SPEC))).version == 3


async def test_a_version_that_was_rolled_back_may_be_tried_again_under_a_number_of_its_own():
    async with pool(traffic=Traffic(v2=(10, 5, 0.1), v3=(10, 5, 0.1)), pool_size=2) as s:
        for number in (2, 3):
            with pytest.raises(ProgramError, match=f"version {number} of qa was rolled back"):
                await deploying(s)
        await s.successor()
        assert (await deploying(s)).version == 4


async def test_an_import_path_whose_source_is_as_it_was_is_not_deployed_again_and_with_other_arguments_it_is():
    async with pool(pool_size=2, **SHOP) as s:
        everybody(s, OLD)
        with pytest.raises(Conflict, match="already runs exactly this, and its source is as"):
            await deploying(s, ANSWER)
        assert (await deploying(s, LOUDER)).version == 2


async def test_workers_that_imported_different_source_get_no_version_that_names_it():
    async with pool(pool_size=2, **SHOP) as s:
        everybody(s, OLD)
        s.runtime.worker(ordinal=1).imported = imported(shop__answers="a2", shop__prompts="p1")
        with pytest.raises(Conflict, match=r"have imported shop\.answers from different"):
            await deploying(s, LOUDER)


async def test_workers_that_do_not_answer_stop_a_deployment_but_not_the_way_back():
    async with pool(only(imported=OLD), pool_size=1, **SHOP) as s:
        await deploying(s, LOUDER)
        s.runtime.worker(ordinal=0).healthy = False
        with pytest.raises(PoolNotReady, match="which source"):
            await deploying(s, ANSWER, seconds=6.0)
        back = asyncio.create_task(s.supervisor.rollback("qa", 1))
        await s.clock.advance(6.0)
        assert (await back).version == 1


async def test_a_store_that_is_away_keeps_no_worker_from_traffic():
    async with pool(only(imported=OLD), pool_size=1, **SHOP) as s:
        s.store.down = StoreFailed("no store")
        s.runtime.worker(ordinal=0).die()
        await s.clock.advance(5.0)
        assert len(await s.members()) == 1
        s.store.down = None
        await s.clock.advance(5.0)
