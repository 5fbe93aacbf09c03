"""The event loop of a worker goes on whatever programs let escape into it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from dspool.runtime.loops import keep_running

WAIT_S = 30.0


class Kept:
    """A loop that began in another thread, as in an actor."""

    def __init__(self, new: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.over = False
        self.loop = new()
        self.first = threading.Thread(target=self.loop.run_forever, name="first", daemon=True)
        self.first.start()
        self.do(self._keep())

    async def _keep(self) -> None:
        keep_running(lambda: self.over)

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def kept(request):
    kept = Kept(request.param)
    yield kept
    kept.over = True
    kept.loop.call_soon_threadsafe(kept.loop.stop)


async def _raised(what: type[BaseException]) -> None:
    await asyncio.sleep(0)
    raise what("secret")


@pytest.mark.parametrize("what", [KeyboardInterrupt, SystemExit])
def test_a_task_that_ends_with_what_leaves_the_loop_ends_alone_and_whoever_awaits_it_sees_that(
    kept, what, caplog
):
    async def awaits() -> BaseException | None:
        beside = asyncio.create_task(asyncio.sleep(0.01, "unharmed"))
        try:
            await asyncio.create_task(_raised(what))
        except BaseException as seen:
            assert await beside == "unharmed"
            return seen

    for _ in range(20):
        assert type(kept.do(awaits())) is what
    assert f"raised {what.__name__} at {__name__}:" in caplog.text
    assert "secret" not in caplog.text


def test_callbacks_timers_and_writers_go_on_after_an_escape(kept):
    async def all_at_once() -> list[str]:
        done: list[str] = []
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(lambda reader, writer: writer.write(b"x"), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        loop.call_later(0.01, done.append, "timer")
        loop.call_soon(sys.exit, "secret")
        loop.call_soon(done.append, "callback")
        done.append((await reader.read(1)).decode())
        await asyncio.sleep(0.02)
        writer.close()
        server.close()
        return sorted(done)

    assert kept.do(all_at_once()) == ["callback", "timer", "x"]


def test_nobody_but_its_owner_stops_it(kept):
    async def stops() -> threading.Thread:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.001)
        return threading.current_thread()

    thread = kept.do(stops())
    assert thread is not kept.first
    assert not kept.first.is_alive()
    kept.over = True
    kept.loop.call_soon_threadsafe(kept.loop.stop)
    thread.join(WAIT_S)
    assert not thread.is_alive()
