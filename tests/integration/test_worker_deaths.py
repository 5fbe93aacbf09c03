"""What a SIGKILL of a worker, or the death of a client, does to operations, sessions and slots."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from harness import PATIENCE_S, QUESTION, SecondClient, actors_of, full, kill, owner_of, pids, until

from dspool.errors import Cancelled, WorkerLost
from dspool.messages import Result

# How a worker was started shows most when it dies.
pytestmark = [pytest.mark.ray, pytest.mark.both_starts, pytest.mark.asyncio(loop_scope="session")]


async def killed_under_load(pool, log, program, number=60):
    """Kill one of two workers while `number` operations run and wait; how each ended, by label."""
    await full(pool)
    labels = [f"{program}{index}" for index in range(number)]
    running = {
        label: asyncio.create_task(pool.execute(program, **log.inputs(label, 0.2))) for label in labels
    }
    victim, pid = sorted(pids(pool).items())[0]
    await until(lambda: sum(entry.pid == pid for entry in log.entries()) >= 4)
    kill(pid)
    _, hanging = await asyncio.wait(running.values(), timeout=PATIENCE_S)
    assert not hanging
    await until(lambda: victim not in pids(pool))
    return {label: task.exception() or task.result() for label, task in running.items()}


async def test_idempotent_operations_of_a_killed_worker_run_again_and_none_fails_or_hangs(pool, log):
    outcomes = await killed_under_load(pool, log, "noted")
    assert [label for label, outcome in outcomes.items() if not isinstance(outcome, Result)] == []
    # Each caller got the answer to its own question.
    assert all(outcome.label == label for label, outcome in outcomes.items())
    begun = Counter(log.labels("begin"))
    assert max(begun.values()) == 2
    assert min(begun.values()) == 1


async def test_other_operations_end_with_worker_lost_if_they_had_started_and_never_run_twice(pool, log):
    outcomes = await killed_under_load(pool, log, "once")
    begun = Counter(log.labels("begin"))
    lost = {label for label, outcome in outcomes.items() if isinstance(outcome, WorkerLost)}
    answered = {label for label, outcome in outcomes.items() if isinstance(outcome, Result)}
    assert lost | answered == set(outcomes)
    assert 1 <= len(lost) <= pool.client.config.slots_per_worker
    assert max(begun.values()) == 1
    assert answered <= set(log.labels("end"))
    assert all(outcomes[label].details["worker"] not in pids(pool) for label in lost)


async def test_what_was_acknowledged_in_a_session_is_there_after_its_worker_was_killed(pool):
    await full(pool)
    sessions = [pool.session(f"survivor-{index}") for index in range(6)]
    for index, session in enumerate(sessions):
        await session.create_program("reader", "context, question -> answer")
        await session.set_variable("number", index)
    victim = await owner_of(pool, sessions[0].id)
    kill(pids(pool)[victim])
    await until(lambda: victim not in pids(pool))
    for index, session in enumerate(sessions):
        assert (await session.execute("reader", **QUESTION)).answer == "Paris"
        assert (await session.get_variable("number"))["value"] == index
    assert await owner_of(pool, sessions[0].id) not in (victim, None)


async def test_every_acknowledged_change_survives_a_kill_in_the_midst_of_changes(pool):
    await full(pool)
    session = pool.session("writer")
    await session.set_variable("n", 0)
    acknowledged = 0

    async def write():
        nonlocal acknowledged
        while True:
            await session.set_variable("n", acknowledged + 1)
            acknowledged += 1

    writing = asyncio.create_task(write())
    await until(lambda: acknowledged >= 20)
    kill(pids(pool)[await owner_of(pool, session.id)])
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(writing, PATIENCE_S)
    # The one that was under way may have been committed or not; none before it is lost.
    assert (await session.get_variable("n"))["value"] in (acknowledged, acknowledged + 1)


async def test_a_dead_worker_is_replaced_by_a_warm_one(pool, notes):
    await full(pool)
    before = pids(pool)
    victim = next(iter(before))
    kill(before[victim])
    await until(lambda: victim not in pids(pool))
    await full(pool)
    assert len(actors_of(pool.name)) == 5
    warm = {int(line.split()[0]) for line in (notes / "warm").read_text().splitlines()}
    assert set(pids(pool).values()) <= warm
    assert (await pool.status()).state == "ready"


async def test_cancelled_operations_free_their_slots_at_once(pool, log):
    await full(pool)
    slots = 2 * pool.client.config.slots_per_worker
    tasks = [
        asyncio.create_task(pool.execute("noted", timeout_s=700, **log.inputs(f"long{index}", 600)))
        for index in range(slots)
    ]
    await until(lambda: len(log.labels("begin")) == slots)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {asyncio.CancelledError, Cancelled}
    results = await asyncio.wait_for(
        asyncio.gather(*(pool.execute("noted", **log.inputs("after")) for _ in range(slots))), PATIENCE_S
    )
    assert len(results) == slots
    assert not [label for label in log.labels("end") if label.startswith("long")]


async def test_a_client_that_was_killed_keeps_no_slot(pool, cluster, log):
    await full(pool)
    slots = 2 * pool.client.config.slots_per_worker
    inputs = [log.inputs(f"orphan{index}", 600) for index in range(slots)]
    with SecondClient(cluster, pool=pool.name, inputs=inputs) as client:
        await client.said()
        await until(lambda: len(log.labels("begin")) == slots)
        client.kill()
    results = await asyncio.wait_for(
        asyncio.gather(*(pool.execute("noted", **log.inputs("after")) for _ in range(slots))), PATIENCE_S
    )
    assert len(results) == slots


async def test_two_clients_share_workers_and_keep_the_order_of_a_session(pool, cluster, log):
    await full(pool)
    session = pool.session("shared")
    await session.create_program("p", import_path="noted:Noted")
    theirs = [f"b{index}" for index in range(15)]
    inputs = [log.inputs(label, 0.01) for label in theirs]
    with SecondClient(cluster, pool=pool.name, session="shared", inputs=inputs) as client:
        await client.said()
        ours = [f"a{index}" for index in range(15)]
        await asyncio.gather(*(session.execute("p", **log.inputs(label, 0.01)) for label in ours))
        assert (await client.said())["labels"] == theirs
    entries = log.entries()
    # One at a time: each end follows its own begin. On one worker. In the order in which each client asked.
    assert [(begin.label, end.label) for begin, end in zip(entries[::2], entries[1::2], strict=True)] == [
        (label, label) for label in log.labels("begin")
    ]
    assert len({entry.pid for entry in entries}) == 1
    assert [label for label in log.labels("begin") if label[0] == "a"] == ours
    assert [label for label in log.labels("begin") if label[0] == "b"] == theirs
