"""A worker that was declared dead, though its process and its connections live: nobody waits for it or hears it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dspool.client import links
from dspool.client.client import Client
from dspool.config import PoolConfig
from dspool.errors import WorkerLost
from dspool.messages import (
    Change,
    ExecuteProgram,
    GetVariable,
    Membership,
    Ping,
    Result,
    SetVariable,
    StreamEvent,
    StreamProgram,
)
from dspool.programs.sessions.host import CommandResult
from dspool.testing.host import LoopbackPool, Script
from dspool.wire.frames import Chunk, Report


def config(**more: Any) -> PoolConfig:
    return PoolConfig(name="t", **{"slots_per_worker": 2, **more})


async def until(condition, turns: int = 200_000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


class Hold:
    """A program that ends when told, with whatever it was told to end with."""

    def __init__(self, pool: LoopbackPool) -> None:
        self.gate = asyncio.Event()
        self.started = 0
        self.ends: Any = {"x": 1}
        pool.programs["hold"] = Script("async", self._do)

    async def _do(self, inputs, session, emit):
        self.started += 1
        if emit is not None:
            await emit(StreamEvent("token", "x", "first"))
        await self.gate.wait()
        return self.ends

    def call(self, client: Client, **more: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(client.run(ExecuteProgram("hold", {}), **more))


def freeze(pool: LoopbackPool, worker_id: str) -> None:
    """Its connections stay open, and it reads nothing."""
    for peer in pool.workers[worker_id]._listener.ends:
        peer.transport.pause_reading()


async def test_what_it_ran_is_repeated_if_it_may_be_and_else_ends_with_worker_lost_while_it_still_hangs():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        once, again = hold.call(client, idempotent=False), hold.call(client, idempotent=True)
        await until(lambda: hold.started == 2)
        await pool.start_worker()
        freeze(pool, "w0")
        pool.declare_dead("w0")
        with pytest.raises(WorkerLost, match="declared it dead") as lost:
            await once
        assert lost.value.worker == "w0"
        await until(lambda: hold.started == 3)
        hold.gate.set()
        assert (await again).worker == "w1"
        assert pool.reported_dead == [], "whom should it tell? The supervisor said so itself"


async def test_what_waited_for_it_goes_to_another_and_is_not_lost():
    async with LoopbackPool(config(slots_per_worker=1)) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        running = hold.call(client, session="s", idempotent=False)
        waiting = asyncio.ensure_future(client.run(GetVariable("a"), session="s", idempotent=False))
        await until(lambda: hold.started == 1 and client.queued == 1)
        freeze(pool, "w0")
        await pool.start_worker()
        pool.declare_dead("w0")
        with pytest.raises(WorkerLost):
            await running
        assert ((await waiting).value, (await waiting).worker) == (1, "w1")


async def test_a_stream_from_it_ends_with_worker_lost():
    async with LoopbackPool(config()) as pool:
        Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        events = client.stream(StreamProgram("hold", {}))
        assert (await anext(events)).value == "first"
        freeze(pool, "w0")
        pool.declare_dead("w0")
        with pytest.raises(WorkerLost):
            await anext(events)
        assert client._streams == {}


async def test_what_was_cancelled_there_no_longer_counts_against_it_or_holds_up_its_session():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        running = hold.call(client, session="s")
        await until(lambda: hold.started)
        freeze(pool, "w0")
        running.cancel()
        following = asyncio.ensure_future(client.run(GetVariable("a"), session="s"))
        await until(lambda: client._dispatcher._abandoned)
        await pool.start_worker()
        pool.declare_dead("w0")
        assert (await following).worker == "w1"
        assert not client._dispatcher._abandoned


async def test_a_session_goes_on_elsewhere_and_what_the_dead_worker_saves_later_is_refused():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        hold.ends = CommandResult(None, changes=(Change("variable", "a", {"value": "late"}),))
        running = hold.call(client, session="s", idempotent=False)
        await until(lambda: hold.started)
        # Its end is decided, and its change on the way to the store, when it hangs.
        pool.store.gate = asyncio.Event()
        hold.gate.set()
        await until(lambda: pool.store.calls["commit"] == 2)
        await pool.start_worker()
        pool.declare_dead("w0")
        with pytest.raises(WorkerLost):
            await running
        pool.store.gate.set()
        await until(lambda: worker._operations.running == 0)
        got = await client.run(GetVariable("a"), session="s")
        assert (got.value, got.worker) == (1, "w1")


async def test_a_client_that_missed_the_versions_in_between_learns_it_from_the_last():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        call = hold.call(client, idempotent=False)
        await until(lambda: hold.started)
        await pool.start_worker()
        pool.leave("w0")
        pool.declare_dead("w0")
        for paused in (True, False):
            pool.publish(paused=paused)
        with pytest.raises(WorkerLost):
            await call


async def test_a_worker_that_drains_and_then_hangs_keeps_nothing_either():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        call = hold.call(client, idempotent=False)
        await until(lambda: hold.started)
        pool.leave("w0")
        await until(lambda: not client.membership.workers)
        assert not call.done(), "one that drains finishes what it holds"
        freeze(pool, "w0")
        pool.declare_dead("w0")
        with pytest.raises(WorkerLost):
            await call
        assert "w0" not in client._links


async def test_what_it_says_after_it_thawed_is_not_heard():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        worker = await pool.start_worker()
        client = await pool.start_client()
        call = hold.call(client, operation_id="x", idempotent=True)
        await until(lambda: hold.started == 1)
        link = client._links.get("w0")
        await pool.start_worker()
        freeze(pool, "w0")
        pool.declare_dead("w0")
        await until(lambda: hold.started == 2)
        # Even if it came through a connection that should be cut.
        link._on_report(link, Report([Result("x", value={"outputs": {"x": "late"}})], [], [], 0, 2, 0))
        link._on_chunk(link, Chunk("x", [StreamEvent("token", "x", "late")]))
        hold.gate.set()
        result = await call
        assert (result.x, result.worker) == (1, "w1")
        assert client.totals["ok"] == 1
        for peer in worker._listener.ends:
            peer.transport.resume_reading()
        await until(lambda: not worker._listener.ends and worker._operations.running == 0)
        assert client.totals["ok"] == 1


async def test_it_is_not_called_again_by_those_who_know_nor_by_those_who_come_later():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        first = await pool.start_client()
        await pool.start_worker()
        pool.declare_dead("w0")
        later = await pool.start_client()
        await until(lambda: not worker._listener.ends)
        for client in (first, later):
            await until(lambda client=client: set(client._links) == {"w1"})
            assert {(await client.run(Ping())).worker for _ in range(5)} == {"w1"}
            assert not client._links._connecting
        assert not worker._listener.ends


async def test_a_connection_that_is_being_made_to_it_is_given_up_and_leaves_no_socket(monkeypatch):
    monkeypatch.setattr(links, "_CONNECT_TIMEOUT_S", 0.02)
    open_now = 0

    async def takes_and_says_nothing(reader, writer):
        nonlocal open_now
        open_now += 1
        await reader.read()
        open_now -= 1
        writer.close()

    server = await asyncio.start_server(takes_and_says_nothing, "127.0.0.1", 0)
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        host, port = server.sockets[0].getsockname()
        pool._members["w0"] = type(pool._members["w0"])("w0", 0, host, port, 2)
        pool.publish()
        client = await pool.start_client(connected=False)
        await until(lambda: open_now)
        pool.declare_dead("w0")
        await until(lambda: not client._links._connecting and not open_now)
        assert not worker._listener.ends
    server.close()


async def test_what_it_does_not_read_is_thrown_away_and_holds_up_nothing():
    async with LoopbackPool(config(slots_per_worker=8)) as pool:
        Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        freeze(pool, "w0")
        link = client._links.get("w0")
        command = ExecuteProgram("hold", {"x": "x" * 4_000_000})
        calls = [asyncio.ensure_future(client.run(command, idempotent=False)) for _ in range(8)]
        await until(lambda: link.full)
        pool.declare_dead("w0")
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {WorkerLost}
        await link.closed


async def test_a_connection_that_is_not_needed_any_more_is_closed_although_the_worker_does_not_read(
    monkeypatch,
):
    monkeypatch.setattr(links, "_LINGER_S", 0.01)
    async with LoopbackPool(config(slots_per_worker=8)) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        freeze(pool, "w0")
        link = client._links.get("w0")
        link.transport.write(b"x" * 16_000_000)
        pool.leave("w0")
        await link.closed
        assert "w0" not in client._links


def test_a_membership_says_who_lives():
    known = Membership(1, finishing=("b",))
    assert (known.lives("a"), known.lives("b")) == (False, True)
