"""The whole supervisor under random faults: when they stop, the pool is whole again and nothing is left over."""

from __future__ import annotations

import asyncio
import itertools

import hypothesis.strategies as st
from hypothesis import given, settings

from dspool.config import PoolConfig
from dspool.errors import StoreFailed
from dspool.messages import Deployment
from dspool.supervisor import Supervisor
from dspool.testing.doubles import FakeClock, FakeRuntime, FakeStore, settle

MIN, MAX = 1, 4
FAULTS = ("raise", "hang", "die")
SPEC = {"signature": "question -> answer", "module": "Predict"}

moments = st.lists(
    st.one_of(
        st.tuples(st.just("die"), st.integers(0, 9)),
        st.tuples(st.just("block"), st.integers(0, 9)),
        st.tuples(st.just("report"), st.integers(0, 9)),
        st.tuples(st.just("drain"), st.integers(0, 9)),
        st.tuples(st.just("restart"), st.integers(0, 9)),
        st.tuples(st.just("resize"), st.integers(MIN, MAX)),
        st.tuples(st.just("successor"), st.just(0)),
        st.tuples(st.just("bad start"), st.sampled_from(FAULTS)),
        st.tuples(st.just("bad step"), st.sampled_from(FAULTS)),
        st.tuples(st.just("bad drain"), st.sampled_from(FAULTS)),
        st.tuples(st.just("bad deploy"), st.sampled_from(FAULTS)),
        st.tuples(st.just("deploy"), st.just(0)),
        st.tuples(st.just("warm"), st.sampled_from(["parallel", "sequential", "staged"])),
        st.tuples(st.just("all is well"), st.just(0)),
        st.tuples(st.just("store"), st.booleans()),
        st.tuples(st.just("time"), st.sampled_from([0.0, 0.05, 1.0, 7.0, 40.0])),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(
    moments,
    st.integers(0, 2),
    st.sampled_from(["parallel", "sequential", "staged"]),
    st.sampled_from([0.0, 0.3]),
)
def test_when_faults_stop_the_pool_is_whole_and_nothing_is_left_over(happens, spares, strategy, step_s):
    asyncio.run(_life(happens, spares, strategy, step_s))


async def _life(happens, spares, strategy, step_s):
    clock = FakeClock()
    faults = {"step_s": step_s}
    runtime = FakeRuntime(clock, lambda worker: [setattr(worker, k, v) for k, v in faults.items()])
    store = FakeStore()
    config = PoolConfig(
        pool_size=2,
        programs={"qa": {"spec": SPEC}},
        min_pool_size=MIN,
        max_pool_size=MAX,
        spares=spares,
        init_timeout_s=10.0,
        operation_timeout_s=12.0,
        warmup={"strategy": strategy, "worker_deadline_s": 10.0},
    )
    counter = itertools.count()
    versions = []

    async def begin():
        new = Supervisor(
            config,
            runtime,
            store,
            random=lambda: 0.5,
            new_hex=lambda: f"{next(counter):06x}",
            **clock.as_arguments(),
        )
        starting = asyncio.create_task(new.start())
        await clock.advance(3.0)
        await starting
        return new

    async def look():
        membership = await supervisor.watch(0, 0)
        if not versions or membership.version != versions[-1]:
            versions.append(membership.version)
        ordinals = [worker.ordinal for worker in runtime.alive]
        assert len(ordinals) == len(set(ordinals))
        known = {worker.id for worker in (await supervisor.status(fresh=False)).workers}
        assert {worker.worker_id for worker in runtime.alive} <= known
        for member in membership.workers:
            assert "load_programs" in runtime.named(member.worker_id).steps

    supervisor = await begin()
    tasks = []
    for what, value in happens:
        some = runtime.alive[value % len(runtime.alive)] if runtime.alive and isinstance(value, int) else None
        match what:
            case "die" if some:
                some.die()
            case "block" if some:
                some.healthy = False
            case "report" if some:
                await supervisor.report_dead(some.worker_id, "connection reset")
            case "drain" | "restart" if some:
                tasks.append(asyncio.create_task(getattr(supervisor, what)(some.worker_id)))
            case "resize":
                await supervisor.resize(value)
            case "successor" if store.down is None:
                for loop in [*supervisor._loops, *tasks]:
                    loop.cancel()  # what the dead one had begun ends with it
                await supervisor._workers.close()
                supervisor = await begin()
            case "bad start":
                faults["start_fault"] = value
            case "bad step":
                faults["step_faults"] = {0: value}
            case "bad drain":
                faults["drain_fault"] = value
            case "bad deploy":
                for worker in runtime.alive[::2]:
                    worker.deploy_faults = {"qa": value}
            case "deploy":
                version = Deployment("qa", 0, spec={**SPEC, "settings": {"max_tokens": 1 + len(tasks)}})
                tasks.append(asyncio.create_task(supervisor.deploy(version)))
            case "warm":
                tasks.append(asyncio.create_task(supervisor.warm(value)))
            case "all is well":
                faults = {"step_s": step_s}
            case "store":
                store.down = StoreFailed("no store") if value else None
            case "time":
                await clock.advance(value)
        await settle()
        await look()

    faults = {"step_s": step_s}
    store.down = None
    for worker in runtime.alive:
        worker.healthy, worker.drain_fault, worker.deploy_faults = True, None, {}
    await clock.advance(120.0)
    await look()
    status = await supervisor.status(fresh=False)
    assert status.state == "ready", status
    assert status.actual == status.desired
    assert status.spares == spares
    assert len(runtime.alive) == status.desired + spares
    assert all(worker.active == status.programs for worker in runtime.alive), (
        "not all run the current version"
    )
    assert versions == sorted(versions)
    dead = {worker.worker_id for worker in runtime.workers} - {worker.worker_id for worker in runtime.alive}
    freed = set(store.dead) | (dead if store.alive else set())
    assert dead <= freed, "leases of a dead worker were not freed"

    closing = asyncio.create_task(supervisor.shutdown(20.0))
    await clock.advance(40.0)
    await closing
    assert runtime.alive == []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
