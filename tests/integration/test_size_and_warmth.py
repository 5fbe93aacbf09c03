"""Who is in service and when: warm-up, growth, draining, spares, lazy pools; queues and deadlines; the end."""

from __future__ import annotations

import asyncio
import time

import psutil
import pytest
import pytest_asyncio
from harness import PATIENCE_S, QUESTION, Load, actors_of, full, kill, pids, settings, until, until_status

from dspool.config import PoolConfig
from dspool.errors import (
    DeadlineExceeded,
    InvalidRequest,
    PoolPaused,
    QueueFull,
    UnknownPool,
    WorkerStartFailed,
)
from dspool.pool import Pool

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.both_starts
async def test_a_worker_that_is_added_takes_traffic_only_when_it_is_warm(pool, notes):
    await pool.resize(3)
    workers = await until(lambda: (now := pids(pool)) and len(now) == 3 and now)
    seen = time.time()
    warm = {int(pid): float(at) for pid, at in map(str.split, (notes / "warm").read_text().splitlines())}
    assert all(warm[pid] <= seen for pid in workers.values())
    await full(pool, 3)
    results = await asyncio.gather(*(pool.execute("qa", **QUESTION) for _ in range(200)))
    assert {result.worker for result in results} == set(workers)
    await pool.resize(2)
    await full(pool)


@pytest.mark.both_starts
async def test_shrinking_loses_no_operation_and_no_session(pool, log):
    await full(pool)
    sessions = [pool.session(f"moving-{index}") for index in range(6)]
    for index, session in enumerate(sessions):
        await session.create_program("p", import_path="noted:Noted")
        await session.set_variable("n", index)
    running = [asyncio.create_task(pool.execute("once", **log.inputs(f"f{n}", 0.3))) for n in range(40)]
    running += [
        asyncio.create_task(session.execute("p", **log.inputs(f"s{index}-{n}", 0.05)))
        for index, session in enumerate(sessions)
        for n in range(5)
    ]
    await until(lambda: len(log.labels("begin")) >= 16)
    await pool.resize(1)
    results = await asyncio.wait_for(asyncio.gather(*running), PATIENCE_S)
    assert len(results) == 70
    assert sorted(log.labels("begin")) == sorted(log.labels("end"))
    await full(pool, 1)
    for index, session in enumerate(sessions):
        assert (await session.get_variable("n"))["value"] == index
        assert [label for label in log.labels("begin") if label.startswith(f"s{index}-")] == [
            f"s{index}-{n}" for n in range(5)
        ]
    await pool.resize(2)
    await full(pool)


@pytest.mark.both_starts
async def test_a_drained_worker_is_replaced_and_its_operations_finish(pool, log):
    await full(pool)
    victim = next(iter(pids(pool)))
    running = [asyncio.create_task(pool.execute("once", **log.inputs(f"d{n}", 0.5))) for n in range(16)]
    await until(lambda: len(log.labels("begin")) == 16)
    await pool.drain(victim)
    assert len(await asyncio.gather(*running)) == 16
    await until(lambda: victim not in pids(pool))
    await full(pool)


@pytest.mark.both_starts
async def test_draining_one_worker_after_the_other_under_load_fails_no_operation(pool, log):
    await full(pool)
    async with Load(pool, log) as load:
        for _ in range(2):
            await load.more(50)
            await pool.drain(next(iter(pids(pool))))
            await full(pool)
    assert load.failed == {}


async def test_a_size_outside_the_bounds_is_refused_and_nothing_changes(pool):
    with pytest.raises(InvalidRequest, match="max_pool_size"):
        await pool.resize(99)
    assert (await pool.status()).desired == 2


async def test_a_paused_pool_refuses_what_is_new_until_it_is_resumed(pool):
    await pool.pause()
    with pytest.raises(PoolPaused):
        await pool.execute("qa", **QUESTION)
    await pool.resume()
    assert (await pool.execute("qa", **QUESTION)).answer == "Paris"


async def test_a_full_queue_refuses_at_once_and_deadlines_cover_queue_and_run(start_pool, log):
    pool = await start_pool(pool_size=1, slots_per_worker=1, max_queue=2)
    await full(pool, 1)
    first = asyncio.create_task(pool.execute("noted", **log.inputs("first", 3.0)))
    await until(lambda: log.labels("begin") == ["first"])
    impatient = asyncio.create_task(pool.execute("noted", timeout_s=0.3, **log.inputs("impatient")))
    patient = asyncio.create_task(pool.execute("noted", **log.inputs("patient")))
    await asyncio.sleep(0)
    queued = time.monotonic()
    taken = []
    # The best of some: beside busy processes any of them may be interrupted.
    while not taken or (min(taken) >= 0.1 and len(taken) < 20):
        began = time.monotonic()
        with pytest.raises(QueueFull) as refused:
            await pool.execute("noted", **log.inputs("refused"))
        taken.append(time.monotonic() - began)
    assert min(taken) < 0.1
    assert refused.value.retry_after_s > 0
    with pytest.raises(DeadlineExceeded) as late:
        await impatient
    assert late.value.phase == "queue"
    assert time.monotonic() - queued > 0.25
    assert not first.done()
    assert (await first).label == "first"
    assert (await patient).label == "patient"
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded) as late:
        await pool.execute("noted", timeout_s=0.3, **log.inputs("slow", 60))
    assert late.value.phase == "run"
    assert time.monotonic() - began < 30.0
    assert log.labels("begin") == ["first", "patient", "slow"]
    assert (await pool.execute("noted", **log.inputs("next"))).label == "next"


