"""Where a stream is to go on is said in a header, which may hold anything."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.security.test_streams_end_with_the_right import World

LIVE = "/v1/pools/default/live"


@pytest.mark.parametrize("number", [b"\xb2", b"\xb9\xb2", b"-1", b"", b"9" * 30, b"0x1", b"1_0"])
async def test_a_place_that_is_none_begins_anew(tmp_path, caplog, number):
    world = World(tmp_path)
    first = await world.open("GET", LIVE)
    life = first.text.split("id: ")[1].split("-")[0].encode()
    with caplog.at_level(logging.ERROR):
        again = await world.open("GET", LIVE, (b"last-event-id", life + b"-" + number))
        await asyncio.sleep(0)
    assert again.status == 200, again.text
    assert '"resumed":false' in again.text
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []
    await first.leave()
    await again.leave()
