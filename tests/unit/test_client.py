from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from dspool.client import links
from dspool.client.client import Client, ControlPlane
from dspool.config import PoolConfig
from dspool.core.dispatch.ticket import Ticket
from dspool.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    PoolClosed,
    PoolError,
    PoolPaused,
    QueueFull,
    WorkerLost,
)
from dspool.messages import ExecuteProgram, GetVariable, Member, Membership, Ping, SetVariable
from dspool.testing.host import LoopbackPool, Script


def config(**more: Any) -> PoolConfig:
    return PoolConfig(name="t", **{"slots_per_worker": 2, **more})


async def until(condition, turns: int = 200_000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


class Hold:
    def __init__(self, pool: LoopbackPool) -> None:
        self.gate = asyncio.Event()
        self.started = 0
        pool.programs["hold"] = Script("async", self._do)

    async def _do(self, inputs, session, emit):
        self.started += 1
        await self.gate.wait()
        return dict(inputs)

    def call(self, client, **more: Any):
        return asyncio.ensure_future(client.run(ExecuteProgram("hold", {"x": 1}), **more))


async def test_an_operation_that_has_ended_leaves_nothing_for_the_search_for_cycles():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(Ping())
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                await client.run(Ping())
            kept = [one for one in gc.get_objects() if isinstance(one, Ticket)]
        finally:
            gc.enable()
        assert len(kept) <= 1, "the last one may be at hand still"


# --- what callers give ---


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), float("-inf"), "5", [], 10**400])
async def test_a_deadline_must_be_positive_and_finite(timeout_s):
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(InvalidRequest, match="timeout_s"):
            await client.run(Ping(), timeout_s=timeout_s)
        with pytest.raises(InvalidRequest, match="timeout_s"):
            await anext(client.stream(Ping(), timeout_s=timeout_s))
        assert (client.queued, client.running, sum(client.totals.values())) == (0, 0, 0)


@pytest.mark.parametrize("timeout_s", [1e300, 10**12, 0.5])
async def test_a_very_long_deadline_is_one_all_the_same(timeout_s):
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        call = hold.call(client, timeout_s=timeout_s)
        await until(lambda: hold.started)
        hold.gate.set()
        assert (await call).x == 1


@pytest.mark.parametrize("what", ["operation_id", "session", "principal"])
@pytest.mark.parametrize("text", ["", "x" * 501, 5, "a\x00b", "\ud800"])
async def test_ids_must_be_short_printable_text(what, text):
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(InvalidRequest, match=what):
            await client.run(SetVariable("a", 1), **{"session": "s", what: text})


@pytest.mark.parametrize("traceparent", [5, "\ud800", b"x"])
async def test_a_trace_context_that_cannot_be_read_is_as_good_as_none(traceparent):
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        assert (await client.run(Ping(), traceparent=traceparent)).value == "pong"


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800", {1, object()}])
async def test_inputs_that_cannot_be_sent_are_refused_and_the_queue_goes_on(value):
    async with LoopbackPool(config()) as pool:
        pool.programs["echo"] = Script("inline", lambda inputs, *_: inputs)
        await pool.start_worker()
        client = await pool.start_client()
        good, bad, after = await asyncio.gather(
            client.run(ExecuteProgram("echo", {"x": 1})),
            client.run(ExecuteProgram("echo", {"x": value})),
            client.run(ExecuteProgram("echo", {"x": 2})),
            return_exceptions=True,
        )
        assert isinstance(bad, InvalidRequest)
        assert bad.field.partition("[")[0] == "inputs.x"
        assert (good.x, after.x) == (1, 2)
        assert pool.reported_dead == []


async def test_what_a_caller_changes_after_the_call_does_not_change_what_is_sent():
    async with LoopbackPool(config()) as pool:
        pool.programs["echo"] = Script("inline", lambda inputs, *_: inputs)
        client = await pool.start_client()
        inputs = {"x": [1]}
        call = asyncio.ensure_future(client.run(ExecuteProgram("echo", inputs)))
        await until(lambda: client.queued == 1)
        inputs["x"].append(2)
        await pool.start_worker()
        assert (await call).x == [1]


