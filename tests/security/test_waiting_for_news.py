"""Who waits for news, or hangs up while waiting, does not fill the actor that everybody's figures are in."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from dspool.telemetry.event_log import EventPage
from dspool_serve.access.security import Security
from tests.dashboard_demo import tokens_for
from tests.unit.http_doubles import FakePool, served, until

EVENTS = "/v1/pools/default/events"


class House:
    """A pool whose metrics actor answers when it is told to, and the readers eve and ada."""

    def __init__(self, each):
        self.pool, self.waiting, self.answer = FakePool(), 0, asyncio.Event()
        self.pool.events = self.events
        self.texts, source = tokens_for(eve="reader", ada="reader")
        self.app = served(self.pool, security=Security(source, max_streams_each=each))

    async def events(self, since=0, limit=100, *, timeout_s=0.0):
        if timeout_s:
            # As in another process: it goes on whoever hangs up.
            self.waiting += 1
            await self.answer.wait()
            self.waiting -= 1
        return EventPage([], since)

    async def get(self, who, path):
        transport = httpx.ASGITransport(app=self.app)
        headers = {"authorization": f"Bearer {self.texts[who]}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        ) as http:
            return await http.get(path)


async def hang_up(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("path", [EVENTS + "?timeout_s=30&since=9", EVENTS + "/stream?since=9"])
async def test_hanging_up_again_and_again_leaves_no_more_questions_than_a_principal_may_have(path):
    house = House(each=2)
    for _ in range(12):
        asked = asyncio.ensure_future(house.get("eve", path))
        waiting = house.waiting
        for _ in range(100):
            await asyncio.sleep(0)
            if asked.done() or house.waiting > waiting:
                break
        await hang_up(asked)
    assert house.waiting == 4
    refused = await house.get("eve", EVENTS + "?timeout_s=1")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    other = asyncio.ensure_future(house.get("ada", EVENTS + "?timeout_s=30"))
    await until(lambda: house.waiting == 5)
    house.answer.set()
    assert (await other).status_code == 200
    await until(lambda: len(house.app._security.waits) == 0)
    assert (await house.get("eve", EVENTS + "?timeout_s=1")).status_code == 200
