"""What the bench needs of the system it runs on."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

NAMESPACES = ("--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc")
TOOLS = ("unshare", "nsenter", "ip", "mount")


@cache
def why_not() -> str:
    """Why no machines can be built here; empty where they can."""
    if os.geteuid() != 0:
        return "machines of the bench are namespaces, which take root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"machines of the bench need {', '.join(missing)}"
    network = "ip link add bridge0 type bridge; ip link add veth0 type veth peer name veth1"
    probe = f"mount -t tmpfs tmpfs /dev/shm; {network}"
    done = subprocess.run(
        ["unshare", *NAMESPACES, "sh", "-ec", probe], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"namespaces of machines are refused here: {done.stderr.strip()}"


@cache
def why_no_delay() -> str:
    """Why the network of a machine cannot be given a delay here; empty where it can."""
    probe = "ip link set lo up && tc qdisc add dev lo root netem delay 1ms"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", probe], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"the kernel has no netem: {done.stderr.strip()}"
