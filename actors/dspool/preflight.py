"""What keeps a service or a pool from starting on this machine, looked for before anything is started.

Each look takes a millisecond and changes nothing. `dspool doctor` looks as a start does, and says the same.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Final

from dspool import private_files
from dspool.causes import CAUSES, Obstacle, met, of_os_error
from dspool.config import PoolConfig
from dspool.config.secret_values import UNSENDABLE
from dspool.corrections import installed_version
from dspool.errors import ConfigError, PoolError

PACKAGES: Final = ("ray", "dspy")
SOCKET_LIMIT: Final = 107
_SESSION: Final = "/dspool-12345678/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""What a service and Ray add to the temporary directory for their longest socket."""
LEAST_FILES: Final = 1024
_TRIED_BYTES: Final = 64 * 1024
"""A file without content is made on a full disk, too."""
BASE_THREADS: Final = 300
THREADS_A_WORKER: Final = 25
BASE_MB: Final = 400
MB_A_WORKER: Final = 30
"""What is certainly needed, not what is comfortable."""
SHARED_MEMORY: Final = Path("/dev/shm")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_GROUPS: Final = Path("/proc/self/cgroup")
_MB: Final = 2**20
_UNLIMITED: Final = 2**60


def obstacles(
    config: PoolConfig, *, beside: Sequence[PoolConfig] = (), own_ray: bool = True, serves: bool = False
) -> Iterator[Obstacle]:
    """Everything in the way of a start with `config` and `beside`, the other pools of its service. `own_ray`: with a
    Ray of its own on this machine; `serves`: with HTTP."""
    pools = (config, *beside)
    workers = sum(one.pool_size for one in pools)
    looks: list[Callable[[], Obstacle | None]] = [
        python,
        *(lambda package=package: package_missing(package) for package in PACKAGES),
        *(
            lambda place=place: state_directory(place)
            for place in dict.fromkeys(one.state_dir for one in pools)
        ),
    ]
    if own_ray:
        looks += [
            working_directory,
            temporary_directory,
            loopback,
            shared_memory,
            open_files,
            lambda: processes(workers),
            lambda: memory(workers),
            lambda: unusable_key(pools),
        ]
    if own_ray and serves:
        looks.append(programs_refused)
    for look in looks:
        if (found := look()) is not None:
            yield found


def refuse_obstacles(
    config: PoolConfig, *, beside: Sequence[PoolConfig] = (), own_ray: bool = True, serves: bool = False
) -> None:
    """Raises: PoolError: the first that keeps it from starting; nothing was changed."""
    for found in obstacles(config, beside=beside, own_ray=own_ray, serves=serves):
        if CAUSES[found.cause].blocks:
            raise found.error()


def python(version: tuple[int, ...] = sys.version_info[:2]) -> Obstacle | None:
    return met("old_python", version=".".join(map(str, version))) if version < (3, 11) else None


def package_missing(package: str, version_of: Callable[[str], str] = installed_version) -> Obstacle | None:
    try:
        version_of(package)
    except PackageNotFoundError:
        return met("package_missing", package=package)
    return None


def state_directory(directory: Path) -> Obstacle | None:
    """Whether files can be kept in it, or it can be made."""
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        if not existing.is_dir():
            return met("state_taken", path=str(directory), file=str(existing))
        if existing == directory:
            private_files.check_directory(directory)
        _try_writing(existing)
    except OSError as failed:
        return of_os_error(failed, directory)
    return None


def chosen_temporary_directory() -> Path:
    """Where the service puts Ray's files; `/tmp` also when no directory can be written to."""
    with contextlib.suppress(FileNotFoundError):
        is_fit = os.access("/tmp", os.W_OK) and not _is_noexec(Path("/tmp"))
        return Path("/tmp" if is_fit else tempfile.gettempdir())
    return Path("/tmp")


def _is_noexec(directory: Path) -> bool:
    # Other systems than Linux do not tell.
    return bool(os.statvfs(directory).f_flag & getattr(os, "ST_NOEXEC", 0))


def working_directory() -> Obstacle | None:
    try:
        os.getcwd()
    except FileNotFoundError:
        return met("no_working_directory")
    return None


def temporary_directory(directory: Path | None = None) -> Obstacle | None:
    directory = directory or chosen_temporary_directory()
    length = len(os.fsencode(str(directory) + _SESSION))
    if length > SOCKET_LIMIT:
        return met("temporary_too_long", path=str(directory), most=SOCKET_LIMIT, length=length)
    try:
        _try_writing(directory)
    except OSError as failed:
        found = of_os_error(failed, directory)
        if found.cause in ("no_space", "no_quota"):
            return found
        return met(
            "temporary_not_writable", path=str(directory), why=failed.strerror or type(failed).__name__
        )
    return None


def programs_refused(directory: Path | None = None) -> Obstacle | None:
    """Whether HAProxy cannot be started from the temporary directory."""
    directory = directory or chosen_temporary_directory()
    return met("temporary_without_programs", path=str(directory)) if _is_noexec(directory) else None


