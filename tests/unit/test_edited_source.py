"""Versions are content: what becomes of source that somebody edits while a pool runs, or between two lives of it."""

from __future__ import annotations

import asyncio

import pytest

from dspool.core.lifecycle.source import ImportedSource
from dspool.errors import Conflict, ProgramError
from dspool.messages import Deployment
from dspool.telemetry import events as telemetry
from dspool.testing.doubles import settle
from tests.unit.supervision import SPEC, Traffic, deploying, pool

SHOP = {"programs": {"qa": {"import_path": "shop.answers:Answer"}}, "allowed_imports": ("shop", "other")}
ANSWER = Deployment("qa", 0, import_path="shop.answers:Answer")
AGAIN = Deployment("qa", 0)


class Disk:
    """The source as it is on disk: what each worker that starts imports. A script for `FakeRuntime`."""

    def __init__(self, **modules):
        self.files = {name.replace("__", "."): digest for name, digest in modules.items()}
        self.broken = False
        self.workers = []

    def __call__(self, worker):
        worker.imported = ImportedSource(dict(self.files))
        worker.deploy_faults = {"qa": "raise"} if self.broken else {}
        self.workers.append(worker)

    def edit(self, **modules):
        self.files |= {name.replace("__", "."): digest for name, digest in modules.items()}
        for worker in self.workers:
            old = worker.imported.modules
            changed = {name: f"/app/{name}.py" for name in old if old[name] != self.files[name]}
            worker.imported = ImportedSource(old, changed)


def has(s, program="qa"):
    """What each worker answers with: the version and the source of its answers."""
    return sorted((w.active[program], w.imported.modules["shop.answers"]) for w in s.runtime.alive)


@pytest.fixture
def events():
    found = []

    def handler(name, measurements, metadata):
        assert telemetry.undeclared(name, measurements, metadata) == set()
        found.append(metadata)

    telemetry.attach(handler, ["program.source_changed"])
    yield found
    telemetry.detach(handler)


@pytest.mark.parametrize("wanted", [ANSWER, AGAIN], ids=["named", "as it is"])
async def test_edited_source_is_deployed_through_new_processes_and_gets_a_number_of_its_own(wanted):
    disk = Disk(shop__answers="a1", shop__prompts="p1")
    async with pool(disk, pool_size=2, spares=1, **SHOP) as s:
        assert has(s) == [(1, "a1")] * 3
        disk.edit(shop__answers="a2")
        done = await deploying(s, wanted)
        assert (done.version, done.made_by) == (2, "reload")
        await s.clock.advance(5.0)
        assert has(s) == [(2, "a2")] * 3
        assert (await s.supervisor.watch(0)).programs == {"qa": 2}
        (rollout,) = await s.supervisor.recent_rollouts()
        assert (rollout.phase, rollout.workers_done, rollout.workers_total) == ("done", 4, 4)
        with pytest.raises(Conflict, match="version 2 of qa already runs exactly this"):
            await deploying(s, wanted)


async def test_while_new_source_is_tried_one_new_worker_has_it_and_the_old_ones_serve_on():
    disk = Disk(shop__answers="a1")
    async with pool(disk, traffic=Traffic(v2=(0, 0, 0.0)), pool_size=2, **SHOP) as s:
        disk.edit(shop__answers="a2")
        task = asyncio.create_task(s.supervisor.deploy(AGAIN))
        await s.clock.advance(1.0)
        assert has(s) == [(1, "a1"), (1, "a1"), (2, "a2")]
        assert len(await s.members()) == 3
        await s.clock.advance(30.0)
        await task
        assert has(s) == [(2, "a2")] * 2


async def test_without_a_trial_the_only_worker_is_replaced_at_once():
    disk = Disk(shop__answers="a1")
    async with pool(disk, pool_size=1, **SHOP) as s:
        disk.edit(shop__answers="a2")
        task = asyncio.create_task(s.supervisor.deploy(AGAIN, canary_s=0))
        await settle()
        assert (await task).version == 2
        assert len(await s.members()) == 1
        assert has(s) == [(2, "a2")]


