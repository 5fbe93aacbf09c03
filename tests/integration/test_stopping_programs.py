"""Programs that raise what stops processes and event loops, in real workers."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from harness import full, pids

from dspool.errors import ProgramError, WorkerLost

# How a worker was started decides which thread its event loop had at first.
pytestmark = [pytest.mark.ray, pytest.mark.both_starts, pytest.mark.asyncio(loop_scope="session")]

STOPPING = {
    "stopping": {"import_path": "noted:Stopping", "idempotent": False},
    "noted": {"import_path": "noted:Noted", "idempotent": False},
}


@pytest_asyncio.fixture(loop_scope="session")
async def pool(stopping, start_module_pool, worker_start):
    """A pool of one worker for each way of starting it."""
    if worker_start not in stopping:
        stopping[worker_start] = await start_module_pool(
            pool_size=1, programs=STOPPING, worker_start=worker_start
        )
    await full(stopping[worker_start], 1)
    return stopping[worker_start]


@pytest.fixture(scope="module")
def stopping():
    return {}


async def test_a_program_that_stops_things_ends_itself_and_neither_its_worker_nor_its_neighbours(pool, log):
    before = pids(pool)
    neighbours = [asyncio.create_task(pool.execute("noted", **log.inputs(f"n{n}", 2.0))) for n in range(3)]
    for what in ("KeyboardInterrupt", "SystemExit", "CancelledError"):
        for where in ("coroutine", "task", "thread"):
            with pytest.raises(ProgramError, match=f"{what} at noted:") as ended:
                await pool.execute("stopping", where=where, what=what)
            assert "secret" not in ended.value.message
        for where in ("callback", "forgotten task"):
            assert (await pool.execute("stopping", where=where, what=what)).answer == "survived"
    for where in ("loop", "signal"):
        assert (await pool.execute("stopping", where=where, what="")).answer == "survived"
    assert [result.label for result in await asyncio.gather(*neighbours)] == ["n0", "n1", "n2"]
    status = await pool.status()
    assert (status.state, status.failures, pids(pool)) == ("ready", 0, before)
    await pool.session("s").set_variable("a", 1)
    assert (await pool.session("s").get_variable("a"))["value"] == 1


async def test_a_program_that_ends_the_process_is_a_death(pool):
    with pytest.raises(WorkerLost):
        await pool.execute("stopping", where="coroutine", what="os._exit")
    await full(pool, 1)
