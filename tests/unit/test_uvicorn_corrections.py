"""Connections of the ingress: what one turn of the loop writes leaves in one piece, and a hang-up cancels."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
import uvloop
from http_doubles import FakePool, FixedPools
from uvicorn import config

from dspool.corrections.uvicorn_connections import (
    NOT_WATCHED_BY_SERVE,
    SCOPE_KEY,
    ConnectionRequests,
    JoinedWrites,
    end_with_connection,
    install,
)
from dspool_serve.api.application import Application
from tests.dashboard_demo import application
from tests.simulated_pool import SimulatedPool


class Wire:
    """The transport below: remembers what reached it."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return name


async def test_head_and_body_leave_together_and_the_next_answer_by_itself():
    wire = Wire()
    transport = JoinedWrites(wire, asyncio.get_running_loop())
    transport.write(b"head")
    transport.write(b"body")
    assert wire.pieces == []
    await asyncio.sleep(0)
    assert wire.pieces == [b"headbody"]
    transport.write(b"next")
    await asyncio.sleep(0)
    assert wire.pieces == [b"headbody", b"next"]


async def test_closing_sends_what_waits_first_and_nothing_is_sent_afterwards():
    wire = Wire()
    transport = JoinedWrites(wire, asyncio.get_running_loop())
    transport.write(b"last words")
    transport.close()
    assert wire.pieces == [b"last words"]
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert wire.pieces == [b"last words"]
    assert transport.get_extra_info("peername") == "peername"


async def never(requests: ConnectionRequests) -> None:
    end_with_connection({"dspool.connection": requests})
    await asyncio.Event().wait()


async def test_what_runs_on_a_connection_ends_with_it():
    requests = ConnectionRequests()
    running = [asyncio.create_task(never(requests)) for _ in range(2)]
    await asyncio.sleep(0)
    requests.connection_lost()
    await asyncio.wait(running)
    assert all(task.cancelled() for task in running)


async def test_a_request_that_begins_after_its_connection_was_lost_ends_at_once():
    requests = ConnectionRequests()
    requests.connection_lost()
    task = asyncio.create_task(never(requests))
    await asyncio.wait([task])
    assert task.cancelled()


@asynccontextmanager
async def serving(application, monkeypatch) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    """A real server with our connections, and its port."""
    monkeypatch.setitem(config.HTTP_PROTOCOLS, "auto", config.HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(uvicorn.Server, "startup", uvicorn.Server.startup)
    assert install()
    server = uvicorn.Server(
        uvicorn.Config(application, port=0, log_config=None, access_log=False, lifespan="off", loop="none")
    )
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


async def hello(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("choice", ["uvicorn-accept", "uvicorn-one-write", "serve-disconnect"])
async def test_each_correction_comes_alone(choice, monkeypatch):
    monkeypatch.setenv("DSPOOL_CORRECTIONS", choice)
    scopes = []

    async def application(scope, receive, send) -> None:
        scopes.append(scope)
        await hello(scope, receive, send)

    async with serving(application, monkeypatch) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), 60)).startswith(b"HTTP/1.1 200")
        (connection,) = server.server_state.connections
        made = {
            "uvicorn-accept": hasattr(server.server_state, "acceptor"),
            "uvicorn-one-write": isinstance(connection.transport, JoinedWrites),
            "serve-disconnect": SCOPE_KEY in scopes[0] and NOT_WATCHED_BY_SERVE in scopes[0]["headers"],
        }
        writer.close()
    assert [name for name, yes in made.items() if yes] == [choice]


async def test_a_server_that_stops_does_not_wait_for_viewers_of_the_dashboard(monkeypatch):
    dashboard = application(SimulatedPool("default", workers=2, history_s=2))
    async with serving(dashboard, monkeypatch) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/pools/default/live HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"event: hello"), 60)
        server.should_exit = True
        # The end of a chunked answer: it was completed, not cut.
        assert (await asyncio.wait_for(reader.read(), 60)).endswith(b"0\r\n\r\n")
        writer.close()
    dashboard._console.close()


async def test_a_real_server_answers_in_one_piece_and_cancels_what_nobody_waits_for(monkeypatch):
    pool = FakePool()
    async with serving(Application(FixedPools(pool)), monkeypatch) as (_, port):

        async def send(program: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            path = f"/v1/pools/default/programs/{program}/execute"
            # A client's own word on the matter changes nothing.
            writer.write(
                f"POST {path} HTTP/1.1\r\nhost: x\r\nx-request-disconnect-disabled: ?1\r\n"
                'content-type: application/json\r\ncontent-length: 14\r\n\r\n{"inputs": {}}'.encode()
            )
            return reader, writer

        reader, writer = await send("qa")
        answer = await reader.read(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"}")
        writer.close()
        _, leaver = await send("slow")
        await pool.started.wait()
        leaver.close()
        async with asyncio.timeout(60):
            while not pool.cancelled:  # noqa: ASYNC110 - it happens when the kernel says so
                await asyncio.sleep(0.001)


def test_connections_that_come_together_are_let_in_together_and_served(monkeypatch):
    async def come_together() -> int:
        async with serving(Application(FixedPools(FakePool())), monkeypatch) as (server, port):
            # The kernel connects them: no turn of the loop passes here.
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            turns = 0
            async with asyncio.timeout(60):
                while len(server.server_state.connections) < len(clients):
                    await asyncio.sleep(0)
                    turns += 1
            for client in clients:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(
                    client, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
                )
            for client in clients:
                async with asyncio.timeout(60):
                    assert (await asyncio.get_running_loop().sock_recv(client, 4096)).startswith(b"HTTP/1.1 ")
                client.close()
        return turns

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(come_together()) < 20  # a loop of libuv lets one in at a time


def test_a_server_that_has_closed_its_port_lets_nobody_in(monkeypatch):
    async def close() -> None:
        async with serving(Application(FixedPools(FakePool())), monkeypatch) as (server, port):
            acceptor = server.server_state.acceptor
            for one in server.servers:
                one.close()
            await asyncio.sleep(0)
            acceptor.accept_all()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(close())