async def test_an_id_that_is_in_use_is_refused_and_counted_once():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        call = hold.call(client, operation_id="x")
        await until(lambda: hold.started)
        with pytest.raises(Conflict):
            await client.run(Ping(), operation_id="x")
        hold.gate.set()
        await call
        assert client.totals["ok"] == 1
        assert client._recorder.demand == 0


async def test_names_of_programs_that_do_not_exist_are_counted_as_one():
    async with LoopbackPool(config(programs={"later": {"spec": {"signature": "x -> y"}}})) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        hold.gate.set()
        await hold.call(client)
        for name in ("later", "made-up", "made-up-too"):
            with pytest.raises(PoolError):
                await client.run(ExecuteProgram(name, {}))
        counted = client._recorder.take_delta(0.0, queued=0).programs
        assert {name: tally.arrivals for name, tally in counted.items()} == {
            "hold": 1,
            "later": 1,
            "(unknown)": 2,
        }


# --- queueing ---


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    async with LoopbackPool(config(max_queue=1)) as pool:
        client = await pool.start_client()
        waiting = asyncio.ensure_future(client.run(Ping()))
        await until(lambda: client.queued == 1)
        with pytest.raises(QueueFull) as full:
            await client.run(Ping())
        assert full.value.retry_after_s > 0
        await pool.start_worker()
        assert (await waiting).value == "pong"


async def test_without_a_worker_an_operation_waits_until_its_deadline():
    async with LoopbackPool(config()) as pool:
        client = await pool.start_client()
        with pytest.raises(DeadlineExceeded) as late:
            await client.run(Ping(), timeout_s=0.01)
        assert late.value.phase == "queue"
        assert client.queued == 0


async def test_a_burst_begins_to_leave_before_all_of_it_is_there():
    async with LoopbackPool(config(slots_per_worker=64)) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        link = client._links.get("w0")
        sent, send = [], link.send
        link.send = lambda message: (sent.append(len(message.operations)), send(message))
        calls = [hold.call(client) for _ in range(40)]
        await asyncio.sleep(0)  # the one turn in which all of them come
        assert sent == [16, 16]
        hold.gate.set()
        await asyncio.gather(*calls)
        assert sent == [16, 16, 8]


