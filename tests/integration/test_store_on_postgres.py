"""The store's own tests, run once more against a real PostgreSQL.

The server is the one DSPOOL_TEST_POSTGRES_URL names, or else a private one made for this module from the installed
binaries (Debian package `postgresql`): in a directory of its own, on a Unix socket only.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dspool.store.store import SessionStore

pytest.importorskip("asyncpg", reason="needs the extra dspool[postgres]")

ROOT = Path(__file__).parents[2]
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))


class Server:
    """A PostgreSQL server that lives in `directory`."""

    def __init__(self, directory):
        self.data, self.directory = directory / "data", directory
        self.url = f"postgresql://dspool@/postgres?host={directory}"
        # PostgreSQL refuses to run as root.
        self.run_as = (
            {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        )
        if self.run_as:
            shutil.chown(directory, "postgres", "postgres")
        subprocess.run(
            [
                BINARIES[-1] / "initdb",
                "-D",
                self.data,
                "-U",
                "dspool",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd=directory,
            **self.run_as,
        )

    def start(self):
        log = (self.directory / "log").open("ab")
        command = [
            BINARIES[-1] / "postgres",
            "-D",
            self.data,
            "-k",
            self.directory,
            "-c",
            "listen_addresses=",
        ]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory, **self.run_as)
        log.close()
        ready = [BINARIES[-1] / "pg_isready", "-q", "-h", self.directory]
        for _ in range(200):
            if subprocess.run(ready, check=False, cwd=self.directory).returncode == 0:
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
        raise AssertionError((self.directory / "log").read_text())

    def stop(self):
        self.process.send_signal(signal.SIGINT)  # "fast": ends its connections
        self.process.wait(30)


@pytest.fixture(scope="module")
def server():
    if not BINARIES:
        pytest.skip("no PostgreSQL server is installed (Debian package: postgresql)")
    with tempfile.TemporaryDirectory(
        prefix="dspg"
    ) as directory:  # short: socket paths are limited to 107 bytes
        server = Server(Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def url(request):
    return os.environ.get("DSPOOL_TEST_POSTGRES_URL") or request.getfixturevalue("server").url


@pytest.mark.parametrize(
    "tests", ["unit/test_store.py", "unit/test_store_serving.py", "property/test_store_leases.py", "security/test_quotas.py"]
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
        timeout=150,
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
