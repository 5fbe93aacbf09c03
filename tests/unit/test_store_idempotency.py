"""Answers kept under idempotency keys, and sessions that are created before any worker holds them."""

import asyncio

import pytest
from sqlalchemy import text

from dspool.errors import Conflict, UnknownSession
from dspool.store.idempotency import Claim, KeptAnswer
from dspool.store.store import SessionStore

ANSWER = KeptAnswer(200, "application/json", [("location", "/x")], b'{"a": "\xc3\xa9"}\x00')


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def store(tmp_path, clock):
    store = SessionStore(f"sqlite:///{tmp_path}/dspool.db", clock=clock)
    await store.open()
    yield store
    await store.close()


async def claim(store, key="k", *, holder="h1", fingerprint="f", principal=None, pool="p") -> Claim:
    return await store.claim_key(
        pool, key, principal=principal, fingerprint=fingerprint, holder=holder, patience_s=10, keep_s=100
    )


async def test_of_many_who_claim_a_key_at_once_exactly_one_gets_it(store):
    claims = await asyncio.gather(*(claim(store, holder=f"h{number}") for number in range(20)))
    assert sorted(one.outcome for one in claims) == ["new"] + ["running"] * 19


async def test_a_settled_key_gives_its_answer_as_it_was_also_after_a_restart(store, tmp_path, clock):
    await claim(store)
    await store.settle_key("p", "k", principal=None, holder="h1", answer=ANSWER)
    assert await claim(store, holder="h2") == Claim("done", ANSWER)
    other = SessionStore(f"sqlite:///{tmp_path}/dspool.db", clock=clock)
    await other.open()
    assert await claim(other, holder="h2") == Claim("done", ANSWER)
    await other.close()


async def test_a_key_used_for_another_request_says_so_whether_that_is_done_or_not(store):
    await claim(store)
    assert (await claim(store, fingerprint="g")).outcome == "other"
    await store.settle_key("p", "k", principal=None, holder="h1", answer=ANSWER)
    assert await claim(store, fingerprint="g") == Claim("other")


async def test_a_claim_that_was_never_settled_is_lost_and_never_done_again(store, clock):
    await claim(store)
    clock.now += 9
    assert (await claim(store, holder="h2")).outcome == "running"
    clock.now += 2
    assert (await claim(store, holder="h2")).outcome == "lost"


async def test_a_key_is_forgotten_after_its_time(store, clock):
    await claim(store)
    await store.settle_key("p", "k", principal=None, holder="h1", answer=ANSWER)
    clock.now += 101
    assert (await claim(store, key="another")).outcome == "new"
    async with store._engine.begin() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM idempotency"))).scalar() == 1
    assert (await claim(store, fingerprint="g")).outcome == "new"


async def test_a_dropped_claim_leaves_the_key_free(store):
    await claim(store)
    await store.drop_key("p", "k", principal=None, holder="h1")
    assert (await claim(store, holder="h2")).outcome == "new"


async def test_only_the_holder_settles_or_drops_and_a_settled_key_stays(store):
    await claim(store)
    await store.settle_key("p", "k", principal=None, holder="h2", answer=ANSWER)
    await store.drop_key("p", "k", principal=None, holder="h2")
    assert (await claim(store)).outcome == "running"
    await store.settle_key("p", "k", principal=None, holder="h1", answer=ANSWER)
    await store.drop_key("p", "k", principal=None, holder="h1")
    assert (await claim(store)).outcome == "done"


async def test_keys_are_apart_by_pool_and_by_principal(store):
    for pool, principal in [("p", None), ("p", "ada"), ("p", "bob"), ("q", None)]:
        assert (await claim(store, pool=pool, principal=principal)).outcome == "new"


async def test_a_database_of_the_first_schema_gets_its_table_of_keys(tmp_path):
    url = f"sqlite:///{tmp_path}/old.db"
    old = SessionStore(url)
    await old.open()
    async with old._engine.begin() as connection:
        for statement in (
            "DROP TABLE idempotency",
            "DROP TABLE usage",
            "ALTER TABLE sessions DROP COLUMN size",
            "ALTER TABLE session_items DROP COLUMN size",
            "DROP TABLE store_identity",
            "ALTER TABLE pools DROP COLUMN store_epoch",
            "ALTER TABLE pools DROP COLUMN served_by",
            "ALTER TABLE pools DROP COLUMN heartbeat",
        ):
            await connection.execute(text(statement))
        await connection.execute(text("UPDATE schema_version SET version = 1"))
    await old.close()
    new = SessionStore(url)
    await new.open()
    assert (await claim(new)).outcome == "new"
    await new.close()


async def test_a_created_session_is_nobodys_until_a_worker_asks_for_it_and_that_is_no_move(store):
    made = await store.create("p", "s", principal="ada")
    assert (made.owner, made.moves, made.principal) == (None, 0, "ada")
    assert await store.get("p", "s", principal="ada") == made
    with pytest.raises(UnknownSession):
        await store.get("p", "s", principal="bob")
    lease = await store.acquire("p", "s", "w1", create=False, principal="ada")
    assert lease.granted
    assert lease.epoch > made.epoch
    assert (await store.get("p", "s")).moves == 0


async def test_a_session_is_created_once(store):
    await store.create("p", "s")
    with pytest.raises(Conflict):
        await store.create("p", "s")
    await store.end("p", "s")
    await store.create("p", "s")