async def test_a_warm_up_step_that_fails_ends_the_start_with_its_name_and_reason(start_pool):
    with pytest.raises(WorkerStartFailed, match="the model file is not there") as failed:
        await start_pool(
            name="cold",
            pool_size=1,
            init_timeout_s=15,
            restart={"intensity": 1000, "backoff_s": 1.0, "backoff_max_s": 5.0},
            warmup={
                "worker_deadline_s": 14,
                "steps": [{"step": "custom_code", "import_path": "noted:refuses"}],
            },
        )
    assert "custom_code" in str(failed.value)
    assert actors_of("cold") == []


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def faulty(start_module_pool):
    """A pool of one worker whose warm-up does what the file `fault` says."""
    steps = [{"step": "custom_code", "import_path": "noted:faulty", "timeout_s": 3.0}]
    return await start_module_pool(pool_size=1, warmup={"steps": steps})


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("hungry", "MemoryError"),
        ("hangs", "(custom_code) failed: not done within 3 s"),
        ("killed", "died"),
        ("exits", "there is no licence"),
    ],
)
async def test_a_fault_in_warm_up_keeps_the_new_worker_out_and_the_pool_whole_once_it_is_gone(
    faulty, notes, log, fault, why
):
    """Too little memory (as Python and as the kernel say it), and a step without an end."""
    pool, mark = faulty, notes / "fault"
    await full(pool, 1)
    (first,) = pids(pool)
    mark.write_text(fault)
    await pool.resize(2)
    status = await until_status(pool, lambda now: why in now.reason)
    assert set(pids(pool)) == {first}
    assert status.ready
    assert (await pool.execute("noted", **log.inputs("meanwhile"))).worker == first
    mark.unlink()
    await full(pool, 2)
    await pool.resize(1)


async def test_a_pool_is_ready_with_min_ready_workers_while_others_are_slow_or_fail(start_pool, notes, log):
    for place in ("first", "second", "started", "go"):
        (notes / place).unlink(missing_ok=True)
    pool = await start_pool(
        pool_size=3,
        warmup={"min_ready": 1, "steps": [{"step": "custom_code", "import_path": "noted:one_of_three"}]},
        restart={"intensity": 1000, "backoff_s": 0.5, "backoff_max_s": 0.5},
    )
    (first,) = pids(pool)
    (notes / "started").touch()
    status = await until_status(pool, lambda now: "there is room for two" in now.reason)
    assert (status.ready, status.desired, status.actual) == (True, 3, 1)
    assert (await pool.execute("noted", **log.inputs("meanwhile"))).worker == first
    (notes / "go").touch()
    await full(pool, 3)
    assert first in pids(pool)
    await until_status(pool, lambda now: now.state == "ready")


async def test_a_spare_is_promoted_when_a_worker_dies(start_pool):
    pool = await start_pool(pool_size=1, spares=1)
    await full(pool, 1)
    spare = None
    while spare is None:
        status = await pool.status()
        spare = next((worker for worker in status.workers if worker.state == "spare"), None)
        await asyncio.sleep(0.05)
    victim, pid = next(iter(pids(pool).items()))
    assert spare.id != victim
    results = [await pool.execute("qa", **QUESTION) for _ in range(10)]
    assert {result.worker for result in results} == {victim}
    kill(pid)
    assert (await pool.execute("qa", **QUESTION)).worker == spare.id
    assert pids(pool) == {spare.id: spare.pid}


async def test_a_lazy_pool_starts_its_workers_at_the_first_operation_and_nothing_is_left_of_it(
    cluster, tmp_path
):
    config = PoolConfig(**settings(tmp_path, lazy=True, pool_size=1, warmup={"min_ready": 0}))
    async with Pool.start(config) as pool:
        await asyncio.sleep(0.2)
        status = await pool.status()
        assert (status.workers, status.ready) == ((), True)
        assert len(actors_of(pool.name)) == 3
        assert (await pool.execute("qa", **QUESTION)).answer == "Paris"
        assert (await pool.status()).actual == 1
        assert len(actors_of(pool.name)) == 4
        workers = list(pids(pool).values())
    assert actors_of(pool.name) == []
    with pytest.raises(UnknownPool):
        await Pool.connect(pool.name)
    await until(lambda: not any(psutil.pid_exists(pid) for pid in workers))
