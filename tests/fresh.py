"""Runs a command in surroundings that are as good as new, and fails it if it leaves something there.

`python -m tests.fresh make test`

The command has an empty /tmp, /dev/shm and home, and sees no process but its own: Linux namespaces, for a plain user
within a user namespace. Where the system allows neither, HOME and TMPDIR name fresh directories, and one line says so.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.surroundings import LEFT_BEHIND, PLACES, PROCESSES, ROOT, Surroundings, described

ALONE = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
AS_ROOT = ("--user", "--map-root-user")
CARRIED = (".npmrc", ".gitconfig", ".config/git", ".config/pip", ".pip")
"""Where the machine's registries and git's settings are: of the old home, and linked to from the new one."""
DROPPED = ("TMPDIR", "TMP", "TEMP", "RAY_TMPDIR", "DSPY_CACHEDIR", PLACES, PROCESSES)
"""Variables that name a directory which others have used, as all of XDG_* do."""


def main(command: Sequence[str]) -> int:
    """Run `command`; its exit code, or LEFT_BEHIND."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # On a disk, not in memory: Ray, PostgreSQL and Chromium keep files there.
    place = Path(tempfile.mkdtemp(prefix="fresh-", dir="/var/tmp"))
    try:
        # PostgreSQL's user must come through; only the home is nobody else's business.
        place.chmod(0o711)
        for name, mode in (("tmp", 0o1777), ("home", 0o700)):
            (place / name).mkdir()
            (place / name).chmod(mode)
        _carry_over(Path.home(), place / "home")
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in DROPPED and not name.startswith("XDG_")
        }
        environ["HOME"] = str(place / "home")
        flags = next((flags for flags in (ALONE, AS_ROOT + ALONE) if _allowed(flags)), None)
        if flags is None:
            print(f"No namespaces here: /tmp is the machine's, HOME and TMPDIR are in {place}", flush=True)
            environ["TMPDIR"] = str(place / "tmp")
            environ[PLACES] = os.pathsep.join([environ["TMPDIR"], environ["HOME"]])
            return _watched(command, environ)
        environ |= {PLACES: os.pathsep.join(["/tmp", "/dev/shm", environ["HOME"]]), PROCESSES: "1"}
        if AS_ROOT[0] in flags:
            # Root is needed for mounting alone; the command is who it was.
            command = [
                "unshare",
                "--user",
                f"--map-user={os.getuid()}",
                f"--map-group={os.getgid()}",
                *command,
            ]
        inside = [sys.executable, "-m", "tests.fresh", "--inside", str(place), os.getcwd(), *command]
        return subprocess.run(["unshare", *flags, *inside], env=environ, cwd=ROOT, check=False).returncode
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _carry_over(old: Path, new: Path) -> None:
    for name in CARRIED:
        if (old / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).symlink_to((old / name).resolve())


def _allowed(flags: Sequence[str]) -> bool:
    # As far as a mount: some containers allow the namespace and not what it is for.
    probe = ["unshare", *flags, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _inside(place: Path, directory: Path, command: Sequence[str]) -> NoReturn:
    """As the first process of the namespaces: when it ends, so does every other."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tmp = place / "tmp"
    for kept in {ROOT, directory}:
        # A checkout in /tmp stays where it is.
        if kept.is_relative_to("/tmp"):
            (tmp / kept.relative_to("/tmp")).mkdir(parents=True)
            _mount("--rbind", str(kept), str(tmp / kept.relative_to("/tmp")))
    _mount("--rbind", str(tmp), "/tmp")
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    os.chdir(directory)
    sys.exit(_watched(command, dict(os.environ)))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _watched(command: Sequence[str], environ: dict[str, str]) -> int:
    surroundings = Surroundings.of(environ)
    assert surroundings is not None
    status = _run(command, environ)
    left = surroundings.left(None if status == 0 else 0.0)
    for thing in left:
        print(f"left behind: {described(thing)}", file=sys.stderr)
    return LEFT_BEHIND if left and status == 0 else status


def _run(command: Sequence[str], environ: dict[str, str]) -> int:
    with subprocess.Popen(command, env=environ) as process:
        while True:
            # All that end here, not the command alone: the first process is everybody's parent in the end.
            pid, status = os.wait()
            if pid == process.pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        _inside(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    sys.exit(main(sys.argv[1:]))
