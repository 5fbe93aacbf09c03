"""New versions of a pool program under load, judged by what the workers really measured."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
import pytest_asyncio
from harness import Load, full, kill, pids, until

from dspool.errors import Conflict, ProgramError
from dspool.messages import Deployment
from dspool.runtime.cluster import ask

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pool(start_module_pool):
    """A pool with a program for each test, as each leaves other versions of its own."""
    names = ("good", "failing", "slow", "unloadable", "blocked")
    programs = {name: {"import_path": "noted:Noted", "idempotent": name == "blocked"} for name in names}
    return await start_module_pool(programs=programs)


async def rollout_of(pool, program):
    (seen,) = [one for one in await pool.rollouts() if one.program == program]
    return seen


async def test_a_version_that_does_as_well_goes_to_all_workers_also_to_later_ones(pool, log):
    await full(pool)
    async with Load(pool, log, "good") as load:
        await load.more(50)
        assert (await pool.deploy(Deployment("good", 0, import_path="noted:Blocking"))).version == 2
        results = await asyncio.gather(*(pool.execute("good", **log.inputs(f"new{n}")) for n in range(50)))
    assert {result.program_version for result in results} == {2}
    assert load.failed == {}
    seen = await rollout_of(pool, "good")
    assert (seen.phase, seen.previous, seen.version) == ("done", 1, 2)
    assert seen.new.operations >= 20
    assert seen.old.operations >= 20
    assert seen.new.errors == seen.old.errors == 0
    assert seen.new.run_s >= 0.005
    victim, pid = next(iter(pids(pool).items()))
    kill(pid)
    await until(lambda: victim not in pids(pool))
    await full(pool)
    results = await asyncio.gather(*(pool.execute("good", **log.inputs(f"later{n}")) for n in range(50)))
    assert {result.program_version for result in results} == {2}


@pytest.mark.parametrize(
    ("program", "worse", "why"),
    [
        ("failing", "noted:Failing", "error rate 100.0%, before 0.0%"),
        ("slow", "noted:Slow", "mean run time "),
    ],
)
async def test_a_version_that_fails_or_is_slow_is_rolled_back_by_itself(pool, log, program, worse, why):
    await full(pool)
    failures = (await pool.status()).failures
    async with Load(pool, log, program) as load:
        await load.more(50)
        with pytest.raises(ProgramError, match="rolled back"):
            await pool.deploy(Deployment(program, 0, import_path=worse))
        hurt = len(load.failed)
        assert hurt or program == "slow"
        await load.more(200)
        assert len(load.failed) == hurt, "nobody meets the version that was taken back"
    seen = await rollout_of(pool, program)
    assert seen.phase == "rolled back"
    assert why in seen.reason or "all of its first" in seen.reason
    assert pool.client.membership.programs[program] == 1
    assert {(await pool.execute(program, **log.inputs(f"old{n}"))).program_version for n in range(20)} == {1}
    status = await pool.status()
    assert (status.state, status.failures) == ("ready", failures)


async def test_a_version_that_fails_on_load_changes_nothing(pool, log):
    await full(pool)
    before = pool.client.membership
    with pytest.raises(ProgramError, match="RuntimeError"):
        await pool.deploy(Deployment("unloadable", 0, import_path="noted:Unloadable"))
    seen = await rollout_of(pool, "unloadable")
    assert (seen.phase, seen.previous) == ("failed", 1)
    assert pool.client.membership == before
    assert (await pool.execute("unloadable", **log.inputs("after"))).program_version == 1


async def test_a_version_that_blocks_its_worker_is_rolled_back_and_the_worker_replaced(pool, log):
    await full(pool)
    async with Load(pool, log, "blocked") as load:
        await load.more(50)
        with pytest.raises(ProgramError, match="does not answer any more"):
            await pool.deploy(Deployment("blocked", 0, import_path="noted:Blocked"))
        await full(pool)
    assert (await rollout_of(pool, "blocked")).phase == "rolled back"
    results = [await pool.execute("blocked", **log.inputs(f"old{n}")) for n in range(20)]
    assert {result.program_version for result in results} == {1}


PROMPTS = "TEXT = {text!r}\n"
ANSWERS = """
import dspy

