"""Stores and database servers that are replaced while somebody works with them."""

import asyncio
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from postgres import needs_postgres, server_in

from dspool.config.store import StoreConfig
from dspool.errors import StoreFailed
from dspool.messages import Change
from dspool.store.claims import this_server
from dspool.store.store import SessionStore

OLD = """
import asyncio, sys
from dspool.errors import StoreFailed
from dspool.messages import Change
from dspool.store.claims import this_server
from dspool.store.store import SessionStore

async def main():
    store = SessionStore(sys.argv[1])
    await store.open()
    # It does nothing between what it is told to do: then it is stopped in no transaction.
    await store.serve("p", this_server("old"), heartbeat_s=3600.0)
    lease = await store.acquire("p", "s", "w", create=True)
    print(lease.epoch, flush=True)
    for number in range(1_000_000):
        await asyncio.to_thread(sys.stdin.readline)
        try:
            await store.commit("p", "s", "w", lease.epoch, [Change("variable", "x", number)])
        except StoreFailed as refused:
            print(refused.message, flush=True)
            sys.exit(3)
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server():
    needs_postgres()
    with server_in() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    return (
        f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.getfixturevalue("server").url
    )


async def kept(store):
    return [item.payload for item in (await store.acquire("p", "s", "w", create=False)).items]


async def test_a_store_that_was_stopped_and_goes_on_after_its_successor_began_commits_nothing_and_ends(url):
    old = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", OLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        epoch = int(old.stdout.readline())
        old.stdin.write("\n")
        assert old.stdout.readline() == "0\n"
        old.send_signal(signal.SIGSTOP)
        new = SessionStore(url)
        await new.open()
        served = await new.serve("p", this_server("new"), heartbeat_s=0.05, take_over_s=0.3)
        assert await kept(new) == [0]
        await new.commit("p", "s", "w", epoch, [Change("variable", "x", "of the new one")])
        old.send_signal(signal.SIGCONT)
        old.stdin.write("\n")
        said = old.stdout.readline()
        assert "was replaced and has ended" in said
        assert f"epoch {served.epoch}" in said
        assert old.wait(30) == 3
        assert await kept(new) == ["of the new one"]
        await new.close()
    finally:
        old.kill()
        old.wait()
        old.stdin.close()
        old.stdout.close()


async def test_the_store_goes_on_at_the_host_that_takes_over_with_all_that_was_acknowledged(server):
    with server_in(server) as standby:
        server.sql("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        url = f"postgresql://dspool@/postgres?host={server.directory},{standby.directory}"
        store = SessionStore(url, settings=StoreConfig(statement_timeout_s=5.0))
        await store.open()
        await store.serve("f", this_server("a"), heartbeat_s=0.1)
        lease = await store.acquire("f", "s", "w", create=True)
        for number in range(10):
            await store.commit("f", "s", "w", lease.epoch, [Change("variable", "x", number)])
        await asyncio.to_thread(server.stop, signal.SIGQUIT)
        with pytest.raises(StoreFailed):
            await store.commit("f", "s", "w", lease.epoch, [Change("variable", "x", "nobody has it")])
        await asyncio.to_thread(standby.promote)
        await store.commit("f", "s", "w", lease.epoch, [Change("variable", "y", "after")])
        found = (await store.acquire("f", "s", "w", create=False)).items
        assert [item.payload for item in found] == [9, "after"]
        assert (await store.get("f", "s")).owner == "w"
        await store.close()
    server.start()
    server.sql("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")


async def test_what_is_wrong_with_a_database_is_said_at_once_and_by_its_name(server):
    server.sql("CREATE ROLE limited LOGIN PASSWORD 'right'")
    rules = server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all limited scram-sha-256\n{before}")
    server.sql("SELECT pg_reload_conf()")
    folder = server.directory
    for url, says in [
        (
            f"postgresql://limited:hunter2@/postgres?host={folder}",
            "refused the user 'limited' or its password",
        ),
        (f"postgresql://dspool@/nothing?host={folder}", "has no database 'nothing'"),
        (f"postgresql://dspool@/postgres?host={folder}/away", "cannot be reached"),
        (f"postgresql://dspool@/postgres?host={folder}&target_session_attrs=standby", "takes writes now"),
    ]:
        with pytest.raises(StoreFailed, match=says) as refused:
            await SessionStore(url).open()
        assert "hunter2" not in str(refused.value)
    rules.write_text(before)
    server.sql("SELECT pg_reload_conf()")


async def test_a_server_that_became_read_only_is_left_for_one_that_takes_writes(server):
    store = SessionStore(server.url)
    await store.open()
    await store.create("ro", "s")
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    try:
        for number in range(3):
            with pytest.raises(StoreFailed):
                await store.create("ro", f"never{number}")
    finally:
        server.sql(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )
    for _ in range(100):
        with suppress(StoreFailed):
            await store.create("ro", "again")
            break
        await asyncio.sleep(0.05)  # the server reads its settings anew when it comes to it
    assert (await store.get("ro", "again")).id == "again"
    await store.close()
