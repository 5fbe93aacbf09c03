"""The store's own tests, run once more against a real PostgreSQL.

The server is the one DSPOOL_TEST_POSTGRES_URL names, or else a private one made for this module from the installed
binaries (Debian package `postgresql`): in a directory of its own, on a Unix socket only.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from postgres import needs_postgres, server_in

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
        "unit/test_store.py",
        "unit/test_store_serving.py",
        pytest.param("unit/test_store_copies.py", marks=pytest.mark.long),
        pytest.param("property/test_store_leases.py", marks=pytest.mark.long),
        "security/test_quotas.py",
    ],
)
def test_the_stores_tests_pass_on_postgresql(url, tests):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"tests/{tests}",
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
