"""Calls between a process and a worker that it started itself."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
from typing import Any

import pytest

from dspool.errors import WorkerLost
from dspool.local.channel import Channel


async def nobody(*asked: Any) -> None:
    raise AssertionError("nobody is asked here")


async def test_a_process_that_ended_is_gone_though_what_it_has_started_holds_its_pipe_open():
    ours, theirs = multiprocessing.Pipe()
    sentinel, process = os.pipe()
    gone = asyncio.Event()
    channel = Channel(ours, nobody, gone.set, sentinel=sentinel)
    answered = asyncio.create_task(channel.call("worker", "health"))
    unanswered = asyncio.create_task(channel.call("worker", "drain"))
    asked = {}
    for _ in range(2):
        _, number, _, method, *_ = pickle.loads(await asyncio.to_thread(theirs.recv_bytes))
        asked[method] = number
    theirs.send_bytes(pickle.dumps(("reply", asked["health"], "well", None)))
    os.close(process)
    await gone.wait()
    assert await answered == "well"
    with pytest.raises(WorkerLost):
        await unanswered
    for end in (ours, theirs):
        end.close()
    os.close(sentinel)
