"""What one principal may keep, and what happens to those who want more. The store counts, in its transaction.

On PostgreSQL too when DSPOOL_TEST_POSTGRES_URL names one.
"""

import asyncio
import os
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from dspool.config import PoolConfig
from dspool.core.admission.eviction import evicted_principal
from dspool.core.admission.quotas import MB, ROW_BYTES, Quotas, size_of
from dspool.errors import ConfigError, Conflict, PayloadTooLarge, QuotaExceeded
from dspool.messages import Change, GetVariable, SetVariable, StorageLimits
from dspool.store.idempotency import KeptAnswer
from dspool.store.schema import create_engine, parse_url
from dspool.store.store import SessionStore
from dspool.store.usage import count_anew
from dspool.telemetry import events
from dspool.telemetry.event_log import LIMITS, EventLog
from dspool.telemetry.refusals import Refusals
from dspool.testing.host import LoopbackPool
from tests.security.schema_of_0_2_0 import SCHEMA

POSTGRES = os.environ.get("DSPOOL_TEST_POSTGRES_URL")
BIG = "x" * MB


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRES else [])])
def url(request, tmp_path):
    return POSTGRES if request.param == "postgresql" else f"sqlite:///{tmp_path}/state/dspool.db"


@pytest.fixture
def pool():
    return f"pool-{uuid.uuid4()}"


@pytest.fixture
async def opened(url):
    """Opens stores with the limits that a test wants."""
    stores = []

    async def open_store(quotas=None, **more):
        store = SessionStore(url, quotas=quotas, **more)
        await store.open()
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close()


def quotas_of_config(**limits):
    from dspool.store.settings import quotas_of

    return quotas_of(PoolConfig(limits=limits))


def limited(**limits):
    return Quotas(principal=StorageLimits(**limits))


async def put(store, pool, session, name, value, principal="ada", **more):
    lease = await store.acquire(pool, session, "w", create=True, principal=principal, **more)
    changes = [Change("variable", name, None if value is None else {"value": value})]
    return await store.commit(pool, session, "w", lease.epoch, changes, principal=principal, **more)


async def usage_of(store, pool, principal="ada"):
    _, rows = await store.usage(pool)
    return next((row for row in rows if row.principal == principal), None)


async def first_refusal(attempts):
    """How many succeeded before the first that was refused, and why that was."""
    done, refused = 0, None
    for attempt in attempts:
        if refused is not None:
            attempt.close()
            continue
        try:
            await attempt
            done += 1
        except (QuotaExceeded, PayloadTooLarge) as error:
            refused = error
    assert refused is not None
    return done, refused


async def assert_counted_right(store, pool):
    """What was counted step by step is what a count of everything finds."""
    before = await store.usage(pool)
    async with store._engine.begin() as connection:
        await connection.run_sync(count_anew)
    assert await store.usage(pool) == before


# --- sizes ---


async def test_a_session_does_not_grow_beyond_its_bound_and_keeps_what_it_had(opened, pool):
    store = await opened(quotas_of_config())
    lease = await store.acquire(pool, "s", "w", create=True, principal="ada")
    kept, refused = await first_refusal(
        store.commit(pool, "s", "w", lease.epoch, [Change("variable", f"v{number}", BIG)], principal="ada")
        for number in range(150)
    )
    assert kept == 31
    assert isinstance(refused, PayloadTooLarge)
    assert refused.details == {"limit": "max_session_mb", "most": 32.0}
    lease = await store.acquire(pool, "s", "w", create=False, principal="ada")
    assert len(lease.items) == kept
    assert lease.size < 32 * MB


async def test_many_sessions_each_below_its_bound_do_not_pass_the_bound_of_their_principal(opened, pool):
    store = await opened(limited(max_session_mb=2, max_stored_mb=5))
    _, refused = await first_refusal(put(store, pool, f"s{number}", "v", BIG) for number in range(1000))
    assert refused.details == {"limit": "max_stored_mb", "most": 5, "scope": "principal"}
    assert (await usage_of(store, pool)).stored_mb < 5
    await put(store, pool, "t", "v", BIG, principal="bob")  # another's bound is another's


