"""The store's own tests, run once more against a real PostgreSQL.

The server is the one DSPOOL_TEST_POSTGRES_URL names, or else a private one made for this module from the installed
binaries (Debian package `postgresql`): in a directory of its own, on a Unix socket only.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from postgres import needs_postgres, server_in

from dspool.config.store import StoreConfig
from dspool.store.claims import hold_pools
from dspool.store.store import SessionStore

pytest.importorskip("asyncpg", reason="needs the extra dspool[postgres]")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    needs_postgres()
    with server_in() as server:
        yield server


@pytest.fixture(scope="module")
def url(request):
    return os.environ.get("DSPOOL_TEST_POSTGRES_URL") or request.getfixturevalue("server").url


@pytest.mark.parametrize(
    "tests",
    [
        # One process for all of these: each would import for itself.
        "unit/test_store.py unit/test_store_serving.py security/test_quotas.py security/test_quota_counts.py",
        pytest.param("unit/test_store_copies.py", marks=pytest.mark.long),
        pytest.param("property/test_store_leases.py", marks=pytest.mark.long),
    ],
)
def test_the_stores_tests_pass_on_postgresql(url, tests):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        *(f"tests/{file}" for file in tests.split()),
        "-k",
        "postgresql or Leases",
    ]
    ran = subprocess.run(
        command,
        env={**os.environ, "DSPOOL_TEST_POSTGRES_URL": url},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


async def test_the_store_goes_on_after_the_server_restarts(server):
    store = SessionStore(server.url)
    await store.open()
    lease = await store.acquire("restart", "s", "w1", create=True)
    server.stop()
    server.start()
    await store.commit("restart", "s", "w1", lease.epoch, [])
    assert (await store.get("restart", "s")).epoch == lease.epoch
    await store.close()


async def test_a_store_that_vanished_in_a_transaction_does_not_keep_the_pool_from_its_successor(server):
    """Its machine is gone, and its connection is still open for the server: it holds the pool's row."""
    patient = StoreConfig(statement_timeout_s=600.0)
    gone, successor = (SessionStore(server.url, settings=patient) for _ in range(2))
    await gone.open()
    await gone.put_record("vanished", "k", 1)
    async with gone._engine.connect() as connection:
        await hold_pools(connection, ["vanished"], {})
        async with asyncio.timeout(60):
            await successor.open()
            await successor.put_record("vanished", "k", 2)
        await connection.invalidate()
    assert await successor.get_record("vanished", "k") == 2
    for store in (gone, successor):
        await store.close()
