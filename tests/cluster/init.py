"""The first process of a machine, within its namespaces: prepares its file systems, then waits for others to end.

`python -I -S init.py NAME DISK KEPT...` prints a line when the machine has booted, and ends when its input does: so
nothing is left of a machine whose owner is gone. Of /tmp only the directories KEPT are the host's.
"""

import os
import select
import signal
import socket
import subprocess
import sys


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main(name: str, disk: str, *kept: str) -> None:
    socket.sethostname(name)
    # Before the new /tmp covers the old one.
    handles = {path: os.open(path, os.O_PATH) for path in kept}
    disk_handle = os.open(disk, os.O_PATH)
    for place in ("/tmp", "/dev/shm"):
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", place)
    for path, handle in {**handles, "/tmp/disk": disk_handle}.items():
        os.makedirs(path, exist_ok=True)
        mount("--bind", f"/proc/{os.getpid()}/fd/{handle}", path)
        os.close(handle)
    os.makedirs("/tmp/home", mode=0o700, exist_ok=True)
    heard, said = os.pipe()
    os.set_blocking(said, False)
    signal.set_wakeup_fd(said, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print("booted", flush=True)
    while True:
        ready, _, _ = select.select([0, heard], [], [])
        if 0 in ready and not os.read(0, 4096):
            return
        if heard in ready:
            os.read(heard, 4096)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


main(*sys.argv[1:])
