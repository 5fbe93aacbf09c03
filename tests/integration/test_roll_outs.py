"""New versions of a pool program under load, judged by what the workers really measured."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import dspy
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
        pytest.param("slow", "noted:Slow", "mean run time ", marks=pytest.mark.long),
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
        with pytest.raises(ProgramError, match=r"does not answer any more|left the pool"):
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


async def test_edited_source_is_deployed_through_new_workers_and_a_number_keeps_its_code(start_pool, shop):
    path = f"{shop.name}.answers:Answer"
    again = Deployment("shop", 0)
    programs = {"shop": {"import_path": path}, "loud": {"import_path": path, "kwargs": {"mark": "!"}}}
    pool = await start_pool(programs=programs, allowed_imports=("noted", shop.name))
    await full(pool)
    with pytest.raises(Conflict, match="version 1 of shop already runs exactly this"):
        await pool.deploy(again)
    seen = {"old": 1}

    async def holds(now):
        for number in range(16):
            result = await pool.execute("shop", question=str(number))
            assert seen.setdefault(result.answer, result.program_version) == result.program_version
        assert result.answer == now

    (shop / "prompts.py").write_text(PROMPTS.format(text="new"))
    await holds("old")
    assert (await pool.deploy(again, canary_s=1.0)).version == 2
    await holds("new")
    assert (await pool.execute("loud", question="?")).answer == "new!"
    assert pool.client.membership.programs == {"shop": 2, "loud": 2}

    (shop / "answers.py").write_text("import dspy\n\nclass Answer(dspy.Module:\n")
    with pytest.raises(ProgramError, match="SyntaxError"):
        await pool.deploy(again)
    await holds("new")

    # Somebody is half done when a worker dies: its successor waits for the end of that.
    (shop / "answers.py").write_text(ANSWERS)
    (shop / "prompts.py").write_text(PROMPTS.format(text="half"))
    kill(next(iter(pids(pool).values())))
    (about, *_) = await told_of(pool, "program.source_changed", 1)
    assert (about.metadata["program"], about.metadata["version"]) in {("shop", 2), ("loud", 2)}
    await holds("new")
    (shop / "prompts.py").write_text(PROMPTS.format(text="new"))
    await full(pool)
    await holds("new")
    with pytest.raises(Conflict, match="the source that version 1 of shop was made from"):
        await ask(pool.supervisor, "rollback", "shop", 1)
    (shop / "prompts.py").write_text(PROMPTS.format(text="old"))
    assert (await ask(pool.supervisor, "rollback", "shop", 1)).version == 1
    await holds("old")
    assert (await pool.execute("loud", question="?")).answer == "old!"


@pytest.mark.long
async def test_workers_that_are_forked_from_a_parent_with_edited_source_get_the_new_source(start_pool, shop):
    path = f"{shop.name}.answers:Answer"
    steps = [
        {"step": "import_modules", "modules": [f"{shop.name}.answers"]},
        {"step": "load_programs"},
    ]
    pool = await start_pool(
        programs={"shop": {"import_path": path}}, allowed_imports=(shop.name,), warmup={"steps": steps}
    )
    await full(pool)
    old = set(pids(pool).values())
    (shop / "prompts.py").write_text(PROMPTS.format(text="quite new"))
    done = await pool.deploy(Deployment("shop", 0))
    assert done.version == 2
    # On a machine that is busy the last of them goes after the deployment has returned.
    await until(lambda: old.isdisjoint(pids(pool).values()))
    assert await answers(pool) == {"quite new"}
    assert {status.start for status in (await pool.status()).workers} == {"fork"}


TUNABLE = """
import dspy


class Answer(dspy.Module):
    def __init__(self):
        super().__init__()
        self.p = dspy.Predict("question -> answer")

    async def aforward(self, question):
        return dspy.Prediction(answer={mark!r} + self.p.signature.instructions)
"""


async def test_tuned_state_goes_onto_code_of_ones_own_and_stays_through_an_edit(start_pool, shop, notes):
    tuned = dspy.Predict(dspy.Signature("question -> answer", "tuned"))
    (shop / "answers.py").write_text(TUNABLE.format(mark="old "))
    pool = await start_pool(
        programs={"shop": {"import_path": f"{shop.name}.answers:Answer"}},
        allowed_imports=("noted", shop.name),
        allowed_program_dirs=(notes,),
    )
    await full(pool)
    await pool.deploy(Deployment("shop", 0, state={"p": tuned.dump_state()}), canary_s=0.0)
    assert await answers(pool) == {"old tuned"}
    (shop / "answers.py").write_text(TUNABLE.format(mark="new "))
    await pool.deploy(Deployment("shop", 0), canary_s=0.0)
    assert await answers(pool) == {"new tuned"}
    versions = {one.version: one for one in await pool.deployments() if one.program == "shop"}
    assert [versions[number].made_by for number in (1, 2, 3)] == ["config", "deploy", "reload"]
    assert versions[1].source == versions[2].source != versions[3].source
    saved = Path(notes) / "saved"
    tuned.save(saved, save_program=True)
    whole = await pool.deploy(Deployment("whole", 0, program_dir=str(saved)), canary_s=0.0)
    assert (whole.version, len(whole.source)) == (1, 2)
    assert (await pool.execute("whole", question="?")).answer


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
