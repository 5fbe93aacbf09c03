"""A drained worker and its clients part in peace: nothing that is on its way is cut off."""

from __future__ import annotations

import asyncio

from dspool.messages import ExecuteProgram
from dspool.testing.host import LoopbackPool, Script


async def test_a_drained_worker_stays_until_its_clients_have_heard_of_it_and_left():
    async with LoopbackPool() as pool:
        pool.programs["echo"] = Script("inline", lambda inputs, session, emit: inputs)
        first = await pool.start_worker()
        await pool.start_worker()
        client = await pool.start_client()
        draining = asyncio.ensure_future(first.drain(30.0))
        # The client has not heard of it: what it sends is done elsewhere, and no connection is cut.
        for number in range(50):
            result = await client.run(ExecuteProgram("echo", {"n": number}), idempotent=False)
            assert result.worker == "w1" or number < 2
        await asyncio.to_thread(lambda: None)
        assert not draining.done()
        pool.leave("w0")
        await draining
        assert pool.reported_dead == []


async def test_a_client_that_never_hears_of_it_does_not_hold_up_a_drain_for_long():
    async with LoopbackPool() as pool:
        first = await pool.start_worker()
        await pool.start_client()
        await asyncio.wait_for(first.drain(600.0), 60.0)
