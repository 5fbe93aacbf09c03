"""Runs a command where a careful container runs it, without a container engine: Linux namespaces.

`python -m benchmarks.confined --keep DIR --state DIR -- command`

The root holds the system's programs, Python, and each DIR kept, all read-only; /tmp is new and in memory, /dev/shm has
64 MB, /state is the directory given and the only one that stays. The command is process 1, belongs to a user with an
odd id whom nobody knows, has HOME=/ and no variables but those that an image sets. The network is the machine's.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from benchmarks.common import ROOT

USER: Final = 54321
"""As OpenShift gives them out: /etc/passwd does not have it."""
SHM_MB: Final = 64
_SYSTEM: Final = ("usr", "bin", "sbin", "lib", "lib64", "etc", "sys", "dev")
_ALONE: Final = ("--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
_AS_ROOT: Final = ("--user", "--map-root-user")

# mount_setattr(2), which util-linux has no option for yet. The numbers are the same on every architecture.
_MOUNT_SETATTR: Final = 442
_AT_RECURSIVE: Final = 0x8000
_READ_ONLY: Final = 1


def flags() -> tuple[str, ...] | None:
    """What `unshare` takes here; None where the system allows no namespaces."""
    for wanted in (_ALONE, _AS_ROOT + _ALONE):
        probe = ["unshare", *wanted, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        try:
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return wanted
        except OSError:
            return None
    return None


def command(
    inner: Sequence[str],
    *,
    state: Path,
    place: Path,
    keep: Sequence[Path],
    environ: dict[str, str] | None = None,
) -> list[str]:
    """The command that runs `inner` confined. `place` is an empty directory, for the root."""
    unshared = flags()
    if unshared is None:
        raise RuntimeError("the system allows no namespaces")
    kept = [argument for path in keep for argument in ("--keep", str(path))]
    given = [argument for pair in (environ or {}).items() for argument in ("--env", "=".join(pair))]
    itself = [sys.executable, "-m", "benchmarks.confined", "--place", str(place), "--state", str(state)]
    return ["unshare", *unshared, *itself, *kept, *given, "--", *inner]


def _inside(
    place: Path, state: Path, keep: Sequence[Path], environ: dict[str, str], inner: Sequence[str]
) -> NoReturn:
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(place))
    (place / "tmp").mkdir()
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(place / "tmp"))
    for path in [Path("/", name) for name in _SYSTEM] + [Path(sys.base_prefix), *keep]:
        if path.is_symlink() and path.parent == Path("/"):
            (place / path.name).symlink_to(path.readlink())
        elif path.exists():
            _shown(path, place / path.relative_to("/"))
    for name in ("proc", "state"):
        (place / name).mkdir()
    _set_attributes(place, _AT_RECURSIVE, add=_READ_ONLY)
    _set_attributes(place / "tmp", 0, remove=_READ_ONLY)
    _mount("-t", "proc", "proc", str(place / "proc"))
    _mount("-t", "tmpfs", "-o", f"mode=1777,size={SHM_MB}m", "tmpfs", str(place / "dev" / "shm"))
    _mount("--bind", str(state), str(place / "state"))
    # Not chroot: whoever is in one may make no user namespace.
    os.chdir(place)
    subprocess.run(["pivot_root", ".", "."], check=True)
    subprocess.run(["umount", "--lazy", "."], check=True)
    os.chdir("/")
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8", **environ}
    as_user = ["unshare", "--user", f"--map-user={USER}", f"--map-group={USER}"]
    os.execvpe("unshare", [*as_user, *inner], variables)


def _shown(path: Path, at: Path) -> None:
    at.mkdir(parents=True, exist_ok=True)
    _mount("--rbind", str(path), str(at))


def _set_attributes(at: Path, flags: int, *, add: int = 0, remove: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(add, remove, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    if libc.syscall(_MOUNT_SETATTR, -1, os.fsencode(at), flags, attributes, size):
        raise OSError(ctypes.get_errno(), "mount_setattr", str(at))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep", type=Path, action="append", default=[], help="a directory to see, read-only"
    )
    parser.add_argument("--state", type=Path, required=True, help="what /state is")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    environ = dict(pair.split("=", 1) for pair in given.env)
    if given.place is not None:
        _inside(given.place, given.state.resolve(), given.keep, environ, given.command)
    keep = [*given.keep, Path(sysconfig.get_path("purelib"))]
    with tempfile.TemporaryDirectory() as place:
        confined = command(given.command, state=given.state, place=Path(place), keep=keep, environ=environ)
        return subprocess.run(confined, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
