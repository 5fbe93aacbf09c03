"""Every socket on which the running service listens: who can reach it, and what it asks of them.

They are those that the kernel lists for the service's processes. Nothing is looked for by a list of ports, so what
nobody knows of is there too, as `unknown`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import stat
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import psutil
from msgspec import Struct

from dspool.cli.doctor.findings import Finding, fail, ok, warn
from dspool.cli.layout import table, terminal_width
from dspool.cli.run_file import ServiceRun
from dspool.cli.service import asks_for_token

Protocol = Literal["tcp", "udp", "unix"]
Reach = Literal["network", "machine", "user"]

CHECK: Final = "listener"
UNKNOWN: Final = "unknown"
NOTHING: Final = "nothing"
RAY_TOKEN: Final = "Ray's token"
SERVICE_TOKENS: Final = "the service's tokens"
POOL_SECRET: Final = "the pool's secret"
_TOKEN_VARIABLE: Final = "RAY_AUTH_TOKEN_PATH"
_KERNEL_SOCKETS: Final = Path("/proc/net/unix")
_LISTENS: Final = 0x10000
"""The flag there of a socket that listens."""


class ListeningSocket(Struct, frozen=True):
    """One socket on which a process of the service listens."""

    protocol: Protocol
    address: str
    """An IP address, or the path of a Unix socket."""
    port: int | None
    pid: int
    process: str
    what: str
    """What answers there, or `unknown`."""
    protection: str
    """What it asks of whoever connects."""
    reach: Reach
    """Who can connect: other machines, every user of this one, or the service's user alone."""


class OpenSocket(NamedTuple):
    """A listening socket as the kernel has it."""

    protocol: Protocol
    address: str
    port: int | None
    pid: int
    process: str


_CALLS: Final = ("Ray's calls to this process", RAY_TOKEN)
_AGENT: Final = ("Ray's agent: calls, HTTP or metrics", f"{RAY_TOKEN}; metrics: {NOTHING}")
_DASHBOARD: Final = ("Ray's dashboard or metrics of it", f"{RAY_TOKEN}; metrics: {NOTHING}")
_FIGURES: Final = ("HAProxy's figures", NOTHING)
_PORTS: Final = (
    (r"dspool up", (_CALLS,)),
    (r"gcs_server", (("Ray's control plane", RAY_TOKEN),)),
    (r"raylet", (("Ray's node", RAY_TOKEN), ("Ray's objects", RAY_TOKEN))),
    (r"ray::DashboardAgent", (_AGENT, _AGENT, _AGENT)),
    (r"ray::RuntimeEnvAgent", (("Ray's environments", RAY_TOKEN),)),
    (r"monitor\.py", (("metrics of Ray's autoscaler", NOTHING),)),
    (r"dashboard\.py", (_DASHBOARD, _DASHBOARD)),
    (
        r"ray::(ServeController|HAProxyManager|StoreActor|MetricsActor|AnswersActor|SupervisorActor)",
        (_CALLS,),
    ),
    (r"ray::ProxyActor", (_CALLS, ("Serve's own proxy", SERVICE_TOKENS))),
    (
        r"ray::ServeReplica:dspool-.*",
        (_CALLS, ("Serve's calls to this replica", RAY_TOKEN), ("HTTP from HAProxy", SERVICE_TOKENS)),
    ),
    (r"ray::WorkerActor", (_CALLS, ("operations for this worker", POOL_SECRET))),
    (r"haproxy", (_FIGURES, _FIGURES)),
)
"""Process -> what its ports are, in any order. Where there are more ports than that, nobody can say which is which, and
all are unknown: a port that a program opens in a worker is not the worker's."""
_PATHS: Final = (
    (r".*/sockets/(plasma_store|raylet|dash_\w+)", "Ray's processes on this machine"),
    (r".*/pymp-\w+/listener-\w+", "processes of Ray's dashboard"),
    (r".*/forkserver/\w+/s", "the fork server"),
    (r".*/admin\.sock[^/]*", "HAProxy's administration"),
)


def report(run: ServiceRun | None, workers: Iterable[int] = ()) -> list[ListeningSocket]:
    """The listeners of a living service. `workers` are the processes of its pool's workers, as the pool says."""
    if run is None:
        return []
    tokens = SERVICE_TOKENS if not run.url or asks_for_token(run) else f"{NOTHING}: it has no tokens"
    found = recognised(list(_open_sockets(run, workers)), urlsplit(run.url).port, tokens)
    return sorted(
        found, key=lambda one: (("network", "machine", "user").index(one.reach), one.process, one.pid)
    )


def findings(listeners: Sequence[ListeningSocket], *, running: bool = True) -> list[Finding]:
    """One for each listener that nobody knows, or that other machines reach and that asks them for nothing."""
    if running and not listeners:
        meaning = "what the service has opened cannot be seen from here"
        return [warn(CHECK, "none", meaning, "ask as its user, in its network namespace")]
    found = []
    for one in listeners:
        said = f"{one.process} ({one.pid}) on {where(one)}: {one.what}"
        if one.reach == "network" and (one.what == UNKNOWN or NOTHING in one.protection):
            shut = f"iptables -I INPUT ! -i lo -p {one.protocol} --dport {one.port} -j DROP"
            found.append(fail(CHECK, said, "whoever reaches this machine may use it", shut))
        elif one.what == UNKNOWN:
            advice = "a program or a package opened it: see what it is for"
            found.append(warn(CHECK, said, "it is not known what it asks of whoever connects", advice))
    if listeners and not found:
        network = [one for one in listeners if one.reach == "network"]
        said = ", ".join(f"{where(one)} ({one.protection})" for one in network) or "none"
        found.append(ok(CHECK, f"{len(listeners)}; open to other machines: {said}"))
    return found


