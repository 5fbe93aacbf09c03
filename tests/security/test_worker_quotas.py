"""Who has most gives way on a worker, and nobody else, and what a worker counts is what a session takes in memory."""

from __future__ import annotations

import pytest

from dspool.config import PoolConfig
from dspool.core.admission.eviction import evicted_principal
from dspool.core.admission.quotas import MB
from dspool.errors import QuotaExceeded
from dspool.messages import GetVariable, SetVariable
from dspool.testing.host import LoopbackPool
from tests.security.limited_stores import BIG


async def loopback(pool, session, principal, value):
    return await pool.clients[0].run(SetVariable("v", value), session=session, principal=principal)


async def test_a_flood_of_sessions_does_not_drive_anothers_warm_session_from_a_worker():
    async with LoopbackPool(PoolConfig(name="t", max_sessions_per_worker=4)) as pool:
        worker = await pool.start_worker()
        await pool.start_client()
        await loopback(pool, "quiet", "ada", 1)
        for number in range(20):
            await loopback(pool, f"flood{number}", "mallory", 1)
        assert "quiet" in worker._ownership._active
        assert len(worker._ownership) == 4
        acquired = pool.store.calls["acquire"]
        client = pool.clients[0]
        assert (await client.run(GetVariable("v"), session="quiet", principal="ada")).value == 1
        assert pool.store.calls["acquire"] == acquired, "it was still there"
        # A newcomer gets its place from who has most.
        await loopback(pool, "new", "bob", 1)
        assert {"quiet", "new"} <= set(worker._ownership._active)


async def test_a_flood_of_bytes_does_not_either():
    async with LoopbackPool(PoolConfig(name="t", limits={"max_worker_sessions_mb": 3})) as pool:
        worker = await pool.start_worker()
        await pool.start_client()
        await loopback(pool, "quiet", "ada", 1)
        for number in range(6):
            await loopback(pool, f"flood{number}", "mallory", BIG)
        ownership = worker._ownership
        assert "quiet" in ownership._active
        assert ownership._size <= 3 * MB
        assert ownership._size == sum(active.size for active in ownership._active.values())
        await worker.drain(1.0)
        assert ownership._size == 0


async def test_a_refused_change_leaves_the_session_as_it_was_and_costs_no_reading_of_it():
    """Else whoever is refused again and again makes the store and the worker read a whole session each time."""
    async with LoopbackPool(PoolConfig(name="t")) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        await loopback(pool, "s", "ada", "kept")
        commit = pool.store.commit

        async def refuse(*args, **options):
            raise QuotaExceeded("no more", limit="max_stored_mb")

        pool.store.commit = refuse
        for _ in range(5):
            with pytest.raises(QuotaExceeded):
                await loopback(pool, "s", "ada", "refused")
            assert (await client.run(GetVariable("v"), session="s", principal="ada")).value == "kept"
        pool.store.commit = commit
        await loopback(pool, "s", "ada", "new")
        assert (await client.run(GetVariable("v"), session="s", principal="ada")).value == "new"
        assert pool.store.calls["acquire"] == 1


def test_a_built_program_counts_in_its_workers_memory_for_more_than_its_few_letters():
    from dspool.messages import CreateProgram
    from dspool.programs.sessions.host import Session, SessionHost
    from dspool.programs.sessions.session import PROGRAM_BYTES

    host = SessionHost(PoolConfig())
    session = Session(host, "s")
    for number in range(3):
        host.run_inline(CreateProgram(f"p{number}", {"signature": "q -> a"}), session)
    assert session.extra_bytes > 3 * PROGRAM_BYTES
    rebuilt = Session.rebuild(host, "s", session.items())
    assert rebuilt.extra_bytes == 0, "nothing is built yet"


@pytest.mark.parametrize(
    "outputs",
    [
        [f"o{number}" for number in range(60)],
        [
            {"name": f"o{number}", "type": {"type": "object", "fields": [{"name": "a", "type": "str"}]}}
            for number in range(60)
        ],
        [{"name": f"o{field}", "type": {"type": "literal", "values": [*range(200)]}} for field in range(5)],
    ],
    ids=["fields", "objects", "literals"],
)
def test_a_built_program_of_many_types_counts_for_what_it_takes(outputs):
    from dspool.messages import CreateProgram
    from dspool.programs.sessions.host import Session, SessionHost

    host = SessionHost(PoolConfig())
    wide, narrow = Session(host, "wide"), Session(host, "narrow")
    host.run_inline(CreateProgram("p", {"signature": {"inputs": ["q"], "outputs": outputs}}), wide)
    host.run_inline(CreateProgram("p", {"signature": "q -> a"}), narrow)
    assert wide.extra_bytes > 3 * narrow.extra_bytes


async def test_what_a_session_takes_in_memory_alone_makes_others_leave_too(monkeypatch):
    from dspool.programs.sessions.session import Session

    monkeypatch.setattr(Session, "extra_bytes", property(lambda session: MB))
    async with LoopbackPool(PoolConfig(name="t", limits={"max_worker_sessions_mb": 3.5})) as pool:
        worker = await pool.start_worker()
        await pool.start_client()
        for number in range(6):
            await loopback(pool, f"s{number}", "ada", 1)
        assert len(worker._ownership) == 3


def test_undoing_brings_back_programs_variables_and_the_choice_of_an_lm():
    from dspool.messages import ConfigureLM, CreateProgram, DeleteVariable
    from dspool.programs.sessions.host import Session, SessionHost

    host = SessionHost(PoolConfig(lm_profiles={"a": {"model": "a", "engine": "offline"}}))
    session = Session(host, "s")
    host.run_inline(SetVariable("v", 1), session)
    host.run_inline(CreateProgram("p", {"signature": "q -> a"}), session)
    before = session.items()
    for command in (
        SetVariable("v", 2),
        DeleteVariable("v"),
        CreateProgram("p", {"signature": "q -> b"}, replace=True),
        CreateProgram("p2", {"signature": "q -> b"}),
        ConfigureLM("a"),
    ):
        host.run_inline(command, session)
        assert session.items() != before
        assert session.undo()
        assert session.items() == before
        assert session.program("p").describe()["signature"]
    assert not session.undo(), "what was undone is not undone again"


@pytest.mark.parametrize(
    ("held", "idle", "newcomer", "victim"),
    [
        ({"ada": 1, "mallory": 4}, ["ada", "mallory"], "mallory", "mallory"),
        ({"ada": 1, "mallory": 4}, ["ada"], "mallory", False),
        ({"ada": 1, "mallory": 4}, ["ada", "mallory"], "ada", "mallory"),
        ({"ada": 2, "bob": 2}, ["ada", "bob"], "ada", "ada"),
        ({None: 5}, [None], None, None),
        ({"ada": 3, "bob": 3}, ["bob"], "ada", "bob"),
    ],
)
def test_who_has_most_gives_and_nobody_gives_for_one_that_has_more(held, idle, newcomer, victim):
    assert evicted_principal(held, idle, newcomer) == victim