from .prompts import TEXT


class Answer(dspy.Module):
    def __init__(self, mark=""):
        super().__init__()
        self.mark = mark

    async def aforward(self, question):
        return dspy.Prediction(answer=TEXT + self.mark)
"""


@pytest.fixture
def shop(notes):
    """A package of a team's own that workers can import; its answers import their prompts."""
    package = Path(tempfile.mkdtemp(prefix="shop_", dir=notes))
    (package / "prompts.py").write_text(PROMPTS.format(text="old"))
    (package / "answers.py").write_text(ANSWERS)
    return package


async def test_edited_source_is_not_deployed_before_workers_have_it_and_a_number_keeps_its_code(
    start_pool, shop
):
    path = f"{shop.name}.answers:Answer"
    loud = Deployment("shop", 0, import_path=path, kwargs={"mark": "!"})
    pool = await start_pool(programs={"shop": {"import_path": path}}, allowed_imports=("noted", shop.name))
    await full(pool)
    with pytest.raises(Conflict, match="version 1 of shop already runs exactly this"):
        await pool.deploy(Deployment("shop", 0, import_path=path))
    assert (await pool.deploy(loud)).version == 2
    assert await answers(pool) == {"old!"}

    (shop / "prompts.py").write_text(PROMPTS.format(text="quite new"))
    tools = {"signature": "a -> b", "module": "ReAct", "settings": {"tools": [path]}}
    for wanted in (loud, Deployment("shop", 0, import_path=path), Deployment("other", 0, spec=tools)):
        with pytest.raises(Conflict, match="changed since workers imported it") as refused:
            await pool.deploy(wanted)
        assert str(shop / "prompts.py") in refused.value.message
    assert pool.client.membership.programs == {"shop": 2}
    # The way back is open as long as the workers have the code of then, whatever is on disk.
    for version, answer in ((1, "old"), (2, "old!")):
        await ask(pool.supervisor, "rollback", "shop", version)
        assert await answers(pool) == {answer}

    # Workers that start now have the new code under the old number. That is told, and ends with a deployment.
    for worker_id in pids(pool):
        await pool.restart(worker_id)
    await full(pool)
    told = await told_of(pool, "program.source_changed", 2)
    assert {(seen.metadata["program"], seen.metadata["version"]) for seen in told} == {("shop", 2)}
    assert (await pool.deploy(loud)).version == 3
    assert await answers(pool) == {"quite new!"}
    for version in (1, 2):
        with pytest.raises(Conflict, match=f"the source that version {version} of shop was made from"):
            await ask(pool.supervisor, "rollback", "shop", version)
    assert (await pool.execute("shop", question="which?")).program_version == 3


async def test_source_that_workers_are_forked_with_is_told_from_what_is_on_disk(start_pool, shop):
    path = f"{shop.name}.answers:Answer"
    steps = [
        {"step": "import_modules", "modules": [f"{shop.name}.answers"]},
        {"step": "load_programs"},
    ]
    pool = await start_pool(
        programs={"shop": {"import_path": path}}, allowed_imports=(shop.name,), warmup={"steps": steps}
    )
    await full(pool)
    (shop / "prompts.py").write_text(PROMPTS.format(text="quite new"))
    for worker_id in pids(pool):
        await pool.restart(worker_id)
    await full(pool)
    assert await answers(pool) == {"old"}
    with pytest.raises(Conflict, match="changed since workers imported it"):
        await pool.deploy(Deployment("shop", 0, import_path=path))
    assert not [seen for seen in (await pool.events()).events if seen.event == "program.source_changed"]


async def answers(pool):
    return {(await pool.execute("shop", question=str(number))).answer for number in range(16)}


async def told_of(pool, event, times):
    """Wait until it was told so often."""
    since, found = 0, []
    while len(found) < times:
        page = await pool.events(since, timeout_s=20.0)
        assert page.events, f"{event} was told {len(found)} times"
        found += [seen for seen in page.events if seen.event == event]
        since = page.next
    return found
