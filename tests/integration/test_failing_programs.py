"""What a team sees of a program of theirs that fails, on real workers: while it is loaded, and in an operation."""

from __future__ import annotations

import os
import signal

import pytest
from harness import settings, until_status

from dspool import Pool, PoolConfig
from dspool.errors import ProgramError, WorkerStartFailed
from dspool.messages import ExecuteProgram

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


async def test_a_failure_is_told_with_its_words_and_its_log_is_found_also_when_its_worker_died(
    cluster, tmp_path
):
    made = settings(
        tmp_path,
        pool_size=1,
        programs={"answer": {"import_path": "failshop:Answer"}},
        allowed_imports=("failshop",),
        warmup={},
    )
    async with Pool.start(PoolConfig(**made)) as pool:
        with pytest.raises(ProgramError) as failed:
            await pool.run(ExecuteProgram("answer", {"order": "of my aunt Plumtree"}))
        error = failed.value
        assert error.text == "order has no line items: of my aunt Plumtree"
        assert error.at == "failshop:19"

        page = await pool.logs(operation=error.operation_id)
        text = "\n".join(line.text for line in page.lines)
        for words in (
            "INFO    failshop: looking for an order",
            "INFO    stdout: looking for its items",
            "an operation failed: the program raised ValueError at failshop:19",
            'raise ValueError(f"order has no line items: {order}")',
            "ValueError: order has no line items: ...",
        ):
            assert words in text
        assert "Plumtree" not in text
        assert {line.operation_id for line in page.lines} == {error.operation_id}

        (worker,) = (await pool.status()).workers
        os.kill(worker.pid, signal.SIGKILL)
        await until_status(pool, lambda s: s.ready and s.workers[0].id != worker.id)
        found = (await pool.logs(worker=worker.id)).lines
        assert any("shop is imported" in line.text for line in found)
        assert any(line.operation_id == error.operation_id for line in found)


async def test_a_pool_whose_program_cannot_be_loaded_ends_at_once(cluster, tmp_path):
    made = settings(
        tmp_path,
        pool_size=1,
        programs={"unset": {"import_path": "failshop:Unset"}},
        allowed_imports=("failshop",),
        warmup={},
    )
    with pytest.raises(WorkerStartFailed) as failed:
        async with Pool.start(PoolConfig(**made)):
            pass
    assert (
        "making failshop:Unset raised KeyError at failshop:24: 'PINECONE_API_KEY_OF_NOBODY'"
        in failed.value.message
    )
