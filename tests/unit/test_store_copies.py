"""Backups of the session store, their way back, and the way to another database, also while the store is written to.

Against a real SQLite file, and against PostgreSQL when DSPOOL_TEST_POSTGRES_URL names one.
"""

import asyncio
import itertools
import os
import sqlite3
import stat
import threading
import uuid
from contextlib import closing, suppress
from types import SimpleNamespace

import msgspec
import pytest
from sqlalchemy import text

from dspool.errors import ConfigError, Conflict
from dspool.messages import Change, Deployment
from dspool.store import copies, migrations, tables
from dspool.store.checks import check
from dspool.store.claims import this_server
from dspool.store.copies import backup, move, restore
from dspool.store.schema import parse_url
from dspool.store.store import SessionStore

POSTGRES = os.environ.get("DSPOOL_TEST_POSTGRES_URL")
POOL = "shop"


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRES else [])])
async def url(request, tmp_path):
    """A database of the test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/state/dspool.db"
        return
    name = f"t{uuid.uuid4().hex}"
    async with tables.opened(parse_url(POSTGRES)) as engine:
        admin = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with admin.connect() as connection:
            await connection.execute(text(f"CREATE DATABASE {name}"))
        own = parse_url(POSTGRES).set(database=name).render_as_string(hide_password=False)
        yield own.replace("postgresql+asyncpg", "postgresql")
        async with admin.connect() as connection:
            await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def elsewhere(tmp_path):
    return f"sqlite:///{tmp_path}/new cluster/dspool.db"


async def filled(url, sessions=3):
    store = SessionStore(url)
    await store.open()
    for number in range(sessions):
        lease = await store.acquire(POOL, f"s{number}", "w", create=True, principal="ann")
        await store.commit(POOL, f"s{number}", "w", lease.epoch, [Change("variable", "x", number)])
    await store.add_deployment(POOL, Deployment("qa", 0, spec={"signature": "q -> a"}))
    await store.put_record(POOL, "k", {"é": "\x00"})
    return store


async def values(url):
    store = SessionStore(url)
    await store.open()
    found = {}
    for info in (await store.list(POOL, limit=1000))[0]:
        lease = await store.acquire(POOL, info.id, "reader", create=False)
        found[info.id] = {item.name: item.payload for item in lease.items}
    await store.close()
    return found


async def test_what_was_backed_up_is_there_after_a_restore_and_nobody_owns_it(url, elsewhere, tmp_path):
    store = await filled(url)
    before = await store.get(POOL, "s1")
    file = tmp_path / "backups" / "monday.db"
    made = await backup(url, file)
    await store.close()
    assert made.rows["sessions"] == 3
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["monday.db"]
    restored = await restore(file, elsewhere)
    assert restored.rows == made.rows | {"dead_workers": 0}
    assert restored.identity == made.identity
    assert (await check(elsewhere)).ok
    new = SessionStore(elsewhere)
    await new.open()
    after = await new.get(POOL, "s1")
    assert (after.owner, after.principal, after.created_at) == (None, "ann", before.created_at)
    lease = await new.acquire(POOL, "s1", "w2", create=False)
    assert lease.epoch > before.epoch + 1000, "no epoch that was given out after the backup comes again"
    assert lease.items == (Change("variable", "x", 1),)
    assert await new.get_record(POOL, "k") == {"é": "\x00"}
    assert await new.current_versions(POOL) == {"qa": 1}
    await new.close()


@pytest.fixture
def in_the_midst(monkeypatch):
    """Called once in each backup, when it has begun to read and before it ends."""
    called = []

    def connect(*where, **how):
        connection = sqlite3.connect(*where, **how)
        if how.get("uri"):
            steps = itertools.count()
            # After so many steps of SQLite it has begun to copy.
            connection.set_progress_handler(
                lambda: called.pop()() if next(steps) > 500 and called else None, 1
            )
        return connection

    copy = copies.tables.copy

    async def slow_copy(source, target):
        if called:
            await asyncio.to_thread(called.pop())
        return await copy(source, target)

    monkeypatch.setattr(copies, "sqlite3", SimpleNamespace(connect=connect, Error=sqlite3.Error))
    monkeypatch.setattr(copies.tables, "copy", slow_copy)
    return called.append


async def test_a_backup_under_load_has_all_that_was_acknowledged_before_it_and_each_commit_whole(
    url, elsewhere, tmp_path, in_the_midst
):
    store = await filled(url, sessions=0)
    await store.serve(POOL, this_server("the store"))
    acknowledged = {}
    all_write = asyncio.Event()
    begun, wrote = threading.Event(), threading.Event()

    async def write(session):
        lease = await store.acquire(POOL, session, "w", create=True)
        for number in range(1_000_000):
            both = [Change("variable", "x", number), Change("variable", "y", number)]
            meanwhile = begun.is_set()
            await store.commit(POOL, session, "w", lease.epoch, both)
            acknowledged[session] = number
            if meanwhile:
                wrote.set()
            if len(acknowledged) == 8 and min(acknowledged.values()) >= 3:
                all_write.set()

    writers = [asyncio.create_task(write(f"s{number}")) for number in range(8)]
    await all_write.wait()
    before = dict(acknowledged)
    waited = []

    def await_a_commit():
        begun.set()
        waited.append(not wrote.wait(60.0))

    in_the_midst(await_a_commit)
    await backup(url, tmp_path / "b.db")
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)
    await store.close()
    assert waited == [False], "a commit waited for the backup"
    await restore(tmp_path / "b.db", elsewhere)
    assert (await check(elsewhere)).ok
    found = await values(elsewhere)
    for session, number in before.items():
        assert found[session]["x"] >= number
        assert found[session]["x"] == found[session]["y"]


async def test_nothing_is_restored_into_a_store_that_is_served(url, elsewhere, tmp_path):
    store = await filled(url)
    await backup(url, tmp_path / "b.db")
    await store.serve(POOL, this_server("a"), heartbeat_s=0.05)
    with pytest.raises(Conflict, match=r"pool 'shop' is being served .* before you restore"):
        await restore(tmp_path / "b.db", url, replace=True)
    with pytest.raises(Conflict, match="before you migrate"):
        await move(url, elsewhere)
    await store.close()


async def test_a_store_that_wakes_up_after_a_restore_commits_nothing(url, tmp_path):
    store = await filled(url)
    await backup(url, tmp_path / "b.db")
    await store.serve(POOL, msgspec.structs.replace(this_server("a"), pid=2**22 + 1))  # taken for dead
    lease = await store.acquire(POOL, "late", "w", create=True)
    await restore(tmp_path / "b.db", url, replace=True)
    with suppress(Exception):
        await store.commit(POOL, "late", "w", lease.epoch, [Change("variable", "x", "late")])
    assert store._superseded is not None
    await store.close()
    assert set(await values(url)) == {"s0", "s1", "s2"}


async def test_rows_that_are_there_are_replaced_only_when_that_is_said(url, tmp_path):
    store = await filled(url)
    await backup(url, tmp_path / "b.db")
    await store.create(POOL, "later")
    await store.close()
    with pytest.raises(Conflict, match="4 sessions of 1 pools already"):
        await restore(tmp_path / "b.db", url)
    assert "later" in await values(url)
    await restore(tmp_path / "b.db", url, replace=True)
    assert "later" not in await values(url)


async def test_a_backup_replaces_no_file_and_leaves_none_when_it_fails(tmp_path):
    (tmp_path / "b.db").write_text("mine")
    with pytest.raises(Conflict, match="exists already"):
        await backup(f"sqlite:///{tmp_path}/s.db", tmp_path / "b.db")
    with pytest.raises(ConfigError, match="there is no session store"):
        await backup(f"sqlite:///{tmp_path}/s.db", tmp_path / "c.db")
    assert [path.name for path in tmp_path.iterdir()] == ["b.db"]


async def test_a_backup_of_a_newer_dspool_is_refused_and_so_is_what_is_none(url, tmp_path):
    store = await filled(url)
    await backup(url, tmp_path / "b.db")
    await store.close()
    (tmp_path / "text.db").write_text("no database " * 1000)
    with closing(sqlite3.connect(tmp_path / "b.db")) as connection, connection:
        connection.execute("UPDATE schema_version SET version = 99")
    for file, says in [("b.db", "99.*upgrade dspool"), ("text.db", "is no backup"), ("none.db", "no backup")]:
        with pytest.raises(ConfigError, match=says):
            await restore(tmp_path / file, url, replace=True)
    assert len(await values(url)) == 3


async def test_nothing_is_restored_onto_a_newer_schema(url, tmp_path, monkeypatch):
    store = await filled(url)
    await backup(url, tmp_path / "b.db")
    async with store._engine.begin() as connection:
        await connection.execute(text(f"UPDATE schema_version SET version = {migrations.SCHEMA_VERSION + 1}"))
    await store.close()
    with pytest.raises(ConfigError, match="upgrade dspool"):
        await restore(tmp_path / "b.db", url, replace=True)


async def test_a_store_moves_to_another_database_and_back_with_all_its_rows(url, elsewhere):
    store = await filled(url)
    counted = (await check(url)).rows
    await store.close()
    there = await move(url, elsewhere)
    assert there.rows == counted
    back = await move(elsewhere, url, replace=True)
    assert back.rows == counted
    assert back.identity == there.identity
    assert {name: found["x"] for name, found in (await values(url)).items()} == {"s0": 0, "s1": 1, "s2": 2}


BROKEN = {
    "epochs": "UPDATE sessions SET epoch = 1000 WHERE session = 's1'",
    "sizes": "UPDATE sessions SET size = size + 1 WHERE session = 's1'",
    "usage": "UPDATE usage SET sessions = sessions + 1",
    "contents": "UPDATE records SET value = '{' WHERE key = 'k'",
    "pools": "DELETE FROM pools",
    "identity": "DELETE FROM store_identity",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_check_names_what_does_not_hold(url, name):
    store = await filled(url)
    assert (await check(url)).ok
    async with store._engine.begin() as connection:
        await connection.execute(text(BROKEN[name]))
    report = await check(url)
    assert not report.ok
    assert name in [one.check for one in report.checks if not one.ok]
    await store.close()


async def test_a_check_finds_items_without_a_session(tmp_path):
    url = f"sqlite:///{tmp_path}/dspool.db"
    await (await filled(url)).close()
    with closing(sqlite3.connect(tmp_path / "dspool.db")) as connection, connection:
        connection.execute(
            "DELETE FROM sessions WHERE session = 's1'"
        )  # this connection heeds no foreign key
    report = await check(url)
    assert [one.found for one in report.checks if one.check == "orphans"] == ["1 items have no session"]


async def test_a_check_says_who_serves(url):
    store = await filled(url)
    server = await store.serve(POOL, this_server("a"))
    assert (await check(url)).served == {POOL: str(server)}
    await store.close()
    assert (await check(url)).served == {}