async def test_sessions_are_counted_and_ending_one_gives_its_place_back_at_once(opened, pool):
    store = await opened(limited(max_sessions=2))
    await store.create(pool, "a", principal="ada")
    await store.acquire(pool, "b", "w", create=True, principal="ada")
    for create in (
        store.create(pool, "c", principal="ada"),
        store.acquire(pool, "c", "w", create=True, principal="ada"),
    ):
        with pytest.raises(QuotaExceeded, match="max_sessions"):
            await create
    await store.create(pool, "of-bob", principal="bob")
    assert await store.end(pool, "a", principal="ada")
    await store.create(pool, "c", principal="ada")


async def test_deleting_gives_room_back_at_once(opened, pool):
    store = await opened(limited(max_stored_mb=2.5))
    await put(store, pool, "a", "v", BIG)
    await put(store, pool, "b", "v", BIG)
    with pytest.raises(QuotaExceeded):
        await put(store, pool, "b", "w", BIG)
    await put(store, pool, "a", "v", None)
    await put(store, pool, "b", "w", BIG)
    await store.end(pool, "b", principal="ada")
    assert (await usage_of(store, pool)).stored_mb * MB == ROW_BYTES


async def test_replacing_a_value_counts_the_difference_only(opened, pool):
    store = await opened(limited(max_session_mb=1.5))
    for _ in range(4):
        await put(store, pool, "s", "v", BIG)
    await put(store, pool, "s", "v", "small")
    assert (await usage_of(store, pool)).stored_mb < 0.01


async def test_whoever_is_over_a_bound_that_was_lowered_may_still_delete(opened, pool):
    first = await opened()
    await put(first, pool, "s", "v", BIG)
    await put(first, pool, "s", "w", BIG)
    second = await opened(limited(max_session_mb=0.5, max_stored_mb=0.5, max_sessions=1))
    with pytest.raises(PayloadTooLarge):
        await put(second, pool, "s", "x", 1)
    await put(second, pool, "s", "v", None)
    await put(second, pool, "s", "w", "small")


async def test_what_expires_gives_room_back(opened, pool):
    now = [1000.0]
    store = await opened(limited(max_sessions=1), clock=lambda: now[0])
    await put(store, pool, "old", "v", BIG)
    now[0] += 100
    assert await store.expire(pool, 50) == [("old", "w")]
    assert await usage_of(store, pool) is None
    await put(store, pool, "new", "v", 1)
    await assert_counted_right(store, pool)


async def test_small_text_that_python_turns_into_much_memory_counts_for_that(opened, pool):
    """`[[],[],...]` takes twenty times its text in a worker."""
    store = await opened(limited(max_session_mb=8))
    with pytest.raises(PayloadTooLarge):
        await put(store, pool, "s", "v", [[]] * 300_000)
    assert size_of("[" + ",".join(["[]"] * 1000) + "]") > 1000 * 56


async def test_a_race_does_not_pass_a_bound(opened, pool):
    stores = [await opened(limited(max_sessions=5)), await opened(limited(max_sessions=5))]
    ends = await asyncio.gather(
        *(stores[n % 2].create(pool, f"s{n}", principal="ada") for n in range(40)), return_exceptions=True
    )
    assert sum(not isinstance(end, QuotaExceeded) for end in ends) == 5
    assert (await usage_of(stores[0], pool)).sessions == 5


# --- who has no principal, and everybody together ---


async def test_without_a_principal_the_bounds_of_the_pool_hold(opened, pool):
    store = await opened(Quotas(principal=StorageLimits(max_sessions=1), sessions=3, stored_mb=2.5))
    for number in range(2):
        await put(store, pool, f"s{number}", "v", BIG, principal=None)
    with pytest.raises(QuotaExceeded) as full:
        await put(store, pool, "s0", "w", BIG, principal=None)
    assert (full.value.limit, full.value.scope) == ("max_pool_stored_mb", "pool")
    await store.create(pool, "of-ada", principal="ada")
    with pytest.raises(QuotaExceeded) as many:
        await store.create(pool, "more")
    assert (many.value.limit, many.value.scope) == ("max_pool_sessions", "pool")
    total, principals = await store.usage(pool)
    assert (total.sessions, [row.principal for row in principals]) == (3, ["ada"])


async def test_pools_that_share_a_database_are_counted_apart(opened, pool):
    store = await opened(limited(max_sessions=1))
    await store.create(pool, "s", principal="ada")
    await store.create(f"{pool}-2", "s", principal="ada")


