"""What everybody may ask without a token costs the pool's actors next to nothing."""

from __future__ import annotations

import asyncio

import httpx

from tests.unit.http_doubles import FakePool, served


async def test_a_crowd_that_asks_whether_a_pool_is_ready_is_one_question_to_its_supervisor():
    pool, asked, answer = FakePool(), [], asyncio.Event()
    status = pool.status

    async def slow_status():
        asked.append(1)
        await answer.wait()
        return await status()

    pool.status = slow_status
    transport = httpx.ASGITransport(app=served(pool))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        crowd = [asyncio.ensure_future(http.get("/readyz")) for _ in range(50)]
        for _ in range(200):
            await asyncio.sleep(0)
        answer.set()
        assert {one.status_code for one in await asyncio.gather(*crowd)} == {200}
        assert len(asked) == 1
        await http.get("/readyz")
        assert len(asked) == 2, "what was answered is not kept: it may be other now"