def picture(listeners: Sequence[ListeningSocket]) -> str:
    """As a table."""
    titles = ("listens on", "reached by", "asks for", "what", "process", "pid")
    rows = [(where(one), one.reach, one.protection, one.what, one.process, str(one.pid)) for one in listeners]
    wide = table(titles, rows)
    limit = terminal_width()
    if limit is None or wide.count("\n") == len(rows):
        return wide
    # A cell that goes on below is hard to read, and an address cannot be copied: two lines for each.
    lines = []
    for one in listeners:
        lines += textwrap.wrap(
            f"{where(one)}  {one.reach}, {one.process} ({one.pid})", limit, break_on_hyphens=False
        )
        lines.append(f"    {one.what}; asks for {one.protection}")
    return "\n".join(lines)


def where(listener: ListeningSocket) -> str:
    if listener.port is None:
        return listener.address
    host = f"[{listener.address}]" if ":" in listener.address else listener.address
    return f"{host}:{listener.port}" + (" (udp)" if listener.protocol == "udp" else "")


def recognised(
    sockets: Sequence[OpenSocket], service: int | None, tokens: str = SERVICE_TOKENS
) -> list[ListeningSocket]:
    """What is known of each socket. `service` is the port of the service itself, and `tokens` what it asks for."""
    ports: dict[int, list[OpenSocket]] = {}
    found = {}
    for one in sockets:
        if one.protocol == "unix":
            what = next((what for path, what in _PATHS if re.fullmatch(path, one.address)), UNKNOWN)
            found[one] = what, "the mode of its file"
        elif one.protocol == "tcp" and one.port == service:
            found[one] = "the service", SERVICE_TOKENS
        elif one.protocol == "tcp":
            ports.setdefault(one.pid, []).append(one)
    for of_process in ports.values():
        known = next((ports for name, ports in _PORTS if re.fullmatch(name, of_process[0].process)), ())
        if len(of_process) <= len(known):
            found |= dict(zip(sorted(of_process, key=_calls_first), known, strict=False))
    listeners = []
    for one in sockets:
        what, protection = found.get(one, (UNKNOWN, UNKNOWN))
        listeners.append(
            ListeningSocket(*one, what, tokens if protection == SERVICE_TOKENS else protection, _reach(one))
        )
    return listeners


def _calls_first(one: OpenSocket) -> bool:
    # Ray's own ports are IPv6 ones where there is IPv6.
    return ":" not in one.address


def _reach(one: OpenSocket) -> Reach:
    if one.protocol != "unix":
        address = ipaddress.ip_address(one.address)
        address = getattr(address, "ipv4_mapped", None) or address
        return "machine" if address.is_loopback else "network"
    path = Path(one.address)
    with suppress(OSError):
        if any(not directory.stat().st_mode & stat.S_IXOTH for directory in path.parents):
            return "user"
        return "machine" if path.stat().st_mode & stat.S_IWOTH else "user"
    return "machine"


# --- what the kernel has ---


def _open_sockets(run: ServiceRun, workers: Iterable[int]) -> Iterator[OpenSocket]:
    listening = _listening_paths()
    seen = set()
    for process in _processes(run, workers):
        with suppress(psutil.Error):
            name = "dspool up" if process.pid == run.pid else _name(process)
            for one in process.net_connections("all"):
                found = _open_socket(one, process.pid, name, listening)
                if found is not None and found not in seen:
                    seen.add(found)
                    yield found


def _open_socket(one: Any, pid: int, name: str, listening: frozenset[str]) -> OpenSocket | None:
    if one.family == socket.AF_UNIX:
        return OpenSocket("unix", one.laddr, None, pid, name) if one.laddr in listening else None
    if one.status == psutil.CONN_LISTEN:
        return OpenSocket("tcp", one.laddr.ip, one.laddr.port, pid, name)
    if one.type == socket.SOCK_DGRAM and one.laddr and not one.raddr:
        return OpenSocket("udp", one.laddr.ip, one.laddr.port, pid, name)
    return None


def _processes(run: ServiceRun, workers: Iterable[int]) -> list[psutil.Process]:
    """Of the service: `dspool up`, what runs with its Ray's token (as forked workers, which are nobody's children),
    `workers`, and whatever these have started.
    """
    everything = {process.pid: process for process in psutil.process_iter()}
    below: dict[int, list[int]] = {}
    found = {run.pid, *workers}
    for pid, process in everything.items():
        with suppress(psutil.Error):
            below.setdefault(process.ppid(), []).append(pid)
            if run.ray_token_path and process.environ().get(_TOKEN_VARIABLE) == run.ray_token_path:
                found.add(pid)
    left = list(found)
    while left:
        new = [pid for pid in below.get(left.pop(), ()) if pid not in found]
        found.update(new)
        left += new
    return [everything[pid] for pid in sorted(found & everything.keys())]


def _name(process: psutil.Process) -> str:
    command = process.cmdline() or [process.name()]
    if command[0].startswith("ray::"):
        # Ray writes the method behind the actor: `ray::SupervisorActor.watch`.
        return re.split(r"[.(]", command[0])[0]
    scripts = [Path(part).name for part in command[1:4] if part.endswith(".py")]
    return (scripts or [Path(command[0]).name])[0]


def _listening_paths() -> frozenset[str]:
    """Paths of Unix sockets that listen; psutil does not tell them from others. None on a system without /proc."""
    try:
        lines = _KERNEL_SOCKETS.read_text().splitlines()[1:]
    except OSError:
        return frozenset()
    rows = (line.split(maxsplit=7) for line in lines)
    return frozenset(row[7] for row in rows if len(row) == 8 and int(row[3], 16) & _LISTENS)
