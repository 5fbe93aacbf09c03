"""What somebody without the pool's secret can do with a worker's port, and with the port of a dead worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dspool.client import links
from dspool.config import PoolConfig
from dspool.errors import DeadlineExceeded
from dspool.messages import ExecuteProgram, Member, Operation, Ping, SetVariable
from dspool.testing.host import LoopbackPool, Script
from dspool.wire import connection
from dspool.wire.frames import Submit, encode
from dspool.wire.handshake import MAX_HELLO_BYTES, VERSION, Hello, greeting
from dspool.worker import listener, worker
from tests.security.connection_ends import Ends


async def until(condition: Callable[[], Any], turns: int = 20_000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


@contextlib.asynccontextmanager
async def relay(
    port: int, change: Callable[[bytes], bytes] = lambda data: data
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A port that passes everything on to `port`, and what passed; `change` is done to what comes back."""
    seen: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)

        async def carry(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes]
        ) -> None:
            while data := await source.read(65536):
                seen.append(data)
                sink.write(change(data))
            sink.close()

        for one in (carry(reader, there_writer, lambda data: data), carry(there_reader, writer, change)):
            task = asyncio.get_running_loop().create_task(one)
            tasks.add(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def connect(
    pool: LoopbackPool, worker_id: str = "w0"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    member = pool._members[worker_id]
    return await asyncio.open_connection(member.host, member.port)


# --- in the place of a worker ---


async def test_a_relay_on_a_dead_workers_port_that_passes_on_another_workers_proof_is_refused(caplog):
    async with LoopbackPool(PoolConfig(name="t")) as pool:
        alive = await pool.start_worker("w0")
        member = pool._members["w0"]
        async with relay(member.port, lambda data: data.replace(b"w0", b"w1")) as (port, seen):
            pool._members = {"w1": Member("w1", 1, "127.0.0.1", port, 2)}
            pool.publish()
            client = await pool.start_client(connected=False)
            with pytest.raises(DeadlineExceeded):
                await client.run(SetVariable("a", "secret"), session="s", timeout_s=0.3)
            assert len(client._links) == 0
            assert alive._operations.running == 0
            assert seen
            assert b"secret" not in b"".join(seen)
    refusals = [record for record in caplog.records if record.name == links.__name__]
    assert [record.levelname for record in refusals] == ["WARNING"], "once, however often it dials"
    assert "no connection to worker w1" in refusals[0].getMessage()


async def test_who_listens_between_a_client_and_its_worker_learns_nothing():
    async with LoopbackPool(PoolConfig(name="t")) as pool:
        pool.programs["echo"] = Script("inline", lambda inputs, *_: inputs)
        await pool.start_worker("w0")
        member = pool._members["w0"]
        async with relay(member.port) as (port, seen):
            pool._members["w0"] = Member("w0", 0, "127.0.0.1", port, 2)
            pool.publish()
            client = await pool.start_client()
            assert (await client.run(ExecuteProgram("echo", {"q": "secret"}))).outputs == {"q": "secret"}
            passed = b"".join(seen)
            assert len(passed) > 300
            for hidden in (b"secret", b"echo", b"execute", b"result"):
                assert hidden not in passed


async def test_a_connection_on_which_a_byte_changes_ends_and_operations_go_on_over_the_next():
    changed = []

    def change(data: bytes) -> bytes:
        if len(data) > 5000 and not changed:
            changed.append(data)
            return data[:2500] + bytes([data[2500] ^ 1]) + data[2501:]
        return data

    async with LoopbackPool(PoolConfig(name="t")) as pool:
        pool.programs["echo"] = Script("inline", lambda inputs, *_: inputs)
        await pool.start_worker("w0")
        member = pool._members["w0"]
        async with relay(member.port, change) as (port, _):
            pool._members["w0"] = Member("w0", 0, "127.0.0.1", port, 2)
            pool.publish()
            client = await pool.start_client()
            inputs = {"q": "x" * 10_000}
            result = await client.run(ExecuteProgram("echo", inputs), idempotent=True, timeout_s=30.0)
            assert result.outputs == inputs
            assert changed
            assert pool.reported_dead == ["w0"]


# --- at a worker's port ---


@pytest.mark.parametrize(
    "said",
    [
        greeting(Hello(b"p" * 32, "c1", b"n" * 32, VERSION)),
        encode(Submit([Operation("x", Ping(), 1.0)])),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 4,
        (MAX_HELLO_BYTES + 1).to_bytes(4, "big"),
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x2e\x95\xa5hello\xc4\x20" + b"p" * 32 + b"\xa1\xff\xc4\x00\x02",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
    ],
    ids=["wrong proof", "operation", "http", "long", "too long", "empty", "garbage", "no text", "tls"],
)
async def test_whatever_else_is_said_first_ends_the_connection_and_is_not_read_on(said, caplog):
    ends = Ends()
    ends.arrive_at_worker(said + b"\x00" * 1_000_000)
    assert ends.to_client.closed
    assert ends.worker.client is None
    assert ends.at_worker == []
    ends.arrive_at_worker(b"\x00" * 1_000_000)
    assert caplog.records == []


async def test_a_message_before_the_hello_is_not_even_decoded(monkeypatch):
    ends = Ends()
    monkeypatch.setattr(ends.worker, "_decode", lambda _: pytest.fail("it was decoded"))
    data = encode(Submit([Operation("x", Ping(), 1.0)]))
    ends.arrive_at_worker(len(data).to_bytes(4, "big") + data)
    assert ends.to_client.closed


async def test_one_that_connects_and_says_nothing_or_says_it_slowly_is_dropped(monkeypatch):
    monkeypatch.setattr(connection, "HELLO_TIMEOUT_S", 0.02)
    async with LoopbackPool() as pool:
        one = await pool.start_worker()
        reader, writer = await connect(pool)
        slow_reader, slow_writer = await connect(pool)
        slow_writer.write(b"\x00\x00\x00")
        await reader.read()  # until the worker hangs up
        await slow_reader.read()
        await until(lambda: not one._listener.ends)
        for end in (writer, slow_writer):
            end.close()


async def test_those_who_have_not_said_hello_are_few_and_shut_nobody_out(monkeypatch, caplog):
    monkeypatch.setattr(listener, "MAX_STRANGERS", 8)
    async with LoopbackPool(PoolConfig(name="t")) as pool:
        one = await pool.start_worker()
        strangers = [await connect(pool) for _ in range(50)]
        await until(lambda: len(one._listener.ends) == 8)
        client = await pool.start_client()
        assert (await client.run(Ping())).value == "pong"
        strangers += [await connect(pool) for _ in range(50)]
        assert len(one._listener.ends) <= 9
        assert (await client.run(Ping())).value == "pong", "who has said hello stays"
        assert len([record for record in caplog.records if record.name == listener.__name__]) == 1
        for _, writer in strangers:
            writer.close()


async def test_the_address_with_most_of_them_loses_its_oldest(monkeypatch):
    monkeypatch.setattr(listener, "MAX_STRANGERS", 4)
    addresses = {}
    monkeypatch.setattr(listener, "_address", lambda end: addresses[end])
    port = listener.Listener(b"s", "w0", _NoOperations())  # type: ignore[arg-type]
    taken = []
    for address in ("honest", "bad", "bad", "bad", "bad", "bad", "bad"):
        end = port._accept()
        addresses[end] = address
        taken.append(end)
    assert port.ends == [taken[0], *taken[4:]]


class _NoOperations:
    on_message = on_batch = on_room = on_lost = staticmethod(lambda *_: None)


async def test_one_that_is_given_up_before_its_connection_is_made_is_cut_when_it_is():
    ends = Ends()
    ends.worker.fail("too many")
    ends.to_client.closed = False
    ends.worker.connection_made(ends.to_client)  # type: ignore[arg-type]
    assert ends.to_client.closed


async def test_a_worker_that_drains_waits_for_its_clients_and_for_nobody_else(monkeypatch):
    monkeypatch.setattr(worker, "_SHUTDOWN_NOTICE_S", 3600.0)
    async with LoopbackPool(PoolConfig(name="t")) as pool:
        one = await pool.start_worker()
        client = await pool.start_client()
        _, writer = await connect(pool)
        await until(lambda: len(one._listener.ends) == 2)
        pool.leave("w0")
        drain = asyncio.ensure_future(one.drain(5.0))
        await until(lambda: "w0" not in client._links)
        await drain
        assert len(one._listener.ends) == 1
        writer.close()


async def test_garbage_on_one_connection_leaves_others_alone():
    async with LoopbackPool(PoolConfig(name="t", slots_per_worker=2)) as pool:
        one = await pool.start_worker()
        client, rude = await pool.start_client(), await pool.start_client()
        link = rude._links.get("w0")
        # Valid work, then rubbish, in one packet: the worker must not be left waiting for the rest of a batch.
        link.send(Submit([Operation("x", SetVariable("a", 1), 5.0, "s")]))
        link.transport.write(b"\xff" * 100)
        for _ in range(3):
            assert (await client.run(Ping())).value == "pong"
        await client.run(SetVariable("a", 2), session="t")
        await until(lambda: one._operations.running == 0)
