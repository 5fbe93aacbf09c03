from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dspool.config import PoolConfig
from dspool.errors import InternalError, StoreFailed, TooManySessions, UnknownSession
from dspool.messages import EndSession, ExecuteProgram, GetVariable, SetVariable
from dspool.testing.host import LoopbackPool, Script
from dspool.worker import ownership, session_store


def config(**more: Any) -> PoolConfig:
    return PoolConfig(name="t", slots_per_worker=4, **more)


async def until(condition, turns: int = 20_000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


class Held:
    """An async program that waits for its gate."""

    def __init__(self, pool: LoopbackPool) -> None:
        self.gate = asyncio.Event()
        self.started = 0
        pool.programs["hold"] = Script("async", self._do)

    async def _do(self, inputs, session, emit):
        self.started += 1
        await self.gate.wait()
        return {"seen": session.variables.get("a")}

    def call(self, client, session: str = "s"):
        return asyncio.ensure_future(client.run(ExecuteProgram("hold", {}), session=session))


async def test_a_session_is_asked_of_the_store_once_and_each_change_is_committed():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        for value in range(3):
            await client.run(SetVariable("a", value), session="s")
            assert (await client.run(GetVariable("a"), session="s")).value == value
        assert pool.store.calls == {"acquire": 1, "commit": 3}


async def test_operations_of_one_session_run_in_order_one_at_a_time():
    async with LoopbackPool(config()) as pool:
        order: list[int] = []

        async def note(inputs, session, emit):
            await asyncio.sleep(0)
            order.append(inputs["n"])
            return {}

        pool.programs["note"] = Script("async", note)
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        await asyncio.gather(*(client.run(ExecuteProgram("note", {"n": n}), session="s") for n in range(50)))
        assert order == list(range(50))
        assert pool.hosts["w0"].overlaps == []


async def test_a_session_that_was_never_created_is_unknown_and_costs_no_slot():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(UnknownSession):
            await client.run(GetVariable("a"), session="nope")
        assert worker._operations.running == 0
        assert len(worker._ownership) == 0


async def test_one_refused_during_activation_does_not_refuse_those_behind_it():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        first, second = await pool.start_client(), await pool.start_client()
        pool.store.gate = asyncio.Event()
        unknown = asyncio.ensure_future(first.run(GetVariable("a"), session="s"))
        await until(lambda: pool.store.calls["acquire"])
        creates = asyncio.ensure_future(second.run(SetVariable("a", 1), session="s"))
        await until(lambda: second.running == 1)
        pool.store.gate.set()
        with pytest.raises(UnknownSession):
            await unknown
        assert (await creates).value is None


# --- whose session it is ---


async def test_only_its_principal_or_trusted_code_sees_a_session():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", "mine"), session="s", principal="alice")
        with pytest.raises(UnknownSession) as active:
            await client.run(GetVariable("a"), session="s", principal="bob")
        with pytest.raises(UnknownSession) as absent:
            await client.run(GetVariable("a"), session="absent", principal="bob")
        assert active.value.message == absent.value.message.replace("absent", "s"), (
            "nobody learns which are there"
        )
        for principal in ("alice", None):
            assert (await client.run(GetVariable("a"), session="s", principal=principal)).value == "mine"


async def test_a_session_of_nobody_is_everybodys():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        assert (await client.run(GetVariable("a"), session="s", principal="bob")).value == 1


# --- the store fails ---


@pytest.mark.parametrize("down", [StoreFailed("away"), RuntimeError("secret")])
async def test_a_store_that_is_down_refuses_those_who_wait_for_it_and_no_slot_is_kept(down):
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        pool.store.down = down
        ends = await asyncio.gather(
            *(client.run(SetVariable("a", n), session="s") for n in range(3)), return_exceptions=True
        )
        wanted = StoreFailed if isinstance(down, StoreFailed) else InternalError
        assert all(isinstance(end, wanted) for end in ends)
        assert "secret" not in str(ends)
        assert (worker._operations.running, len(worker._ownership)) == (0, 0)
        pool.store.down = None
        await client.run(SetVariable("a", 1), session="s")


async def test_a_change_that_could_not_be_committed_is_not_seen_by_the_next_operation():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", "old"), session="s")
        real, failures = pool.store.commit, [StoreFailed("disk full")]

        async def commit(*args, **options):
            await asyncio.sleep(0)
            if failures:
                raise failures.pop()
            return await real(*args, **options)

        pool.store.commit = commit  # type: ignore[method-assign]
        failing = asyncio.ensure_future(client.run(SetVariable("a", "new"), session="s"))
        following = asyncio.ensure_future(client.run(GetVariable("a"), session="s"))
        with pytest.raises(StoreFailed):
            await failing
        assert (await following).value == "old"
        assert pool.hosts["w0"].overlaps == []


@pytest.mark.parametrize("landed", [True, False])
async def test_what_changes_nothing_goes_on_while_the_store_is_away_also_after_a_change_that_failed(landed):
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", "old"), session="s")
        real = pool.store.commit

        async def commit(*args, **options):
            if landed:
                await real(*args, **options)
            pool.store.down = StoreFailed("away")
            raise StoreFailed("away")

        pool.store.commit = commit  # type: ignore[method-assign]
        with pytest.raises(StoreFailed):
            await client.run(SetVariable("a", "new"), session="s")
        pool.store.commit = real  # type: ignore[method-assign]
        for _ in range(3):
            assert (await client.run(GetVariable("a"), session="s")).value == "old"
            with pytest.raises(StoreFailed):
                await client.run(SetVariable("a", "later"), session="s")
        pool.store.down = None
        # The first change that gets through is made on what the store has.
        await client.run(SetVariable("b", 1), session="s")
        assert (await client.run(GetVariable("a"), session="s")).value == ("new" if landed else "old")
        assert pool.hosts["w0"].overlaps == []


async def test_what_a_store_has_that_failed_is_asked_without_another_change(monkeypatch):
    monkeypatch.setattr(ownership, "FIRST_PAUSE_S", 0.0)
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", "old"), session="s")
        real = pool.store.commit

        async def commit(*args, **options):
            await real(*args, **options)
            raise StoreFailed("its answer was lost")

        pool.store.commit = commit  # type: ignore[method-assign]
        with pytest.raises(StoreFailed):
            await client.run(SetVariable("a", "new"), session="s")
        await until(lambda: len(worker._ownership) == 0)
        assert (await client.run(GetVariable("a"), session="s")).value == "new"


@pytest.mark.parametrize("method", ["acquire", "commit", "end"])
async def test_a_store_that_does_not_answer_counts_as_failed(method, monkeypatch):
    monkeypatch.setattr(session_store, "STORE_PATIENCE_S", 0.01)
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        if method != "acquire":
            await client.run(SetVariable("a", 1), session="s")
        pool.store.gate = asyncio.Event()
        with pytest.raises(StoreFailed):
            await client.run(EndSession() if method == "end" else SetVariable("a", 2), session="s")
        assert worker._operations.running == 0
        pool.store.gate.set()
        assert (await client.run(SetVariable("a", 3), session="s")).value is None


async def test_a_change_under_a_lost_lease_is_made_by_the_one_that_owns_the_session_now():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        await pool.start_worker()
        await client.wait_ready(2, 10.0)
        lease = pool.store.sessions["s"]
        lease.owner, lease.epoch = "w1", lease.epoch + 1
        changed = await client.run(SetVariable("a", 2), session="s")
        got = await client.run(GetVariable("a"), session="s")
        assert (changed.worker, got.value, got.worker) == ("w1", 2, "w1")


# --- ending, forgetting, giving back ---


async def test_those_who_wait_behind_an_end_of_session_find_it_gone():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        clients = [await pool.start_client() for _ in range(2)]
        held = Held(pool)
        running = held.call(client)
        await until(lambda: held.started)
        ending = asyncio.ensure_future(clients[0].run(EndSession(), session="s"))
        await until(lambda: worker._operations.running == 2)
        waiting = asyncio.ensure_future(clients[1].run(GetVariable("a"), session="s"))
        await until(lambda: worker._operations.running == 3)
        held.gate.set()
        await running
        assert (await ending).value == {"ended": True}
        with pytest.raises(UnknownSession):
            await waiting
        assert (worker._operations.running, len(worker._ownership)) == (0, 0)


async def test_a_session_ended_elsewhere_runs_nothing_new_until_what_runs_has_ended():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client, other = await pool.start_client(), await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")

        gate = asyncio.Event()
        real = pool.store.commit

        async def commit(*args, **options):
            await gate.wait()
            return await real(*args, **options)

        held = Held(pool)
        running = held.call(client)
        await until(lambda: held.started)
        waiting = asyncio.ensure_future(other.run(SetVariable("a", 2), session="s"))
        await until(lambda: worker._operations.running == 2)
        pool.store.sessions.pop("s")
        await worker.forget(["s"])
        for _ in range(50):
            await asyncio.sleep(0)
        assert worker._operations.running == 2
        held.gate.set()
        await running
        await waiting
        assert pool.hosts["w0"].overlaps == []
        assert pool.store.sessions["s"].epoch == 1


async def test_a_change_to_a_session_that_was_forgotten_meanwhile_is_made_again_after_it_was_rebuilt():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")

        runs = []

        async def change(inputs, session, emit):
            runs.append(session)
            if len(runs) == 1:
                await worker.forget(["s"])
            from dspool.messages import Change
            from dspool.programs.sessions.host import CommandResult

            return CommandResult(None, changes=(Change("variable", "a", {"value": 2}),))

        pool.programs["change"] = Script("async", change)
        await client.run(ExecuteProgram("change", {}), session="s")
        assert len(runs) == 2
        await worker.forget(["s"])  # so that the answer comes from the store
        assert (await client.run(GetVariable("a"), session="s")).value == 2


async def test_at_the_limit_an_idle_session_makes_room_and_busy_ones_do_not():
    async with LoopbackPool(config(max_sessions_per_worker=2)) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        for session in ("a", "b"):
            await client.run(SetVariable("x", session), session=session)
        held = Held(pool)
        first = held.call(client, "a")
        await until(lambda: held.started == 1)
        await client.run(SetVariable("x", "c"), session="c")  # in the place of b
        assert len(worker._ownership) == 2
        second = held.call(client, "c")
        await until(lambda: held.started == 2)
        with pytest.raises(TooManySessions) as refused:
            await client.run(GetVariable("x"), session="b")
        assert refused.value.retry_after_s > 0
        held.gate.set()
        await asyncio.gather(first, second)
        assert (await client.run(GetVariable("x"), session="b")).value == "b"


async def test_a_session_wanted_again_while_it_is_given_back_waits_for_that():
    async with LoopbackPool(config(max_sessions_per_worker=1)) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("x", "a"), session="a")
        real, gate = pool.store.release, asyncio.Event()

        async def release(*args):
            await gate.wait()
            await real(*args)

        pool.store.release = release  # type: ignore[method-assign]
        await client.run(SetVariable("x", "b"), session="b")
        again = asyncio.ensure_future(client.run(SetVariable("x", "a2"), session="a"))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not again.done()
        gate.set()
        await again
        assert pool.store.sessions["a"].owner == "w0"
        assert (await client.run(GetVariable("x"), session="a")).value == "a2"


async def test_a_worker_hands_a_session_over_unless_it_is_busy():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        held = Held(pool)
        running = held.call(client)
        await until(lambda: held.started)
        assert not await worker.release("s")
        held.gate.set()
        await running
        assert await worker.release("s")
        assert pool.store.sessions["s"].owner is None
        assert await worker.release("s")


async def test_touches_that_the_store_did_not_take_are_told_again():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        pool.store.down = StoreFailed("away")
        with pytest.raises(StoreFailed):
            await worker._ownership.tidy()
        pool.store.down = None
        told: list[list[str]] = []

        async def touch(pool_name, worker_id, sessions):
            told.append(sessions)

        pool.store.touch = touch  # type: ignore[method-assign]
        await worker._ownership.tidy()
        assert told == [["s"]]
