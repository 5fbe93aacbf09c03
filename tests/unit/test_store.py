"""The session store against a real SQLite file, and against PostgreSQL when DSPOOL_TEST_POSTGRES_URL names one."""

import asyncio
import itertools
import os
import stat
import uuid

import pytest
from sqlalchemy import Column, Integer, Table, inspect, text

from dspool.errors import ConfigError, InvalidRequest, StaleLease, StoreFailed, UnknownProgram, UnknownSession
from dspool.messages import Change, Deployment, SessionInfo
from dspool.store import migrations
from dspool.store import schema as store_schema
from dspool.store.requests import Commit
from dspool.store.schema import create_engine, parse_url
from dspool.store.store import SessionStore

POSTGRES = os.environ.get("DSPOOL_TEST_POSTGRES_URL")
PROGRAM = {
    "signature": "question -> answer",
    "module": "Predict",
    "weights": [1, 2.5, None, True, {"é": "\x00"}],
}


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRES else [])])
def url(request, tmp_path):
    return POSTGRES if request.param == "postgresql" else f"sqlite:///{tmp_path}/state/dspool.db"


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path}/state/dspool.db"


@pytest.fixture
async def store(url, clock):
    store = SessionStore(url, clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def pool():
    """A pool of the test's own, as the PostgreSQL database is shared by all tests."""
    return f"pool-{uuid.uuid4()}"


# --- ownership --------------------------------------------------------------------------------------------


async def test_a_new_session_belongs_to_the_worker_that_creates_it(store, pool):
    lease = await store.acquire(pool, "s", "w1", create=True, principal="ann")
    assert lease.granted
    assert (lease.session, lease.owner, lease.items, lease.principal) == ("s", "w1", (), "ann")
    assert await store.get(pool, "s") == SessionInfo(
        "s", "w1", lease.epoch, created_at=1000.0, last_used_at=1000.0, principal="ann"
    )


async def test_a_session_that_was_never_created_is_unknown(store, pool):
    with pytest.raises(UnknownSession):
        await store.acquire(pool, "s", "w1", create=False)
    with pytest.raises(UnknownSession):
        await store.get(pool, "s")
    assert await store.end(pool, "s") is False


async def test_a_second_worker_is_told_the_living_owner_and_gets_no_data(store, pool):
    first = await store.acquire(pool, "s", "w1", create=True)
    await store.commit(pool, "s", "w1", first.epoch, [Change("variable", "x", 1)])
    second = await store.acquire(pool, "s", "w2", create=True)
    assert (second.granted, second.owner, second.epoch, second.items) == (False, "w1", first.epoch, ())


async def test_the_owner_that_asks_again_keeps_its_epoch_and_gets_its_data(store, pool):
    first = await store.acquire(pool, "s", "w1", create=True)
    await store.commit(pool, "s", "w1", first.epoch, [Change("variable", "x", 1)])
    again = await store.acquire(pool, "s", "w1", create=False)
    assert (again.granted, again.epoch, again.items) == (True, first.epoch, (Change("variable", "x", 1),))


async def test_a_dead_workers_session_goes_on_at_another_with_all_it_had(store, pool):
    first = await store.acquire(pool, "s", "w1", create=True, principal="ann")
    await store.commit(
        pool, "s", "w1", first.epoch, [Change("program", "qa", PROGRAM), Change("lm", "lm", {})]
    )
    assert await store.worker_dead(pool, "w1") == 1
    second = await store.acquire(pool, "s", "w2", create=False, principal="ann")
    assert second.granted
    assert second.epoch > first.epoch
    assert second.items == (Change("lm", "lm", {}), Change("program", "qa", PROGRAM))
    assert (await store.get(pool, "s")).moves == 1


async def test_a_commit_under_an_old_epoch_is_refused_and_changes_nothing(store, pool):
    old = await store.acquire(pool, "s", "w1", create=True)
    await store.worker_dead(pool, "w1")
    with pytest.raises(StaleLease):  # already when nobody owns it
        await store.commit(pool, "s", "w1", old.epoch, [Change("variable", "x", "late")])
    new = await store.acquire(pool, "s", "w2", create=True)
    for worker, epoch in [("w1", old.epoch), ("w1", new.epoch), ("w2", old.epoch), ("w2", new.epoch + 1)]:
        with pytest.raises(StaleLease):
            await store.commit(pool, "s", worker, epoch, [Change("variable", "x", "late")])
    assert (await store.acquire(pool, "s", "w2", create=False)).items == ()


async def test_a_worker_declared_dead_gets_no_lease_whoever_says_that_it_lives(store, pool):
    await store.worker_dead(pool, "w1")
    assert (await store.declared_dead(pool), await store.declared_dead(f"{pool}2")) == (["w1"], [])
    with pytest.raises(StaleLease, match="declared dead"):
        await store.acquire(pool, "s", "w1", create=True)
    assert (await store.list(pool)) == ([], None)
    assert (await store.acquire(f"{pool}2", "s", "w1", create=True)).granted, "death is a matter of one pool"
    await store.workers_alive(pool, ["w1"])
    with pytest.raises(StaleLease, match="declared dead"):
        await store.acquire(pool, "s", "w1", create=True)


async def test_the_list_of_living_workers_frees_all_other_leases_of_the_pool(store, pool):
    for session, worker in [("a", "w1"), ("b", "w2"), ("c", "w3")]:
        await store.acquire(pool, session, worker, create=True)
    await store.acquire(f"{pool}2", "a", "w1", create=True)
    assert await store.workers_alive(pool, ["w2"]) == 2
    assert [info.owner for info in (await store.list(pool))[0]] == [None, "w2", None]
    assert (await store.get(f"{pool}2", "a")).owner == "w1"
    assert await store.workers_alive(pool, []) == 1


async def test_a_released_session_may_move_and_coming_back_is_no_move(store, pool):
    first = await store.acquire(pool, "s", "w1", create=True)
    await store.release(pool, "w2", ["s"])
    assert (await store.get(pool, "s")).owner == "w1", "only the owner gives a lease back"
    await store.release(pool, "w1", ["s", "unheard-of"])
    with pytest.raises(StaleLease):
        await store.commit(pool, "s", "w1", first.epoch, [])
    back = await store.acquire(pool, "s", "w1", create=False)
    assert back.epoch > first.epoch
    assert (await store.get(pool, "s")).moves == 0
    await store.release(pool, "w1", ["s"])
    await store.acquire(pool, "s", "w2", create=False)
    assert (await store.get(pool, "s")).moves == 1


async def test_of_many_workers_that_ask_at_once_exactly_one_becomes_owner(store, pool):
    leases = await asyncio.gather(*(store.acquire(pool, "s", f"w{i}", create=True) for i in range(20)))
    assert sum(lease.granted for lease in leases) == 1
    assert len({(lease.owner, lease.epoch) for lease in leases}) == 1


async def test_two_stores_on_one_database_agree_on_the_owner(store, url, pool):
    other = SessionStore(url)
    await other.open()
    try:
        leases = await asyncio.gather(
            *(
                s.acquire(pool, f"s{i}", name, create=True)
                for i in range(20)
                for s, name in [(store, "a"), (other, "b")]
            )
        )
    finally:
        await other.close()
    assert sum(lease.granted for lease in leases) == 20
    assert len({lease.epoch for lease in leases}) == 20


# --- what a session holds ----------------------------------------------------------------------------------


async def held(store, pool, session="s", worker="w1"):
    lease = await store.acquire(pool, session, worker, create=False)
    return {(item.kind, item.name): item.payload for item in lease.items}


async def test_changes_set_replace_and_delete_in_their_order(store, pool):
    epoch = (await store.acquire(pool, "s", "w1", create=True)).epoch

    async def commit(*changes):
        await store.commit(pool, "s", "w1", epoch, [Change(*change) for change in changes])

    await commit(("variable", "x", 1), ("variable", "y", [2]), ("program", "x", {}), ("variable", "x", 3))
    assert await held(store, pool) == {("variable", "x"): 3, ("variable", "y"): [2], ("program", "x"): {}}
    await commit(
        ("variable", "y", None),
        ("variable", "unheard-of", None),
        ("variable", "x", None),
        ("variable", "x", 4),
    )
    assert await held(store, pool) == {("variable", "x"): 4, ("program", "x"): {}}
    await commit(("variable", "z", 5), ("variable", "*", None), ("variable", "w", 6))
    assert await held(store, pool) == {("variable", "w"): 6, ("program", "x"): {}}
    assert (await store.get(pool, "s")).programs == ("x",)


async def test_commits_sent_together_share_a_transaction_and_each_gets_its_own_answer(
    store, pool, monkeypatch
):
    epochs = [(await store.acquire(pool, f"s{i}", "w1", create=True)).epoch for i in range(30)]
    transactions = []
    begin = store._engine.begin
    monkeypatch.setattr(type(store._engine), "begin", lambda engine: transactions.append(1) or begin())
    answers = await asyncio.gather(
        *(
            store.commit(pool, f"s{i}", "w1", epoch + (i == 7), [Change("variable", "x", i)])
            for i, epoch in enumerate(epochs)
        ),
        return_exceptions=True,
    )
    assert len(transactions) <= 2
    assert [i for i, answer in enumerate(answers) if isinstance(answer, Exception)] == [7]
    assert isinstance(answers[7], StaleLease)
    assert [await held(store, pool, f"s{i}") for i in (6, 7, 8)] == [
        {("variable", "x"): 6},
        {},
        {("variable", "x"): 8},
    ]


async def test_commits_to_one_session_keep_the_order_of_the_calls(store, pool):
    epoch = (await store.acquire(pool, "s", "w1", create=True)).epoch
    await asyncio.gather(
        *(store.commit(pool, "s", "w1", epoch, [Change("variable", "x", i)]) for i in range(20))
    )
    assert await held(store, pool) == {("variable", "x"): 19}


async def test_a_cancelled_caller_does_not_hurt_the_others(store, pool):
    calls = [asyncio.create_task(store.acquire(pool, f"s{i}", "w1", create=True)) for i in range(5)]
    await asyncio.sleep(0)
    calls[2].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [i == 2 for i in range(5)]
    assert (await store.acquire(pool, "later", "w1", create=True)).granted


@pytest.mark.parametrize(
    "value", [(1,), {1: 2}, {"x": {1}}, b"x", float("nan"), float("inf"), object(), "\ud800", {"\ud800": 1}]
)
async def test_what_is_not_json_is_refused(store, pool, value):
    epoch = (await store.acquire(pool, "s", "w1", create=True)).epoch
    with pytest.raises(InvalidRequest, match="JSON"):
        await store.commit(
            pool, "s", "w1", epoch, [Change("variable", "ok", 1), Change("variable", "x", value)]
        )
    with pytest.raises(InvalidRequest, match="JSON"):
        await store.put_record(pool, "x", value)
    with pytest.raises(InvalidRequest, match="JSON"):
        await store.add_deployment(pool, Deployment("qa", 0, kwargs={"x": value}))
    assert await held(store, pool) == {}


@pytest.mark.parametrize("name", ["", "\x00", "a\x00b", "\udfff", "x" * 513])
async def test_names_that_no_database_could_keep_are_refused(store, pool, name):
    with pytest.raises(InvalidRequest):
        await store.acquire(pool, name, "w1", create=True)
    epoch = (await store.acquire(pool, "s", "w1", create=True)).epoch
    with pytest.raises(InvalidRequest):
        await store.commit(pool, "s", "w1", epoch, [Change("program", name, {})])


async def test_unknown_kinds_of_change_are_refused(store, pool):
    for change in (Change("secret", "x", 1), Change("variable", "*", 1)):
        with pytest.raises(InvalidRequest):
            await store.commit(pool, "s", "w1", 1, [change])


# --- whose it is -------------------------------------------------------------------------------------------


async def test_another_principals_session_looks_like_none_at_all(store, pool):
    await store.acquire(pool, "s", "w1", create=True, principal="ann")
    asks = [
        lambda: store.acquire(pool, "s", "w1", create=False, principal="bob"),
        lambda: store.acquire(pool, "s", "w2", create=True, principal="bob"),
        lambda: store.get(pool, "s", principal="bob"),
    ]
    for ask in asks:
        with pytest.raises(UnknownSession) as taken:
            await ask()
        with pytest.raises(UnknownSession) as absent:
            await store.get(pool, "t", principal="bob")
        assert str(taken.value).replace("'s'", "'t'") == str(absent.value)
        assert taken.value.details.keys() == absent.value.details.keys()
    assert await store.end(pool, "s", principal="bob") is False
    assert await store.list(pool, principal="bob") == ([], None)
    assert [info.id for info in (await store.list(pool, principal="ann"))[0]] == ["s"]
    assert await store.end(pool, "s", principal="ann") is True


async def test_a_session_of_nobody_is_for_everyone_and_trusted_code_sees_all(store, pool):
    await store.acquire(pool, "shared", "w1", create=True)
    await store.acquire(pool, "anns", "w1", create=True, principal="ann")
    assert (await store.get(pool, "shared", principal="bob")).principal is None
    assert (await store.acquire(pool, "anns", "w1", create=False)).principal == "ann"
    assert [info.id for info in (await store.list(pool))[0]] == ["anns", "shared"]


async def test_pools_with_equal_names_inside_share_nothing(store, pool):
    here = await store.acquire(pool, "s", "w1", create=True)
    await store.commit(pool, "s", "w1", here.epoch, [Change("variable", "x", 1)])
    await store.put_record(pool, "size", 1)
    there = await store.acquire(f"{pool}2", "s", "w1", create=True)
    assert there.items == ()
    assert await store.get_record(f"{pool}2", "size") is None
    await store.end(f"{pool}2", "s")
    assert await held(store, pool) == {("variable", "x"): 1}


# --- how sessions end --------------------------------------------------------------------------------------


async def test_an_ended_session_is_gone_with_all_it_held_and_its_id_starts_anew(store, pool):
    old = await store.acquire(pool, "s", "w1", create=True, principal="ann")
    await store.commit(pool, "s", "w1", old.epoch, [Change("variable", "x", 1)])
    assert await store.end(pool, "s") is True
    with pytest.raises(UnknownSession):
        await store.get(pool, "s")
    with pytest.raises(StaleLease):
        await store.commit(pool, "s", "w1", old.epoch, [Change("variable", "x", 2)])
    new = await store.acquire(pool, "s", "w1", create=True, principal="bob")
    assert new.epoch > old.epoch
    assert new.items == ()
    with pytest.raises(StaleLease):
        await store.commit(pool, "s", "w1", old.epoch, [Change("variable", "x", 3)])


async def test_sessions_expire_after_their_last_use(store, pool, clock):
    epochs = {name: (await store.acquire(pool, name, "w1", create=True)).epoch for name in "abcde"}
    await store.release(pool, "w1", ["e"])
    clock.now += 60
    await store.touch(pool, "w1", ["a"])
    await store.touch(pool, "w2", ["b"])
    await store.commit(pool, "c", "w1", epochs["c"], [])
    await store.acquire(pool, "d", "w2", create=False)  # an ask that is not granted is no use
    assert await store.expire(pool, 60) == []
    clock.now += 1
    assert await store.expire(pool, 60) == [("b", "w1"), ("d", "w1"), ("e", None)]
    assert [info.id for info in (await store.list(pool))[0]] == ["a", "c"]
    assert await store.expire(pool, 60) == []
    assert (await store.acquire(pool, "b", "w2", create=True)).epoch > max(epochs.values())


async def test_expiry_forgets_workers_that_died_long_ago(store, pool, clock):
    await store.worker_dead(pool, "w1")
    clock.now += 86_401
    await store.expire(pool, 1.0)
    assert (await store.acquire(pool, "s", "w1", create=True)).granted


# --- lists -------------------------------------------------------------------------------------------------


async def test_pages_show_every_session_once_in_the_order_of_ids(store, pool):
    names = ["a", "Z", "é", "b-1", "b_1", "10", "9", "日本", "B", "zz"]
    for name in names:
        await store.acquire(pool, name, "w1" if name.isascii() else "w2", create=True)
    seen, after = [], None
    for _ in range(6):
        page, after = await store.list(pool, limit=2, after=after)
        seen += [info.id for info in page]
        if after is None:
            break
    assert seen == sorted(names, key=lambda name: name.encode())
    assert [info.id for info in (await store.list(pool, owner="w2"))[0]] == ["é", "日本"]
    assert (await store.list(pool, limit=10))[1] is None


async def test_paging_goes_on_when_the_session_at_the_cursor_is_gone(store, pool):
    for name in "abcd":
        await store.acquire(pool, name, "w1", create=True)
    _, after = await store.list(pool, limit=2)
    await store.end(pool, "b")
    page, after = await store.list(pool, limit=2, after=after)
    assert ([info.id for info in page], after) == (["c", "d"], None)


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_pages_are_bounded(store, pool, limit):
    with pytest.raises(InvalidRequest):
        await store.list(pool, limit=limit)


# --- records and deployments -------------------------------------------------------------------------------


async def test_records_keep_any_json_value_by_key(store, pool):
    assert await store.get_record(pool, "x") is None
    for value in (PROGRAM, 0, "", [], 2**70, None):
        await store.put_record(pool, "x", value)
        assert await store.get_record(pool, "x") == value


async def test_deployments_are_numbered_by_program_and_the_first_is_current(store, pool):
    qa = Deployment("qa", 0, spec={"signature": "q -> a"})
    added = [
        await store.add_deployment(pool, d) for d in (qa, qa, Deployment("other", 9, import_path="x.y:Z"))
    ]
    assert [(d.program, d.version) for d in added] == [("qa", 1), ("qa", 2), ("other", 1)]
    assert await store.deployments(pool) == [added[2], added[0], added[1]]
    assert await store.current_versions(pool) == {"qa": 1, "other": 1}
    await store.set_current(pool, "qa", 2)
    assert await store.current_versions(pool) == {"qa": 2, "other": 1}
    for program, version in [("qa", 3), ("none", 1)]:
        with pytest.raises(UnknownProgram):
            await store.set_current(pool, program, version)
    await store.set_current(pool, "qa", None)
    assert await store.current_versions(pool) == {"other": 1}


async def test_versions_asked_for_at_once_differ(store, pool):
    added = await asyncio.gather(*(store.add_deployment(pool, Deployment("qa", 0)) for _ in range(5)))
    assert sorted(d.version for d in added) == [1, 2, 3, 4, 5]


# --- the database ------------------------------------------------------------------------------------------


async def test_everything_is_there_after_closing_and_opening_again(url, pool, clock):
    store = SessionStore(url, clock=clock)
    await store.open()
    lease = await store.acquire(pool, "s", "w1", create=True)
    await store.commit(pool, "s", "w1", lease.epoch, [Change("program", "qa", PROGRAM)])
    await store.put_record(pool, "desired", 3)
    await store.close()
    await store.open()
    assert await held(store, pool) == {("program", "qa"): PROGRAM}
    assert await store.get_record(pool, "desired") == 3
    await store.close()


async def test_closing_finishes_what_was_accepted_and_then_refuses(url, pool):
    store = SessionStore(url)
    await store.open()
    accepted = [asyncio.create_task(store.acquire(pool, f"s{i}", "w1", create=True)) for i in range(10)]
    await asyncio.sleep(0)
    await store.close()
    assert all(call.done() and call.result().granted for call in accepted)
    for call in (store.acquire(pool, "s", "w1", create=True), store.list(pool)):
        with pytest.raises(StoreFailed, match="closed"):
            await call


@pytest.mark.parametrize(
    "url",
    [
        "mysql://root:hunter2@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+pysqlite:////x.db",
        "postgresql+psycopg://h/d",
        "x",
    ],
)
def test_urls_of_other_databases_are_refused_without_showing_a_password(url):
    with pytest.raises(ConfigError, match="store_url") as refused:
        SessionStore(url)
    assert "hunter2" not in str(refused.value)


def test_users_urls_get_the_asynchronous_driver():
    pytest.importorskip("asyncpg")
    assert parse_url("postgresql://u@h/d").drivername == "postgresql+asyncpg"
    assert parse_url("postgres://u@h/d").drivername == "postgresql+asyncpg"
    assert parse_url("sqlite:////tmp/x.db").drivername == "sqlite+aiosqlite"


async def test_an_unreachable_server_is_a_typed_failure_without_the_password():
    pytest.importorskip("asyncpg")
    with pytest.raises(StoreFailed) as failed:
        await SessionStore("postgresql://u:hunter2@127.0.0.1:1/d").open()
    assert "hunter2" not in str(failed.value)


async def test_only_the_user_can_read_the_files(sqlite_url, tmp_path):
    before = os.umask(0)
    try:
        store = SessionStore(sqlite_url)
        await store.open()
        await store.acquire("p", "s", "w1", create=True)
    finally:
        os.umask(before)
    state = tmp_path / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()}
    assert modes == {"dspool.db": 0o600, "dspool.db-wal": 0o600, "dspool.db-shm": 0o600}
    await store.close()


