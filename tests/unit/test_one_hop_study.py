"""The prototype of ADR 12 runs operations as a worker does, or its figures would say nothing."""

from __future__ import annotations

import pytest

from benchmarks.pools import INPUTS, PROGRAM, config_of
from benchmarks.studies.one_hop.worker import LoopRuntime, OneHopPool
from dspool.errors import InvalidRequest, QueueFull
from dspool.messages import ExecuteProgram


@pytest.fixture
async def pool(tmp_path):
    config = config_of(tmp_path, "one", pool_size=1, max_pool_size=1, spares=0, slots_per_worker=1)
    async with OneHopPool.start(config, LoopRuntime, own_store=True) as found:
        yield found


async def test_an_operation_is_answered_without_a_connection(pool):
    result = await pool.run(ExecuteProgram(PROGRAM, dict(INPUTS)))
    assert "answer" in result.value["outputs"]
    assert pool.client.totals["ok"] == 0


async def test_what_cannot_run_fails_for_its_caller(pool):
    with pytest.raises(InvalidRequest, match="wrong"):
        await pool.run(ExecuteProgram(PROGRAM, {"question": "?", "wrong": 1}))


async def test_there_is_no_queue_behind_its_slots(pool):
    pool._near()[0].draining = True
    with pytest.raises(QueueFull):
        await pool.run(ExecuteProgram(PROGRAM, dict(INPUTS)))
