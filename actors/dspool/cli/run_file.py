"""The run file: how `status`, `down` and `sessions` find a running `dspool up`, and how a second `up` is refused."""

from __future__ import annotations

import os
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
import psutil
from msgspec import Struct

from dspool import private_files
from dspool.causes import Obstacle, met, of_os_error
from dspool.core.lifecycle.upgrades import Installation
from dspool.process_start import process_start, runs_since, this_machine
from dspool.runtime.installed import installation

_ANSWERS_S: Final = 5.0


class ServiceRun(Struct, frozen=True, kw_only=True):
    """One `dspool up`. `url` is empty until it serves."""

    pid: int
    pid_started: float
    """When the process started, by `process_start`: a pid that is somebody else's by now is not taken for it."""
    machine: str = ""
    """Where, and since which boot; empty: a version before wrote it."""
    pool: str
    url: str = ""
    ray_address: str = ""
    temp_dir: str | None = None
    ray_token_path: str | None = None
    """The file with the token that its Ray asks for; None on a cluster that it joined."""
    joined: bool = False
    owns_serve: bool = False
    """It started the Serve of the cluster that it joined."""
    ray_dashboard: str | None = None
    """The address of Ray's dashboard, where it runs."""
    development: bool = False
    """It is a `dspool dev`: one worker, no Ray."""
    tls_cert: str | None = None
    """The certificate that the service shows, when it speaks HTTPS."""
    phase: Literal["starting", "serving", "stopping"] = "starting"
    log: str | None = None
    """Where its output goes, when it runs in the background."""
    installation: Installation = Installation()
    """What it was started with; what serves by now, the cluster knows."""
    flags: dict[str, Any] = {}
    """What its command line said, by setting: that holds for `dspool apply` too."""
    left: tuple[ServiceRun, ...] = ()
    """Earlier ones that died and are not cleared yet: what this one must not forget if it dies too."""

    def alive(self) -> bool:
        if self.machine not in ("", this_machine()):
            return False
        try:
            return runs_since(self.pid, self.pid_started)
        except psutil.Error:
            return False

    def serves_alone(self) -> bool:
        """Its process is dead, and what it started on another's cluster goes on: `dspool up` takes it over."""
        return (
            self.joined
            and self.phase == "serving"
            and not self.alive()
            and bool(self.url)
            and _answers(self.url)
        )


def _answers(url: str) -> bool:
    at = urlsplit(url)
    connection = HTTPConnection(at.hostname or "", at.port or 80, timeout=_ANSWERS_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def this_process(pool: str) -> ServiceRun:
    pid = os.getpid()
    return ServiceRun(
        pid=pid,
        pid_started=process_start(pid),
        machine=this_machine(),
        pool=pool,
        installation=installation(),
    )


def running_already(run: ServiceRun, state_dir: Path) -> Obstacle:
    at = f" at {run.url}" if run.url else ""
    return met("already_running", pool=run.pool, at=at, pid=run.pid, path=str(state_dir))


class RunFile:
    """`run.json` in a state directory, or `dev.json` of a `dspool dev`. Readable by its owner only."""

    def __init__(self, state_dir: Path, name: str = "run.json") -> None:
        self.state_dir = state_dir
        self.path = state_dir / name

    @property
    def of_development(self) -> RunFile:
        """Where a `dspool dev` with the same configuration is written down."""
        return RunFile(self.state_dir, "dev.json")

    def living(self) -> ServiceRun | None:
        """The `dspool up` that runs, else the `dspool dev`, else the service that goes on without its `dspool up`."""
        runs = [run for run in (self.read(), self.of_development.read()) if run is not None]
        return next(
            (run for run in runs if run.alive()), next((run for run in runs if run.serves_alone()), None)
        )

    def read(self) -> ServiceRun | None:
        """What is written there, running or not; None when there is nothing of use."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=ServiceRun)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def claim(self, run: ServiceRun) -> ServiceRun | None:
        """Take the state directory for `run`; gives the dead run that was there before, for cleaning up. The file has
        it as `left` until `write` says otherwise.

        Raises:
            Conflict: a living one has it.
            ConfigError: the directory cannot be written to.
        """
        before: ServiceRun | None = None
        for _ in range(3):
            try:
                private_files.make_directory(self.state_dir)
                descriptor = private_files.open_descriptor(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                if not self.path.is_file():
                    break
                before = self.read()
                if before is not None and before.alive():
                    raise running_already(before, self.state_dir).error() from None
                if before is not None:
                    run = msgspec.structs.replace(
                        run, left=(*before.left, msgspec.structs.replace(before, left=()))
                    )
                self.path.unlink(missing_ok=True)
                continue
            except OSError as failed:
                raise of_os_error(failed, self.state_dir).error() from failed
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(run))
            except OSError as failed:
                self.path.unlink(missing_ok=True)
                raise of_os_error(failed, self.state_dir).error() from failed
            return before
        raise met("state_taken", path=str(self.state_dir), file=str(self.path)).error()

    def write(self, run: ServiceRun) -> None:
        """Replace the content in one step: a reader sees the old or the new one."""
        private_files.replace(self.path, msgspec.json.encode(run))

    def remove(self, pid: int) -> None:
        """Remove it if it is the one of `pid`."""
        run = self.read()
        if run is not None and run.pid == pid:
            self.path.unlink(missing_ok=True)