async def test_sqlite_syncs_its_log_at_every_commit(sqlite_url):
    engine = create_engine(parse_url(sqlite_url))
    async with engine.begin() as connection:
        settings = {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    await engine.dispose()
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


async def test_a_file_that_is_no_database_is_a_typed_failure(sqlite_url, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "dspool.db").write_text("not a database " * 100)
    with pytest.raises(StoreFailed, match="is no database"):
        await SessionStore(sqlite_url).open()


async def test_a_directory_that_cannot_be_made_is_a_typed_failure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="cannot be written to: Not a directory"):
        await SessionStore(f"sqlite:///{tmp_path}/file/dspool.db").open()


async def test_a_failed_write_fails_its_callers_and_the_store_goes_on(store, pool, monkeypatch):
    lease = await store.acquire(pool, "s", "w1", create=True)
    broken = text("INSERT INTO no_such_table VALUES ('content')")
    with monkeypatch.context() as patch:
        patch.setattr("dspool.store.writer.upsert", lambda *_: broken)
        with pytest.raises(StoreFailed) as failed:
            await store.commit(pool, "s", "w1", lease.epoch, [Change("variable", "x", "content")])
    assert "content" not in str(failed.value)
    await store.commit(pool, "s", "w1", lease.epoch, [Change("variable", "x", 1)])
    assert await held(store, pool) == {("variable", "x"): 1}


