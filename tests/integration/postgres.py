"""PostgreSQL servers for tests, made from the installed binaries (Debian package `postgresql`).

Each is in a directory of its own, on a Unix socket only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
# PostgreSQL refuses to run as root.
RUN_AS: dict[str, Any] = (
    {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
)


def needs_postgres() -> None:
    if not BINARIES:
        pytest.skip("no PostgreSQL server is installed (Debian package: postgresql)")


class Server:
    """A PostgreSQL server that lives in `directory`; of `primary`, if there is one, it is a standby."""

    def __init__(self, directory: Path, primary: Server | None = None) -> None:
        self.data, self.directory = directory / "data", directory
        self.url = f"postgresql://dspool@/postgres?host={directory}"
        if RUN_AS:
            shutil.chown(directory, "postgres", "postgres")
        if primary is None:
            self._run("initdb", "-D", self.data, "-U", "dspool", "-A", "trust", "-E", "UTF8", "--no-sync")
        else:
            base = ("-h", primary.directory, "-U", "dspool", "-R", "-X", "stream", "-c", "fast", "--no-sync")
            self._run("pg_basebackup", "-D", self.data, *base)

    def start(self) -> None:
        log = (self.directory / "log").open("ab")
        # What a server has written survives its own death; the disk is waited for against that of the machine.
        options = ("-D", self.data, "-k", self.directory, "-c", "listen_addresses=", "-c", "fsync=off")
        self.process = subprocess.Popen(
            [BINARIES[-1] / "postgres", *options], stdout=log, stderr=log, cwd=self.directory, **RUN_AS
        )
        log.close()
        ready = [BINARIES[-1] / "pg_isready", "-q", "-h", self.directory]
        for _ in range(200):
            if subprocess.run(ready, check=False, cwd=self.directory).returncode == 0:
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
        raise AssertionError((self.directory / "log").read_text())

    def sql(self, *statements: str) -> str:
        commands = [argument for statement in statements for argument in ("-c", statement)]
        return self._run("psql", "-h", self.directory, "-U", "dspool", "-d", "postgres", "-qtA", *commands)

    def promote(self) -> None:
        """Returns when it takes writes."""
        self._run("pg_ctl", "promote", "-w", "-D", self.data)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is "fast": it ends its connections. SIGQUIT is a crash."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def _run(self, program: str, *arguments: str | Path) -> str:
        command = [BINARIES[-1] / program, *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=self.directory, **RUN_AS
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@contextlib.contextmanager
def server_in(primary: Server | None = None) -> Iterator[Server]:
    """A server that runs during the block."""
    # Short: socket paths are limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="dspg") as directory:
        server = Server(Path(directory), primary)
        server.start()
        try:
            yield server
        finally:
            server.stop()