async def test_a_cancelled_caller_leaves_the_queue():
    async with LoopbackPool(config()) as pool:
        client = await pool.start_client()
        waiting = asyncio.ensure_future(client.run(Ping()))
        await until(lambda: client.queued == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (client.queued, client.totals["cancelled"]) == (0, 1)


async def test_a_caller_that_is_simply_dropped_leaves_the_queue_too():
    async with LoopbackPool(config()) as pool:
        client = await pool.start_client()
        call = client.run(Ping())
        call.send(None)
        assert client.queued == 1
        call.close()
        assert client.queued == 0


async def test_a_paused_or_closed_pool_refuses():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        pool.publish(paused=True)
        await until(lambda: client.membership.paused)
        with pytest.raises(PoolPaused):
            await client.run(Ping())
        pool.publish()
        await until(lambda: not client.membership.paused)
        assert (await client.run(Ping())).value == "pong"
        pool.publish(closed=True)
        await until(lambda: client.membership.closed)
        with pytest.raises(PoolClosed):
            await client.run(Ping())


async def test_what_an_operator_did_holds_for_the_next_operation_of_that_client():
    """It does not wait for the membership to come by itself, and says nothing if the supervisor is away."""
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        is_away = False

        async def watch(version: int) -> Membership:
            if version >= 0:
                await asyncio.Event().wait()
            if is_away:
                raise PoolError("away")
            return pool.membership

        client = Client(config(), pool.secret, ControlPlane(watch, pool._report_dead))
        pool.clients.append(client)
        await client.start()
        await client.wait_ready(1, 5.0)
        pool.publish(paused=True)
        assert (await client.run(Ping())).value == "pong"
        await client.catch_up()
        with pytest.raises(PoolPaused):
            await client.run(Ping())
        is_away = True
        pool.publish()
        await client.catch_up()
        with pytest.raises(PoolPaused):
            await client.run(Ping())


# --- closing ---


async def test_closing_ends_what_waits_and_what_runs_and_tells_the_worker():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        worker = await pool.start_worker()
        client = await pool.start_client()
        calls = [hold.call(client) for _ in range(5)]
        await until(lambda: hold.started == 2)
        await client.close()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [PoolClosed] * 5
        await until(lambda: worker._operations.running == 0)
        with pytest.raises(PoolClosed):
            await client.run(Ping())
        await client.close()
        assert len(asyncio.all_tasks()) < 10


async def test_an_observer_that_hangs_does_not_keep_a_client_from_closing(monkeypatch):
    monkeypatch.setattr("dspool.client.control._LAST_REPORT_S", 0.01)

    async def hangs(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def watch(version: int) -> Membership:
        return Membership(0) if version < 0 else await hangs()

    client = Client(config(), b"s", ControlPlane(watch, hangs, hangs))
    await client.start()
    async with asyncio.timeout(60):
        await client.close()


# --- workers come, go and die ---


async def test_what_had_started_on_a_worker_that_died_ends_with_worker_lost_unless_it_is_idempotent():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        once, again = hold.call(client, idempotent=False), hold.call(client, idempotent=True)
        await until(lambda: hold.started == 2)
        await pool.start_worker()
        await pool.kill("w0")
        with pytest.raises(WorkerLost) as lost:
            await once
        assert lost.value.worker == "w0"
        await until(lambda: hold.started == 3)
        hold.gate.set()
        assert (await again).worker == "w1"
        assert hold.started == 3


async def test_a_lost_connection_is_made_again_and_the_supervisor_is_told():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        client._links.get("w0").abort()
        assert (await client.run(Ping(), timeout_s=60.0)).value == "pong"
        await until(lambda: pool.reported_dead == ["w0"])


async def test_a_session_survives_the_death_of_its_worker():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        await pool.start_worker()
        client = await pool.start_client()
        owner = (await client.run(SetVariable("a", 1), session="s")).worker
        await pool.kill(owner)
        got = await client.run(GetVariable("a"), session="s")
        assert got.value == 1
        assert got.worker != owner


async def test_a_worker_that_leaves_finishes_what_it_has_and_then_the_link_is_closed():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        worker = await pool.start_worker()
        client = await pool.start_client()
        call = hold.call(client)
        await until(lambda: hold.started)
        pool.leave("w0")
        await until(lambda: not client.membership.workers)
        assert "w0" in client._links
        hold.gate.set()
        assert (await call).worker == "w0"
        await until(lambda: "w0" not in client._links)
        await until(lambda: not worker._listener.ends)


async def test_a_worker_that_leaves_and_comes_back_is_connected_once():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        member = pool.membership.workers[0]
        for _ in range(5):
            pool.leave("w0")
            await until(lambda: not client.membership.workers)
            pool._members["w0"] = member
            pool.publish()
            await until(lambda: client.membership.workers)
        assert (await client.run(Ping(), timeout_s=60.0)).value == "pong"
        await until(lambda: len(worker._listener.ends) == 1)
        assert pool.reported_dead == []


async def test_the_late_end_of_a_dropped_connection_is_not_taken_for_the_end_of_the_new_one():
    async with LoopbackPool(config()) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        old, member = client._links.get("w0"), pool.membership.workers[0]
        pool.leave("w0")
        await until(lambda: not client.membership.workers)
        pool._members["w0"] = member
        pool.publish()
        call = hold.call(client)
        await until(lambda: hold.started)
        old.connection_lost(None)  # as after a close that had much to flush
        hold.gate.set()
        assert (await call).x == 1
        assert pool.reported_dead == []


async def test_a_worker_that_left_while_it_was_being_dialled_is_not_connected():
    async with LoopbackPool(config()) as pool:
        client = await pool.start_client()
        worker = await pool.start_worker()
        await until(lambda: client.membership.workers)
        pool.leave("w0")
        await until(lambda: not client.membership.workers)
        await until(lambda: not client._links._connecting and not worker._listener.ends)
        assert len(client._links) == 0


async def test_with_the_wrong_secret_there_is_no_connection_and_no_storm_of_attempts():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        dials = 0
        real = asyncio.get_running_loop().create_connection

        async def counted(*args: Any, **more: Any) -> Any:
            nonlocal dials
            dials += 1
            return await real(*args, **more)

        asyncio.get_running_loop().create_connection = counted  # type: ignore[method-assign]
        pool.secret = b"wrong"
        client = await pool.start_client(connected=False)
        with pytest.raises(DeadlineExceeded):
            await client.run(Ping(), timeout_s=0.3)
        assert len(client._links) == 0
        assert 1 <= dials <= 8
        assert pool.reported_dead == []
        await until(lambda: not worker._listener.ends)


async def test_a_port_that_now_belongs_to_another_worker_is_not_taken_for_the_old_one():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        real = pool.membership.workers[0]
        pool._members["ghost"] = Member("ghost", 1, real.host, real.port, 2)
        pool.publish()
        await until(lambda: len(client.membership.workers) == 2)
        await until(lambda: client._links._pauses.get("ghost", 0) > links._PAUSE_S)
        assert "ghost" not in client._links
        assert (await client.run(Ping())).worker == "w0"


async def test_a_member_that_takes_connections_and_says_nothing_is_given_up_and_leaves_no_socket(monkeypatch):
    monkeypatch.setattr(links, "_CONNECT_TIMEOUT_S", 0.02)
    gone = asyncio.Event()

    async def silent(reader, writer):
        await reader.read()
        gone.set()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with LoopbackPool(config()) as pool:
        host, port = server.sockets[0].getsockname()
        pool._members["mute"] = Member("mute", 0, host, port, 2)
        pool.publish()
        client = await pool.start_client(connected=False)
        await gone.wait()
        assert len(client._links) == 0
    server.close()


async def test_a_connection_that_ends_in_the_turn_it_was_opened_is_not_kept():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client(connected=False)
        dial, first = client._links._dial, [True]

        async def dies_at_once(member):
            link = await dial(member)
            if first.pop() if first else False:
                link.transport.abort()
                await link.closed
            return link

        client._links._dial = dies_at_once  # type: ignore[method-assign]
        assert (await client.run(Ping(), timeout_s=60.0)).value == "pong"


async def test_a_supervisor_that_is_away_or_answers_nonsense_does_not_stop_traffic():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        asked = 0

        async def watch(version: int) -> Membership:
            nonlocal asked
            asked += 1
            if version < 0 or asked % 2:
                return pool.membership  # at once, and nothing new
            raise PoolError("away")

        loop = asyncio.get_running_loop()
        began = loop.time()
        client = Client(config(), pool.secret, ControlPlane(watch, pool._report_dead))
        pool.clients.append(client)
        await client.start()
        await client.wait_ready(1, 5.0)
        for _ in range(200):
            assert (await client.run(Ping())).value == "pong"
        assert asked <= 5 + (loop.time() - began) / 0.1


# --- affinity: prefer ---


async def test_a_full_owner_hands_an_idle_session_to_a_worker_with_room():
    async with LoopbackPool(config(affinity="prefer", slots_per_worker=1)) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        holding = hold.call(client)
        await until(lambda: hold.started)
        waiting = asyncio.ensure_future(client.run(GetVariable("a"), session="s"))
        await until(lambda: client.queued == 1)
        await pool.start_worker()
        got = await waiting
        assert (got.value, got.worker) == (1, "w1")
        hold.gate.set()
        await holding


async def test_with_strict_affinity_it_waits_for_its_owner():
    async with LoopbackPool(config(affinity="strict", slots_per_worker=1)) as pool:
        hold = Hold(pool)
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        holding = hold.call(client)
        await until(lambda: hold.started)
        waiting = asyncio.ensure_future(client.run(GetVariable("a"), session="s"))
        await pool.start_worker()
        await client.wait_ready(2, 5.0)
        assert (await client.run(Ping())).worker == "w1"
        assert not waiting.done()
        hold.gate.set()
        assert (await waiting).worker == "w0"
        await holding