async def test_a_defect_in_a_decision_reaches_the_caller_and_the_store_goes_on(store, pool, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Commit, "decide", lambda *_, **__: 1 / 0)
        with pytest.raises(Exception, match="ZeroDivisionError"):
            await store.commit(pool, "s", "w1", 1, [])
    assert (await store.acquire(pool, "s", "w1", create=True)).granted


# --- schema versions ---------------------------------------------------------------------------------------


async def test_an_older_schema_is_migrated_forward_and_keeps_its_data(sqlite_url, monkeypatch):
    store = SessionStore(sqlite_url)
    await store.open()
    await store.put_record("p", "k", "kept")
    await store.close()

    def add_table(version):
        return lambda connection: Table(
            f"extra{version}", store_schema.MetaData(), Column("x", Integer)
        ).create(connection)

    last = migrations.SCHEMA_VERSION
    monkeypatch.setattr(migrations, "MIGRATIONS", {last: add_table(last), last + 1: add_table(last + 1)})
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", last + 2)
    for _ in range(2):  # the second time there is nothing to do
        await store.open()
        assert await store.get_record("p", "k") == "kept"
        async with store._engine.begin() as connection:
            tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
            version = (await connection.execute(text("SELECT version FROM schema_version"))).scalar_one()
        assert {f"extra{last}", f"extra{last + 1}"} < set(tables)
        assert version == last + 2
        await store.close()


