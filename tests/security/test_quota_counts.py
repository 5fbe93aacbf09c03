"""What the store counted step by step is what there is, after an upgrade too, and costs no reading of a whole table."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from dspool.core.admission.quotas import MB, ROW_BYTES, size_of
from dspool.errors import Conflict, QuotaExceeded
from dspool.messages import Change
from dspool.store.schema import create_engine, parse_url
from dspool.store.store import SessionStore
from tests.security.limited_stores import (
    ANSWER,
    BIG,
    POSTGRES,
    assert_counted_right,
    claim,
    limited,
    put,
    usage_of,
)
from tests.security.schema_of_0_2_0 import SCHEMA

STEP = st.tuples(
    st.sampled_from(["put", "drop", "clear", "end", "claim", "settle", "create"]),
    st.sampled_from(["s1", "s2", "s3"]),
    st.sampled_from(["ada", "bob", None]),
    st.sampled_from(["", "[[],{}]", "é" * 20]),
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, max_size=12))
def test_what_was_counted_step_by_step_is_what_there_is(steps, tmp_path_factory):
    async def run():
        store = SessionStore(f"sqlite:///{tmp_path_factory.mktemp('s')}/d.db", quotas=limited(max_sessions=2))
        await store.open()
        for what, session, principal, content in steps:
            name = f"{principal}/{session}"
            try:
                if what == "put":
                    await put(store, "p", name, content[:3] or "n", content, principal)
                elif what == "drop":
                    await put(store, "p", name, content[:3] or "n", None, principal)
                elif what == "clear":
                    lease = await store.acquire("p", name, "w", create=True, principal=principal)
                    changes = [
                        Change("variable", "a", 1),
                        Change("variable", "*"),
                        Change("variable", "b", 1),
                    ]
                    await store.commit("p", name, "w", lease.epoch, changes, principal=principal)
                elif what == "end":
                    await store.end("p", name, principal=principal)
                elif what == "create":
                    await store.create("p", name, principal=principal)
                elif what == "claim":
                    await claim(store, "p", session, principal)
                else:
                    await store.settle_key("p", session, principal=principal, holder=session, answer=ANSWER)
            except (QuotaExceeded, Conflict):
                continue
        await assert_counted_right(store, "p")
        await store.close()

    asyncio.run(run())


OLD_PAYLOAD = '{"value":[1,2,{"é":3}]}'


async def old_store(url):
    """A store as 0.2.0 left it, on the same kind of database; gives its URL."""
    schema, answer = SCHEMA, "x'0102'"
    if url == POSTGRES:
        database = f"old_{uuid.uuid4().hex}"
        server = create_async_engine(parse_url(url), isolation_level="AUTOCOMMIT")
        async with server.connect() as connection:
            await connection.execute(text(f"CREATE DATABASE {database}"))
        await server.dispose()
        url = make_url(url).set(database=database).render_as_string(hide_password=False)
        schema = schema.replace("BLOB", "BYTEA").replace("VARCHAR", 'VARCHAR COLLATE "C"')
        answer = "decode('0102', 'hex')"
    rows = [
        "schema_version VALUES (2)",
        "sessions VALUES ('p', 'ada/a', 'ada', NULL, NULL, 1, 0, 1.0, 2.0)",
        "sessions VALUES ('p', 'ada/b', 'ada', NULL, NULL, 1, 0, 1.0, 2.0)",
        "sessions VALUES ('p', 'c', NULL, NULL, NULL, 1, 0, 1.0, 2.0)",
        f"session_items VALUES ('p', 'ada/a', 'variable', 'v', '{OLD_PAYLOAD}')",
        f"idempotency VALUES ('p', 'ada', 'key', 'f', 'h', 1.0, 9e9, {answer})",
    ]
    engine = create_engine(parse_url(url))
    async with engine.begin() as connection:
        for statement in [*schema.split(";")[:-1], *(f"INSERT INTO {row}" for row in rows)]:
            await connection.exec_driver_sql(statement)
    await engine.dispose()
    return url


async def test_the_store_of_the_released_version_is_migrated_and_counted(url):
    store = SessionStore(await old_store(url))
    await store.open()
    total, (ada,) = await store.usage("p")
    assert (total.sessions, ada.sessions) == (3, 2)
    assert ada.stored_mb * MB == 3 * ROW_BYTES + size_of(OLD_PAYLOAD)
    assert ada.answers_mb * MB == ROW_BYTES + len("key") + 2
    lease = await store.acquire("p", "ada/a", "w", create=False, principal="ada")
    assert lease.items == (Change("variable", "v", {"value": [1, 2, {"é": 3}]}),)
    await store.commit("p", "ada/a", "w", lease.epoch, [Change("variable", "v")])
    await assert_counted_right(store, "p")
    await store.close()


async def test_what_an_earlier_version_wrote_meanwhile_is_counted_at_the_next_start(opened, pool):
    """Pools of two versions may share a database for a while."""
    first = await opened()
    await put(first, pool, "s", "v", BIG)
    async with first._engine.begin() as connection:
        of_pool = {"pool": pool}
        await connection.execute(text("UPDATE session_items SET size = 0 WHERE pool = :pool"), of_pool)
        await connection.execute(text("UPDATE sessions SET size = 0 WHERE pool = :pool"), of_pool)
        await connection.execute(text("DELETE FROM usage WHERE pool = :pool"), of_pool)
    second = await opened(limited(max_stored_mb=1.5))
    assert (await usage_of(second, pool)).stored_mb > 1
    with pytest.raises(QuotaExceeded):
        await put(second, pool, "s", "w", BIG)


async def test_the_file_does_not_grow_with_what_was_deleted(tmp_path):
    file = tmp_path / "d.db"
    store = SessionStore(f"sqlite:///{file}")
    await store.open()
    sizes = []
    for _ in range(4):
        for number in range(4):
            await put(store, "p", f"s{number}", "v", BIG)
        for number in range(4):
            await store.end("p", f"s{number}")
        sizes.append(sum(part.stat().st_size for part in tmp_path.iterdir()))
    assert sizes[-1] <= sizes[0] * 1.2
    await store.close()


async def test_counting_reads_no_table_as_a_whole(tmp_path):
    """However much is kept, a change costs the same: each statement of a batch finds its rows by an index."""
    store = SessionStore(f"sqlite:///{tmp_path}/d.db")
    await store.open()
    statements = []
    listen = event.listens_for(store._engine.sync_engine, "before_cursor_execute")
    listen(
        lambda conn, cursor, statement, parameters, context, many: statements.append((statement, parameters))
    )
    leases = await asyncio.gather(
        *(store.acquire("p", f"s{n}", "w", create=True, principal=f"ada{n}") for n in range(8))
    )
    changes = [Change("variable", "a", 1), Change("program", "*")]
    await asyncio.gather(
        *(store.commit("p", lease.session, "w", lease.epoch, changes, principal="ada") for lease in leases)
    )
    await asyncio.gather(*(store.end("p", f"s{n}") for n in range(8)))
    await claim(store, "p", "k")
    await store.settle_key("p", "k", principal="ada", holder="k", answer=ANSWER)
    seen = dict(statements)
    async with store._engine.begin() as connection:
        for statement, parameters in seen.items():
            if statement.startswith(("SELECT", "DELETE", "UPDATE")):
                given = parameters[0] if isinstance(parameters, list) else parameters
                plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given)
                steps = [row[3] for row in plan]
                tables = ("sessions", "session_items", "usage", "idempotency", "dead_workers", "pools")
                assert not [step for step in steps if step in {f"SCAN {table}" for table in tables}], (
                    statement
                )
    await store.close()