async def test_new_source_that_does_worse_goes_back_and_its_number_with_it():
    disk = Disk(shop__answers="a1")
    async with pool(disk, traffic=Traffic(v2=(10, 9, 0.1)), pool_size=2, **SHOP) as s:
        disk.edit(shop__answers="a2")
        with pytest.raises(ProgramError, match="version 2 of qa was rolled back: error rate 90"):
            await deploying(s, AGAIN)
        assert has(s) == [(1, "a1")] * 2
        disk.edit(shop__answers="a3")
        assert (await deploying(s, AGAIN)).version == 3
        assert has(s) == [(3, "a3")] * 2


async def test_source_that_does_not_load_changes_nothing_however_often_it_is_tried():
    disk = Disk(shop__answers="a1")
    async with pool(disk, pool_size=2, **SHOP) as s:
        disk.edit(shop__answers="a2")
        disk.broken = True
        for _ in range(8):
            with pytest.raises(ProgramError, match="scripted fault: cannot load qa"):
                await deploying(s, AGAIN)
        assert has(s) == [(1, "a1")] * 2
        status = await s.status()
        assert (status.state, status.failures) == ("ready", 0)
        assert (await s.supervisor.recent_rollouts())[0].reason == "scripted fault: cannot load qa"
        disk.broken = False
        await deploying(s, AGAIN)
        assert [source for _, source in has(s)] == ["a2"] * 2


async def test_a_worker_that_starts_after_an_edit_stays_out_while_others_serve(events):
    disk = Disk(shop__answers="a1")
    async with pool(disk, pool_size=2, **SHOP) as s:
        disk.edit(shop__answers="a2")
        s.runtime.worker(ordinal=0).die()
        await s.clock.advance(30.0)
        assert len(await s.members()) == 1
        assert "shop.answers differs" in (await s.status()).reason
        assert events[0]["reason"].startswith(
            "version 1 of qa is made of other source than there is: shop.answers"
        )
        # It is brought back, or deployed.
        disk.edit(shop__answers="a1")
        await s.clock.advance(60.0)
        assert has(s) == [(1, "a1")] * 2
        s.runtime.worker(ordinal=0).die()
        disk.edit(shop__answers="a2")
        await s.clock.advance(30.0)
        assert (await deploying(s, AGAIN, seconds=90.0)).version == 2
        await s.clock.advance(60.0)
        assert has(s) == [(2, "a2")] * 2


@pytest.mark.parametrize("survivors", [False, True], ids=["all at once", "one by one"])
async def test_when_nobody_serves_any_more_the_source_that_there_is_becomes_a_version(events, survivors):
    disk = Disk(shop__answers="a1")
    async with pool(disk, pool_size=3, **SHOP) as s:
        disk.edit(shop__answers="a2")
        for worker in s.runtime.alive:
            worker.die()
            if survivors:
                await s.clock.advance(1.0)
        await s.clock.advance(90.0)
        assert has(s) == [(2, "a2")] * 3
        assert all(w.loaded == {"qa": {2}} for w in s.runtime.alive)
        assert (await s.supervisor.watch(0)).programs == {"qa": 2}
        (current,) = await s.supervisor.deployments()
        assert (current.made_by, current.source) == ("restart", {"shop.answers": "a2"})
        assert "it is version 2 now" in events[-1]["reason"]


async def test_a_pool_that_starts_with_edited_source_makes_a_version_of_it(events):
    disk = Disk(shop__answers="a1")
    async with pool(disk, pool_size=2, **SHOP) as s:
        await s.supervisor.shutdown(0.0)
    disk.edit(shop__answers="a2")
    async with pool(disk, store=s.store, pool_size=2, **SHOP) as s:
        await s.clock.advance(5.0)
        assert has(s) == [(2, "a2")] * 2
        assert [about["version"] for about in events] == [1]
        with pytest.raises(Conflict, match=r"version 1 of qa was made from: shop\.answers"):
            await s.supervisor.rollback("qa", 1)


