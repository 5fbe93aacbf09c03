"""A stream that is just ending by itself does not keep the others from being ended."""

from __future__ import annotations

import asyncio

from dspool.messages import StreamEvent
from tests.security.test_streams_end_with_the_right import EVENTS, World
from tests.unit.http_doubles import until

SLOW = "/v1/pools/default/programs/slow/stream"


async def test_a_stream_whose_deadline_has_passed_takes_no_other_ones_end_away(tmp_path):
    """A worker may take its time to let go of an operation whose deadline has passed."""
    world, let_go = World(tmp_path), asyncio.Event()

    async def stream(command, **options):
        try:
            yield StreamEvent("token", "answer", "a")
            await asyncio.Event().wait()
        finally:
            world.pool.started.set()
            await let_go.wait()

    world.pool.stream = stream
    first = await world.open("POST", SLOW, (b"x-request-timeout-seconds", b"0.01"))
    await asyncio.wait_for(world.pool.started.wait(), 60)
    second = await world.open("GET", EVENTS)
    world.keep()
    world.look()
    await asyncio.wait_for(second.task, 60)
    assert second.last[1]["code"] == "unauthenticated"
    let_go.set()
    await asyncio.wait_for(first.task, 60)
    await until(lambda: len(world.security.streams) == 0)


async def test_a_look_that_fails_is_not_the_last_one(tmp_path, monkeypatch):
    world = World(tmp_path)
    stream = await world.open()
    current = world.security.tokens.current

    def fails():
        monkeypatch.setattr(world.security.tokens, "current", current)
        raise LookupError

    monkeypatch.setattr(world.security.tokens, "current", fails)
    world.keep()
    world.look()
    world.look()
    await asyncio.wait_for(stream.task, 60)
    assert stream.last[1]["code"] == "unauthenticated"