def _try_writing(directory: Path) -> None:
    """Permissions alone do not tell: the file system may be full or read-only."""
    with tempfile.TemporaryFile(dir=directory, prefix=".dspool-", buffering=0) as file:
        left = _TRIED_BYTES
        while left > 0:
            left -= file.write(bytes(left))
        os.fsync(file.fileno())


def loopback() -> Obstacle | None:
    """Whether a process here reaches another one on 127.0.0.1."""
    with contextlib.ExitStack() as opened:
        try:
            listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        except OSError as failed:
            return met("no_local_ports", why=failed.strerror)
        try:
            opened.enter_context(socket.create_connection(listener.getsockname(), timeout=5.0))
        except OSError as failed:
            return met("loopback_down", why=failed.strerror or "no answer in 5 s")
    return None


def shared_memory(directory: Path = SHARED_MEMORY) -> Obstacle | None:
    """Little of it is none: Ray takes a disk then."""
    if sys.platform != "linux":
        return None
    if not directory.is_dir():
        return met("no_shared_memory", path=str(directory), why="no such directory")
    if not os.access(directory, os.W_OK | os.X_OK):
        return met("no_shared_memory", path=str(directory), why="permission denied")
    return None


def open_files(hard: int | None = None) -> Obstacle | None:
    """What counts is how far it may be raised: Ray's processes do that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard is None else hard
    return met("few_open_files", number=hard) if hard not in (-1,) and hard < LEAST_FILES else None


def processes(workers: int, limits: list[tuple[str, int, int]] | None = None) -> Obstacle | None:
    """`limits`: what limits, how many, and how many there are already."""
    needed = BASE_THREADS + THREADS_A_WORKER * workers
    for what, most, used in _process_limits() if limits is None else limits:
        if most - used < needed:
            return met("few_processes", what=what, number=most, used=used, needed=needed)
    return None


def explained(
    failed: PoolError, config: PoolConfig, *, beside: Sequence[PoolConfig] = (), own_ray: bool = True
) -> PoolError:
    """`failed`, a start, with what is in its way now, if that is one of the table."""
    if "cause" in failed.details:
        return failed
    found = next(obstacles(config, beside=beside, own_ray=own_ray), None)
    if found is None:
        return failed
    return type(failed)(f"{found.sentence} ({failed.message})", **failed.details, cause=found.cause)


def memory(workers: int, limit: int | None = None) -> Obstacle | None:
    limit = memory_limit() if limit is None else limit
    needed = BASE_MB + MB_A_WORKER * workers
    if limit is None or limit >= needed * _MB:
        return None
    return met("little_memory", limit_mb=limit // _MB, workers=workers, needed_mb=needed)


def unusable_key(configs: Sequence[PoolConfig], environ: Mapping[str, str] = os.environ) -> Obstacle | None:
    """A key that no provider gets as it is. One that is not there may be another's business, or come later."""
    for config in configs:
        for name, profile in config.lm_profiles.items():
            try:
                profile.api_key(environ)
            except ConfigError as refused:
                if refused.details.get("rule") in UNSENDABLE:
                    return met("bad_key", profile=name, why=refused.message)
    return None


def memory_limit() -> int | None:
    """Bytes that the control group of this process, and those above it, may have; None without a limit."""
    found = [
        limit
        for group in _groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(group / name)) is not None
    ]
    return min(found, default=None)


def _process_limits() -> list[tuple[str, int, int]]:
    found = [
        ("pids.max of the control group", most, _number(group / "pids.current") or 0)
        for group in _groups("pids")
        if (most := _number(group / "pids.max")) is not None
    ]
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    # Root is not held to it.
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:
        found.append(("ulimit -u", soft, _threads_of_user()))
    return found


def _threads_of_user() -> int:
    count = 0
    for entry in os.scandir("/proc") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == os.geteuid():
                count += len(os.listdir(f"/proc/{entry.name}/task"))
    return count


def _groups(controller: str) -> Iterator[Path]:
    """The directories of this process's control group for `controller`, and of all above it."""
    with contextlib.suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, names, path = line.split(":", 2)
            if names and controller not in names.split(","):
                continue
            root = _CGROUPS / controller if names else _CGROUPS
            place = root / path.lstrip("/")
            # In a container the path is the host's, and what is mounted is the group itself.
            place = place if place.is_dir() else root
            while True:
                yield place
                if place == root or root not in place.parents:
                    break
                place = place.parent


def _number(file: Path) -> int | None:
    """None: there is no such file, or no limit."""
    try:
        number = int(file.read_text())
    except (OSError, ValueError):
        return None
    return number if number < _UNLIMITED else None


__all__ = [
    "chosen_temporary_directory",
    "explained",
    "loopback",
    "memory",
    "memory_limit",
    "obstacles",
    "open_files",
    "package_missing",
    "processes",
    "python",
    "refuse_obstacles",
    "shared_memory",
    "state_directory",
    "temporary_directory",
    "unusable_key",
]
