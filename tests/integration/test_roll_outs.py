"""New versions of a pool program under load, judged by what the workers really measured."""

from __future__ import annotations

import pytest
from harness import Load, full

from dspool.errors import ProgramError
from dspool.messages import Deployment

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


async def test_a_version_that_does_as_well_goes_to_all_workers(start_pool, log):
    pool = await start_pool()
    await full(pool)
    async with Load(pool, log) as load:
        await load.more(50)
        assert (await pool.deploy(Deployment("once", 0, import_path="noted:Noted"))).version == 2
        result = await pool.execute("once", **log.inputs("after"))
    assert result.program_version == 2
    assert load.failed == {}
    (seen,) = await pool.rollouts()
    assert (seen.phase, seen.previous, seen.version) == ("done", 1, 2)
    assert seen.new.operations >= 20
    assert seen.old.operations >= 20
    assert seen.new.errors == seen.old.errors == 0
    assert 0.005 <= seen.new.run_s < 0.25


@pytest.mark.parametrize(
    ("worse", "why"),
    [("noted:Failing", "error rate 100.0%, before 0.0%"), ("noted:Slow", "mean run time ")],
)
async def test_a_version_that_fails_or_is_slow_is_rolled_back_by_itself(start_pool, log, worse, why):
    pool = await start_pool()
    await full(pool)
    async with Load(pool, log) as load:
        await load.more(50)
        with pytest.raises(ProgramError, match="rolled back"):
            await pool.deploy(Deployment("once", 0, import_path=worse))
        hurt = len(load.failed)
        await load.more(200)
        assert len(load.failed) == hurt, "nobody meets the version that was taken back"
    (seen,) = await pool.rollouts()
    assert seen.phase == "rolled back"
    assert why in seen.reason or "all of its first" in seen.reason
    assert pool.client.membership.programs["once"] == 1
    assert {(await pool.execute("once", **log.inputs(f"old{n}"))).program_version for n in range(20)} == {1}
    status = await pool.status()
    assert (status.state, status.failures) == ("ready", 0)


async def test_a_version_that_fails_on_load_changes_nothing(start_pool, log):
    pool = await start_pool(pool_size=1)
    await full(pool, 1)
    before = pool.client.membership
    with pytest.raises(ProgramError, match="RuntimeError"):
        await pool.deploy(Deployment("once", 0, import_path="noted:Unloadable"))
    (seen,) = await pool.rollouts()
    assert (seen.phase, seen.previous) == ("failed", 1)
    assert pool.client.membership == before
    assert (await pool.execute("once", **log.inputs("after"))).program_version == 1


async def test_a_version_that_blocks_its_worker_is_rolled_back_and_the_worker_replaced(start_pool, log):
    pool = await start_pool()
    await full(pool)
    async with Load(pool, log, "noted") as load:
        await load.more(50)
        with pytest.raises(ProgramError, match="does not answer any more"):
            await pool.deploy(Deployment("noted", 0, import_path="noted:Blocked"))
        await full(pool)
    (seen,) = await pool.rollouts()
    assert seen.phase == "rolled back"
    results = [await pool.execute("noted", **log.inputs(f"old{n}")) for n in range(20)]
    assert {result.program_version for result in results} == {1}