async def test_a_roll_back_goes_to_source_that_is_back_on_disk_and_to_none_else():
    disk = Disk(shop__answers="a1")
    async with pool(disk, pool_size=2, **SHOP) as s:
        disk.edit(shop__answers="a2")
        await deploying(s, AGAIN)
        with pytest.raises(Conflict, match=r"version 1 of qa was made from: shop\.answers changed"):
            await s.supervisor.rollback("qa", 1)
        disk.edit(shop__answers="a3")
        task = asyncio.create_task(s.supervisor.rollback("qa", 1))
        await s.clock.advance(30.0)
        with pytest.raises(Conflict, match=r"version 1 of qa is made of other source than there is"):
            await task
        assert has(s) == [(2, "a2")] * 2
        disk.edit(shop__answers="a1")
        task = asyncio.create_task(s.supervisor.rollback("qa"))
        await s.clock.advance(30.0)
        assert (await task).version == 1
        assert has(s) == [(1, "a1")] * 2


async def test_all_programs_that_are_made_of_edited_source_go_with_it():
    programs = {
        "qa": SHOP["programs"]["qa"],
        "shout": {"import_path": "shop.answers:Shout"},
        "plain": {"spec": SPEC},
    }
    disk = Disk(shop__answers="a1")
    async with pool(disk, pool_size=2, programs=programs, allowed_imports=("shop",)) as s:
        disk.edit(shop__answers="a2")
        assert (await deploying(s, AGAIN)).version == 2
        assert (await s.supervisor.watch(0)).programs == {"plain": 1, "qa": 2, "shout": 2}
        assert has(s, "shout") == [(2, "a2")] * 2


@pytest.mark.parametrize("setting", [{"tools": ["shop.answers:look"]}, {"reward": "shop.answers:look"}])
async def test_what_a_spec_names_by_import_path_counts_as_well(setting):
    disk = Disk(shop__answers="t1")
    async with pool(disk, pool_size=1, allowed_imports=("shop",)) as s:
        wanted = Deployment("qa", 0, spec={**SPEC, "settings": setting})
        await deploying(s, wanted)
        with pytest.raises(Conflict, match="already runs"):
            await deploying(s, wanted)
        disk.edit(shop__answers="t2")
        assert (await deploying(s, wanted)).version == 3
        assert has(s) == [(3, "t2")]


async def test_a_worker_elsewhere_with_other_source_is_named_and_keeps_the_version_it_has():
    """Two nodes whose disks differ."""
    disk = Disk(shop__answers="a1")
    elsewhere = Disk(shop__answers="a1")
    async with pool(disk, pool_size=2, **SHOP) as s:
        s.runtime.worker(ordinal=1).die()
        s.runtime.script = elsewhere
        await s.clock.advance(5.0)
        assert has(s) == [(1, "a1")] * 2
        disk.edit(shop__answers="a2")
        with pytest.raises(Conflict, match=r"which just started, has shop\.answers as in version 1 of qa"):
            await deploying(s, AGAIN)
        assert has(s) == [(1, "a1")] * 2
        places = iter([disk])
        s.runtime.script = lambda worker: next(places, elsewhere)(worker)
        assert (await deploying(s, AGAIN, seconds=400.0)).version == 3
        assert has(s) == [(1, "a1"), (3, "a2")]
        assert "shop.answers differs" in (await s.supervisor.recent_rollouts())[0].reason


async def test_a_successor_ends_a_fresh_canary_and_nobody_gets_its_number():
    disk = Disk(shop__answers="a1")
    async with pool(disk, traffic=Traffic(v2=(0, 0, 0.0)), pool_size=2, **SHOP) as s:
        disk.edit(shop__answers="a2")
        task = asyncio.create_task(s.supervisor.deploy(AGAIN))
        await s.clock.advance(1.0)
        assert has(s)[-1] == (2, "a2")
        await s.successor()
        assert has(s) == [(1, "a1")] * 2
        task.cancel()
        assert (await deploying(s, AGAIN)).version == 3
        assert has(s) == [(3, "a2")] * 2