async def test_a_migration_that_fails_leaves_the_old_schema(sqlite_url, monkeypatch):
    store = SessionStore(sqlite_url)
    await store.open()
    await store.close()

    def half_way(connection):
        connection.execute(text("CREATE TABLE half (x INTEGER)"))
        connection.execute(text("no SQL"))

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", {migrations.SCHEMA_VERSION: half_way})
        patch.setattr(migrations, "SCHEMA_VERSION", migrations.SCHEMA_VERSION + 1)
        with pytest.raises(StoreFailed):
            await store.open()
    await store.open()
    async with store._engine.begin() as connection:
        assert "half" not in await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    await store.close()


async def test_a_newer_or_unmigratable_schema_is_refused(sqlite_url, monkeypatch):
    store = SessionStore(sqlite_url)
    await store.open()
    await store.close()
    for version, says in [
        (migrations.SCHEMA_VERSION - 1, "upgrade dspool"),
        (migrations.SCHEMA_VERSION + 1, "no migration"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(migrations, "SCHEMA_VERSION", version)
            with pytest.raises(StoreFailed, match=says):
                await store.open()


async def test_stores_opened_at_once_on_an_empty_database_make_it_once(url, pool):
    stores = [SessionStore(url) for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    for store, number in zip(stores, itertools.count()):
        assert (await store.acquire(pool, f"s{number}", "w1", create=True)).granted
    await asyncio.gather(*(store.close() for store in stores))
