"""The network between machines: a bridge in a network namespace of its own, with one cable to the host.

All of it belongs to one process, which ends when its input does: nothing is left of it, however the tests end.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from types import TracebackType
from typing import Final

_NETWORK: Final = "198.18.{}.{}"
"""Of the range for benchmarks of networks (RFC 2544), which leads nowhere else."""
_HOST: Final = 254


class Switch:
    """`plug` gives a machine an address; `cut`, `mend` and `slow` are for the cable of one of them."""

    def __init__(self) -> None:
        taken = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True).stdout
        used = {int(third) for third in re.findall(r"inet 198\.18\.(\d+)\.", taken)}
        self._third = next(third for third in range(256) if third not in used)
        # Its own name for each run: several may share the host's network.
        self._cable = f"dsp{secrets.token_hex(4)}"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo plugged; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.host_address = self.address(_HOST)
        pid = self._holder.pid
        self._ip("link add bridge type bridge")
        self._ip("link set bridge up")
        _run(f"ip link add {self._cable} type veth peer name host netns {pid}")
        self._ip("link set host master bridge up")
        _run(f"ip addr add {self.host_address}/24 dev {self._cable}")
        _run(f"ip link set {self._cable} up")

    def __enter__(self) -> Switch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        # The namespace goes some time after its last process; the host's end of the cable with it.
        subprocess.run(["ip", "link", "del", self._cable], capture_output=True, check=False)
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait()

    def address(self, number: int) -> str:
        return _NETWORK.format(self._third, number)

    def plug(self, pid: int, number: int) -> str:
        """Connect the network namespace of process `pid`; returns its address. The same number, the same address."""
        cable, address = f"m{number}", self.address(number)
        # Of a machine that was powered off: its own end may not be gone yet.
        self._ip(f"link del {cable}", check=False)
        # Its other end begins where it belongs: several machines may be connected at once.
        own_end = f"peer name eth0 address 02:00:c6:12:{self._third:02x}:{number:02x} netns {pid}"
        self._ip(f"link add {cable} type veth {own_end}")
        self._ip(f"link set {cable} master bridge up")
        for command in ("link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up"):
            _run(f"nsenter --target {pid} --net ip {command}")
        return address

    def cut(self, number: int) -> None:
        """Nothing gets to the machine or from it any more; neither end is told."""
        self._ip(f"link set m{number} nomaster")

    def mend(self, number: int) -> None:
        self._ip(f"link set m{number} master bridge")

    def slow(self, number: int, delay_ms: float) -> None:
        """What goes to the machine takes so much longer; 0: no longer than usual. Needs `possible.why_no_delay`."""
        self._tc(f"qdisc del dev m{number} root", check=False)
        if delay_ms:
            self._tc(f"qdisc add dev m{number} root netem delay {delay_ms}ms")

    def narrow(self, number: int, kbit_s: int) -> None:
        """No more goes to the machine than that; 0: as much as usual."""
        self._tc(f"qdisc del dev m{number} root", check=False)
        if kbit_s:
            self._tc(f"qdisc add dev m{number} root tbf rate {kbit_s}kbit burst 16kb latency 400ms")

    def _ip(self, command: str, *, check: bool = True) -> None:
        _run(f"nsenter --target {self._holder.pid} --net ip {command}", check=check)

    def _tc(self, command: str, *, check: bool = True) -> None:
        _run(f"nsenter --target {self._holder.pid} --net tc {command}", check=check)


def _run(command: str, *, check: bool = True) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise OSError(f"{command}: {done.stderr.strip()}")
