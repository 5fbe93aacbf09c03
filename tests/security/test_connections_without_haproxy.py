"""Who reaches a replica's own port, or a service without HAProxy in front, does not hold it up by saying nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn import config

from dspool.corrections import uvicorn_connections
from dspool.corrections.uvicorn_connections import Silence

PATIENCE_S = 60.0
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def serving(monkeypatch, held):
    """The port of a server that answers; below `/held` when `held` is set."""
    monkeypatch.setitem(config.HTTP_PROTOCOLS, "auto", config.HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(uvicorn.Server, "startup", uvicorn.Server.startup)
    assert uvicorn_connections.install()

    async def hello(scope, receive, send):
        if scope["path"] == "/held":
            await held.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    server = uvicorn.Server(
        uvicorn.Config(
            hello,
            port=0,
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="none",
            timeout_keep_alive=1,
        )
    )
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


@pytest.mark.parametrize("sent", [b"", b"GET /", ASK[:-2], ASK + b"GET", ASK + ASK + b"GET / HTTP/1.1\r\n"])
async def test_a_connection_without_a_whole_head_ends_and_one_that_waits_for_an_answer_does_not(
    sent, monkeypatch
):
    monkeypatch.setattr(uvicorn_connections, "SILENCE_S", 0.05)
    held = asyncio.Event()
    async with serving(monkeypatch, held) as port:
        waiting_reader, waiting = await asyncio.open_connection("127.0.0.1", port)
        waiting.write(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        answers = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert answers.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")
        held.set()
        assert (await asyncio.wait_for(waiting_reader.readuntil(b"ok"), PATIENCE_S)).startswith(
            b"HTTP/1.1 200"
        )
        waiting.close()
        writer.close()


async def test_connections_do_not_take_the_files_that_other_things_need(monkeypatch):
    monkeypatch.setattr(uvicorn_connections, "_most_connections", lambda: 3)
    async with serving(monkeypatch, asyncio.Event()) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, writer in held:
            writer.write(ASK)
            await asyncio.wait_for(reader.readuntil(b"ok"), PATIENCE_S)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASK)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readuntil(b"ok"), PATIENCE_S)
        for _, other in (*held, (reader, writer)):
            other.close()


class Connection:
    """What `Silence` looks at."""

    def __init__(self, cycle=None, timeout_keep_alive_task=None):
        self.cycle, self.timeout_keep_alive_task = cycle, timeout_keep_alive_task
        self.closed = False
        self.transport = self

    def close(self):
        self.closed = True


def answered():
    return SimpleNamespace(response_complete=True)


def test_only_what_has_been_silent_for_a_whole_period_ends():
    silent, begun = Connection(), Connection(answered())
    running, between = Connection(SimpleNamespace(response_complete=False)), Connection(answered(), object())
    busy = Connection(answered())
    connections = {silent, begun, running, between, busy}
    silence = Silence(connections)
    silence.sweep()
    assert not any(one.closed for one in connections)
    busy.cycle = answered()  # another request meanwhile
    silence.sweep()
    assert {one for one in connections if one.closed} == {silent, begun}