async def test_a_token_may_say_more_or_less_than_the_configuration(opened, pool):
    store = await opened(limited(max_sessions=2, max_session_mb=1))
    more = StorageLimits(max_sessions=4, max_session_mb=3)
    for number in range(4):
        await put(store, pool, f"s{number}", "v", "x" * int(1.5 * MB), limits=more)
    with pytest.raises(QuotaExceeded):
        await store.create(pool, "s4", principal="ada", limits=more)
    with pytest.raises(QuotaExceeded):
        await store.create(pool, "s", principal="bob", limits=StorageLimits(max_sessions=0))
    # An admin's own limits do not count for another's session.
    lease = await store.acquire(pool, "s0", "w", create=False)
    change = Change("variable", "w", BIG)
    with pytest.raises(PayloadTooLarge):
        await store.commit(pool, "s0", "w", lease.epoch, [change], principal="root", limits=more)


# --- kept answers ---


def claim(store, pool, key, principal="ada", **more):
    return store.claim_key(
        pool, key, principal=principal, fingerprint="f", holder=key, patience_s=10, keep_s=100, **more
    )


async def claim_and_settle(store, pool, key):
    await claim(store, pool, key)
    await store.settle_key(pool, key, principal="ada", holder=key, answer=ANSWER)


ANSWER = KeptAnswer(200, "application/json", [], b"x" * (MB // 2))


async def test_kept_answers_do_not_grow_beyond_the_bound_of_their_principal(opened, pool):
    now = [1000.0]
    store = await opened(limited(max_answers_mb=2), clock=lambda: now[0])
    _, refused = await first_refusal(claim_and_settle(store, pool, f"k{number}") for number in range(100))
    assert refused.limit == "max_answers_mb"
    # The last answer may pass the bound: its work was done.
    assert 2 < (await usage_of(store, pool)).answers_mb < 2.6
    assert (await claim(store, pool, "k0")).outcome == "done"  # what is kept still answers
    assert (await claim(store, pool, "k", principal="bob")).outcome == "new"
    await assert_counted_right(store, pool)
    now[0] += 101
    assert (await claim(store, pool, "later")).outcome == "new"
    assert (await usage_of(store, pool)).answers_mb < 0.01


async def test_a_claim_that_is_given_up_gives_its_room_back_and_empty_answers_are_not_free(opened, pool):
    store = await opened(limited(max_answers_mb=ROW_BYTES * 3 / MB))
    await claim(store, pool, "a")
    await claim(store, pool, "b")
    with pytest.raises(QuotaExceeded):
        await claim(store, pool, "c")
    await store.drop_key(pool, "a", principal="ada", holder="a")
    assert (await claim(store, pool, "c")).outcome == "new"


# --- the count stays right ---

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


OLD_PAYLOAD = '{"value":[1,2,{"é":3}]}'


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


# --- on a worker ---


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


# --- seen from outside ---


async def test_refusals_are_counted_by_limit_and_do_not_flood_the_events():
    log, told = EventLog("p"), asyncio.Event()

    def listen(event, measurements, metadata):
        log(event, measurements, metadata)
        if len(log.after()) == 2:
            told.set()

    events.attach(listen, ("limit.refused",))
    refusals = Refusals("p", every_s=0.0)
    for _ in range(500):
        refusals.count("max_sessions")
    refusals.count("rate_per_s")
    await asyncio.wait_for(told.wait(), 60)
    events.detach(listen)
    assert log.refusals == {"max_sessions": 500, "rate_per_s": 1}
    assert len(log.after()) == 2


async def test_every_refusal_of_the_store_is_counted_under_a_known_limit(opened, pool):
    counted = []
    store = await opened(limited(max_sessions=1, max_session_mb=0.1), refused=counted.append)
    await store.create(pool, "a", principal="ada")
    for what in (store.create(pool, "b", principal="ada"), put(store, pool, "a", "v", BIG)):
        with pytest.raises((QuotaExceeded, PayloadTooLarge)):
            await what
    assert counted == ["max_sessions", "max_session_mb"]
    assert set(counted) < set(LIMITS)


def test_a_session_may_not_be_larger_than_what_its_principal_may_keep():
    with pytest.raises(ConfigError, match="max_stored_mb"):
        PoolConfig(limits={"max_session_mb": 64, "max_stored_mb": 32})


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
