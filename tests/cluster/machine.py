"""One machine: network, processes, mounts and host name of its own, and /tmp, /dev/shm and a home that are new at each
boot. `DISK` is what a power-off leaves as it was."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import psutil

from tests.cluster.freezer import Freezer
from tests.cluster.possible import NAMESPACES
from tests.cluster.switch import Switch

ROOT: Final = Path(__file__).parents[2]
HOME: Final = "/tmp/home"
DISK: Final = Path("/tmp/disk")
_INIT: Final = Path(__file__).with_name("init.py")
_PASSED: Final = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH")


class Machine:
    """Off until `boot`; `power_off` and `boot` as often as wanted. Its address stays the same."""

    def __init__(self, name: str, number: int, switch: Switch, directory: Path) -> None:
        self.name, self.number = name, number
        self.address = switch.address(number)
        self.disk = directory / name
        """DISK, seen from the host."""
        self.disk.mkdir()
        self.logs = directory / f"{name}.log"
        self._switch = switch
        self._freezer: Freezer | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @property
    def is_on(self) -> bool:
        return self._holder is not None

    # --- power ---

    def boot(self) -> None:
        assert not self.is_on, f"{self.name} is on"
        self._freezer = Freezer(f"{self.name}-{secrets.token_hex(4)}")
        # The host's /tmp is covered; what is run from there stays.
        kept = {str(path) for path in (ROOT, Path(sys.prefix)) if path.is_relative_to("/tmp")}
        command = ["unshare", *NAMESPACES, sys.executable, "-I", "-S", str(_INIT), self.name, str(self.disk)]
        self._holder = subprocess.Popen(
            [*command, *kept],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # `unshare` complains when the first process is killed.
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=self._environment({}),
            preexec_fn=self._freezer.enter,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"booted\n":
            raise OSError(f"machine {self.name} does not boot")
        [init] = psutil.Process(self._holder.pid).children()
        self._pid = init.pid
        self._switch.plug(self._pid, self.number)

    def power_off(self) -> None:
        """At once, and without a word to anybody: not even the kernel closes a connection."""
        self.cut()
        self.crash()

    def crash(self) -> None:
        """All its processes are killed; its kernel says so to whoever was connected."""
        assert self._holder is not None
        assert self._freezer is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._freezer.thaw()
        self._holder.wait()
        for pipe in (self._holder.stdin, self._holder.stdout):
            assert pipe is not None
            pipe.close()
        self._freezer.close()
        self._holder = self._freezer = None

    def close(self) -> None:
        if self.is_on:
            self.crash()

    # --- troubles ---

    def freeze(self) -> None:
        """Nothing on it runs any more, until `thaw`; its kernel still acknowledges what comes."""
        assert self._freezer is not None
        self._freezer.freeze()

    def thaw(self) -> None:
        assert self._freezer is not None
        self._freezer.thaw()

    def cut(self) -> None:
        """Unplug its network. `mend` plugs it in again."""
        self._switch.cut(self.number)

    def mend(self) -> None:
        self._switch.mend(self.number)

    def slow(self, delay_ms: float) -> None:
        self._switch.slow(self.number, delay_ms)

    # --- what runs on it ---

    def run(
        self, command: Sequence[str], *, timeout_s: float = 300.0, check: bool = True, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self._within(command),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd="/",
            env=self._environment(environ),
            preexec_fn=self._enter,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {' '.join(command)} ended with {done.returncode}: {done.stdout[-1500:]}"
                f"{done.stderr[-3000:]}"
            )
        return done

    def start(
        self,
        command: Sequence[str],
        *,
        stdout: int | IO[Any] | None = None,
        user: str | None = None,
        **environ: str,
    ) -> subprocess.Popen[str]:
        """What it says goes into `logs`, or what it prints to `stdout`. `signal` reaches it, not the process itself."""
        with self.logs.open("ab") as log:
            return subprocess.Popen(
                self._within(command, user),
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                text=True,
                cwd="/",
                env=self._environment(environ),
                preexec_fn=self._enter,
            )

    @staticmethod
    def signal(started: subprocess.Popen[str], number: int) -> None:
        """Send it to what `start` has started."""
        for child in psutil.Process(started.pid).children():
            child.send_signal(number)

    def _within(self, command: Sequence[str], user: str | None = None) -> list[str]:
        spaces = ("--net", "--pid", "--mount", "--uts")
        become = [] if user is None else ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
        return ["nsenter", "--target", str(self._pid), *spaces, *become, *command]

    def _enter(self) -> None:
        assert self._freezer is not None
        self._freezer.enter()

    def _environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        passed["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), passed.get("PATH", os.defpath)])
        return {**passed, "HOME": HOME, **environ}
