"""One store serves a pool at a time, and one that was replaced commits nothing.

Against a real SQLite file, and against PostgreSQL when DSPOOL_TEST_POSTGRES_URL names one.
"""

import asyncio
import os
import sys
import uuid

import msgspec
import pytest
from sqlalchemy import event, text

from dspool.errors import StoreFailed
from dspool.messages import Change
from dspool.store.claims import StoreServer, this_server
from dspool.store.store import SessionStore

POSTGRES = os.environ.get("DSPOOL_TEST_POSTGRES_URL")
FAST = {"heartbeat_s": 0.02, "take_over_s": 0.2}
"""For a store whose heartbeat stands still."""
PATIENT = {"heartbeat_s": 0.02, "take_over_s": 300.0}
"""For one that meets a store that lives, and may be slow at it."""


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRES else [])])
def url(request, tmp_path):
    return POSTGRES if request.param == "postgresql" else f"sqlite:///{tmp_path}/state/dspool.db"


@pytest.fixture
def pool():
    """A pool of the test's own, as the PostgreSQL database is shared by all tests."""
    return f"pool-{uuid.uuid4()}"


@pytest.fixture
async def stores(url):
    opened = []

    async def make():
        store = SessionStore(url)
        await store.open()
        opened.append(store)
        return store

    yield make
    for store in opened:
        await store.close()


def elsewhere(id: str) -> StoreServer:
    """A store on another machine, of which nobody here can say whether its process lives."""
    return msgspec.structs.replace(this_server(id), machine="another", host="db2")


async def freeze(store: SessionStore, pool: str) -> None:
    for task in store._heartbeats:
        task.cancel()
    # Behind a heartbeat that is under way.
    await store.put_record(pool, "frozen", "yes")


async def change(store, pool, lease, value):
    await store.commit(pool, "s", "w", lease.epoch, [Change("variable", "x", value)])


async def kept(store, pool):
    return [item.payload for item in (await store.acquire(pool, "s", "w", create=False)).items]


async def test_a_second_store_is_refused_while_the_first_one_lives(stores, pool):
    first, second = await stores(), await stores()
    await first.serve(pool, elsewhere("first"), **FAST)
    lease = await first.acquire(pool, "s", "w", create=True)
    with pytest.raises(StoreFailed, match=r"served by another store already \(process \d+ on db2\)"):
        await second.serve(pool, elsewhere("second"), **PATIENT)
    await change(first, pool, lease, 1)
    assert await kept(first, pool) == [1]


async def test_a_pool_that_was_given_back_is_free_at_once(stores, pool):
    first, second = await stores(), await stores()
    assert (await first.serve(pool, elsewhere("first"), take_over_s=3600.0)).epoch == 1
    await first.close()
    assert (await second.serve(pool, elsewhere("second"), take_over_s=3600.0)).epoch == 2


async def test_a_store_that_is_started_again_does_not_wait_and_the_one_before_it_ends(stores, pool):
    old, new = await stores(), await stores()
    ended = []
    await old.serve(pool, elsewhere("the actor"), on_superseded=ended.append, take_over_s=3600.0)
    lease = await old.acquire(pool, "s", "w", create=True)
    await change(old, pool, lease, "before")
    await new.serve(pool, elsewhere("the actor"), take_over_s=3600.0)
    writes = [
        change(old, pool, lease, "late"),
        old.put_record(pool, "k", "late"),
        old.worker_dead(pool, "w"),
        old.end(pool, "s"),
    ]
    refused = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(one) for one in refused] == [StoreFailed] * len(writes)
    assert all("was replaced" in one.message and one.details["superseded"] for one in refused)
    assert [one.message for one in ended] == [refused[0].message]
    with pytest.raises(StoreFailed, match="was replaced"):
        await old.get(pool, "s")
    assert await kept(new, pool) == ["before"]
    assert await new.get_record(pool, "k") is None


async def test_a_store_whose_heartbeat_stands_still_is_replaced(stores, pool):
    frozen, new = await stores(), await stores()
    await frozen.serve(pool, elsewhere("frozen"), **FAST)
    lease = await frozen.acquire(pool, "s", "w", create=True)
    await freeze(frozen, pool)
    assert (await new.serve(pool, elsewhere("new"), **FAST)).epoch == 2
    with pytest.raises(StoreFailed, match="was replaced"):
        await change(frozen, pool, lease, "late")
    assert await kept(new, pool) == []


async def test_a_store_that_does_nothing_hears_from_its_heartbeat_that_it_was_replaced(stores, pool):
    old, new = await stores(), await stores()
    ended = asyncio.Event()
    await old.serve(pool, elsewhere("a"), on_superseded=lambda refused: ended.set(), **FAST)
    await new.serve(pool, elsewhere("a"), **FAST)
    await asyncio.wait_for(ended.wait(), 30)


async def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(stores, pool):
    gone = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await gone.wait()
    dead, new = await stores(), await stores()
    await dead.serve(pool, msgspec.structs.replace(this_server("dead"), pid=gone.pid), take_over_s=3600.0)
    await freeze(dead, pool)
    await new.serve(pool, this_server("new"), take_over_s=3600.0)


async def test_a_process_of_this_machine_that_lives_is_not_taken_for_gone(stores, pool):
    first, second = await stores(), await stores()
    await first.serve(pool, this_server("first"), **FAST)
    with pytest.raises(StoreFailed, match="already"):
        await second.serve(pool, this_server("second"), **PATIENT)


async def test_a_database_that_forgot_the_last_claim_does_not_let_two_stores_have_one_epoch(stores, pool):
    """As when a server takes over that had not heard of it yet."""
    first, second = await stores(), await stores()
    await first.serve(pool, elsewhere("a"), **FAST)
    lease = await first.acquire(pool, "s", "w", create=True)
    await freeze(first, pool)
    async with first._engine.begin() as connection:
        forget = text("UPDATE pools SET store_epoch = 0, served_by = NULL WHERE pool = :pool")
        await connection.execute(forget, {"pool": pool})
    assert (await second.serve(pool, elsewhere("b"), **FAST)).epoch == 1
    with pytest.raises(StoreFailed, match="was replaced"):
        await change(first, pool, lease, "late")


async def test_a_store_writes_nothing_into_a_database_that_does_not_know_its_pool_any_more(stores, pool):
    store = await stores()
    await store.serve(pool, elsewhere("a"), take_over_s=3600.0)
    async with store._engine.begin() as connection:
        await connection.execute(text("DELETE FROM pools WHERE pool = :pool"), {"pool": pool})
    with pytest.raises(StoreFailed, match="was replaced"):
        await store.create(pool, "s")


async def test_two_pools_of_one_database_do_not_disturb_each_other(stores, pool):
    first, second = await stores(), await stores()
    await first.serve(pool, elsewhere("a"), **FAST)
    await second.serve(f"{pool}2", elsewhere("b"), **FAST)
    await asyncio.gather(first.create(pool, "s"), second.create(f"{pool}2", "s"))


async def test_the_claim_costs_a_commit_no_statement(stores, pool):
    store = await stores()
    lease = await store.acquire(pool, "s", "w", create=True)
    statements = []
    event.listen(
        store._engine.sync_engine,
        "before_cursor_execute",
        lambda c, cursor, said, *_: statements.append(said),
    )
    await change(store, pool, lease, 1)
    without, statements[:] = list(statements), []
    await store.serve(pool, elsewhere("a"), heartbeat_s=3600.0)
    statements.clear()
    await change(store, pool, lease, 2)
    assert statements == without
