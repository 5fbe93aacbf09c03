"""One version number never runs two codes: a pool whose source is edited, whose workers die and whose supervisor starts
anew, against a record of what each number ever answered with."""

from __future__ import annotations

import asyncio

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dspool.core.lifecycle.source import ImportedSource
from dspool.errors import PoolError
from dspool.messages import Deployment
from tests.unit.supervision import Scene, Traffic

PROGRAMS = {"qa": {"import_path": "shop.answers:Answer"}, "shout": {"import_path": "shop.answers:Shout"}}
MODULES = ("shop.answers", "shop.prompts")


class Versions(RuleBasedStateMachine):
    @initialize(size=st.integers(1, 3), spares=st.integers(0, 1))
    def start(self, size, spares):
        self.files = dict.fromkeys(MODULES, 0)
        self.broken = False
        self.settings = {
            "pool_size": size,
            "spares": spares,
            "programs": PROGRAMS,
            "allowed_imports": ("shop",),
        }
        self.loop = asyncio.Runner()
        self.answered: dict[tuple[str, int], object] = {}
        """By program and version, the code and arguments that it was ever seen to answer with."""
        self.traffic = Traffic()
        self.scene = None
        self.run(self.begin(None))

    def run(self, work):
        return self.loop.run(work)

    async def begin(self, store):
        self.scene = Scene(self.worker_starts, store=store, **self.settings)
        await self.scene.supervisor.start()
        self.asking = asyncio.create_task(self.traffic.run(self.scene))
        await self.pass_time(2.0)

    def worker_starts(self, worker):
        worker.imported = ImportedSource({name: str(digest) for name, digest in self.files.items()})
        worker.arguments = {}
        load = worker.deploy

        async def deploy(d):
            if self.broken:
                raise PoolError("a syntax error")
            await load(d)
            worker.arguments[d.program, d.version] = d.kwargs

        worker.deploy = deploy

    async def pass_time(self, seconds):
        """A moment at a time, and each time a look at what would answer."""
        for _ in range(int(seconds * 4)):
            await self.scene.clock.advance(0.25)
            self.look()

    def look(self):
        members = {m.worker_id for m in self.scene.supervisor._state.membership.workers}
        for worker in self.scene.runtime.alive:
            if worker.worker_id in members:
                for program, version in worker.active.items():
                    code = worker.imported.modules, worker.arguments[program, version]
                    before = self.answered.setdefault((program, version), code)
                    assert before == code, f"version {version} of {program} runs two codes"

    # --- what people do --------------------------------------------------------------------------------

    @rule(module=st.sampled_from(MODULES), digest=st.integers(0, 2))
    def somebody_edits(self, module, digest):
        self.files[module] = digest
        for worker in self.scene.runtime.alive:
            old = worker.imported.modules
            changed = {name: name for name in old if old[name] != str(self.files[name])}
            worker.imported = ImportedSource(old, changed)

    @rule(broken=st.booleans())
    def somebody_is_half_done(self, broken):
        self.broken = broken

    @rule(
        program=st.sampled_from(sorted(PROGRAMS)),
        arguments=st.sampled_from([None, {"n": 1}, {"n": 2}]),
        worse=st.booleans(),
        canary_s=st.sampled_from([0.0, 10.0]),
        patience_s=st.sampled_from([0.5, 40.0]),
    )
    def somebody_deploys(self, program, arguments, worse, canary_s, patience_s):
        wanted = Deployment(program, 0)
        if arguments is not None:
            wanted = Deployment(program, 0, import_path=PROGRAMS[program]["import_path"], kwargs=arguments)
        self.traffic.rows = dict.fromkeys(range(200), (10, 9, 0.1)) if worse else {}
        self.run(self.attempt(self.scene.supervisor.deploy(wanted, canary_s=canary_s), patience_s))

    @rule(program=st.sampled_from(sorted(PROGRAMS)), version=st.integers(1, 6))
    def somebody_rolls_back(self, program, version):
        self.run(self.attempt(self.scene.supervisor.rollback(program, version), 20.0))

    async def attempt(self, work, patience_s):
        task = asyncio.create_task(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await self.pass_time(patience_s)
        if task.done() and (error := task.exception()) is not None:
            assert isinstance(error, PoolError), error

    # --- what the world does ---------------------------------------------------------------------------

    @rule(which=st.integers(0, 3), seconds=st.sampled_from([0.5, 30.0]))
    def a_worker_dies(self, which, seconds):
        async def die():
            if alive := self.scene.runtime.alive:
                alive[which % len(alive)].die()
            await self.pass_time(seconds)

        self.run(die())

    @rule()
    def the_supervisor_dies(self):
        async def die():
            await self.scene.successor()
            await self.pass_time(5.0)

        self.run(die())

    @rule()
    def the_pool_is_restarted(self):
        async def restart():
            self.asking.cancel()
            task = asyncio.create_task(self.scene.supervisor.shutdown(0.0))
            await self.scene.clock.advance(60.0)
            await task
            await self.begin(self.scene.store)

        self.run(restart())

    @precondition(lambda self: getattr(self, "scene", None) is not None)
    @invariant()
    def what_would_answer_is_what_it_was(self):
        self.look()

    def teardown(self):
        """Once the source is whole and stays as it is, the pool serves."""
        if getattr(self, "scene", None) is None:
            return
        self.broken = False
        self.traffic.rows = {}

        async def end():
            await self.attempt(self.scene.supervisor.deploy(Deployment("qa", 0), canary_s=0.0), 200.0)
            await self.pass_time(100.0)
            members = await self.scene.members()
            self.asking.cancel()
            await self.scene.end()
            assert len(members) == self.settings["pool_size"]

        self.run(end())
        self.loop.close()


TestVersions = Versions.TestCase
TestVersions.settings = settings(max_examples=10, stateful_step_count=12, deadline=None)
