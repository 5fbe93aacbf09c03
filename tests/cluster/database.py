"""PostgreSQL on a machine of its own, with its data on the machine's disk."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

from tests.cluster.machine import DISK, Machine

BINARIES: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
_DATA: Final = DISK / "data"
_USER: Final = "postgres"


class Database:
    """`url` for whoever is on the switch, once `start` returns."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.url = f"postgresql://dspool@{machine.address}/postgres"
        self._server: subprocess.Popen[str] | None = None

    @staticmethod
    def why_not() -> str:
        return "" if BINARIES else "no PostgreSQL server is installed (Debian package: postgresql)"

    def start(self) -> None:
        """Boot its machine if that is off, and go on with the data on its disk."""
        if not self.machine.is_on:
            self.machine.boot()
        data = self.machine.disk / "data"
        if not data.exists():
            data.mkdir(mode=0o700)
            shutil.chown(data, _USER, _USER)
            made = [
                BINARIES[-1] / "initdb",
                "-D",
                _DATA,
                "-U",
                "dspool",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
            ]
            self._run(*made)
            with (data / "pg_hba.conf").open("a") as file:
                file.write("host all all samenet trust\n")
        (data / "postmaster.pid").unlink(missing_ok=True)
        command = [str(BINARIES[-1] / "postgres"), "-D", str(_DATA), "-k", "/tmp", "-c", "listen_addresses=*"]
        self._server = self.machine.start(command, user=_USER)
        ready = [str(BINARIES[-1] / "pg_isready"), "-q", "-h", "/tmp", "-t", "1"]
        for _ in range(600):
            if self.machine.run(ready, check=False).returncode == 0:
                return
            try:
                self._server.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
        raise AssertionError(self.machine.logs.read_text()[-3000:])

    def stop(self) -> None:
        """Its machine goes on; whoever is connected hears of it."""
        assert self._server is not None
        self.machine.signal(self._server, signal.SIGINT)
        self._server.wait()

    def _run(self, *command: str | Path) -> None:
        done = self.machine.start([str(part) for part in command], user=_USER).wait()
        assert done == 0, self.machine.logs.read_text()[-3000:]
