"""What listens where: a cluster of ours on loopback, and `dspool doctor` sees whatever listens all the same."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli.doctor import listeners
from dspool.cli.doctor.listeners import UNKNOWN, OpenSocket, findings, picture, recognised
from dspool.cli.run_file import RunFile, ServiceRun, this_process
from dspool.corrections import serve_replica
from dspool.runtime.cluster import on_loopback, reaching

SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
HOST = "192.0.2.7"
NOBODY = 2**22 + 1


def address_of_a_node() -> str:
    """What Ray would give a node that starts now, in this process, which has imported it long ago."""
    return ray.util.get_node_ip_address()


# --- where a cluster of ours listens ---


@pytest.fixture
def networked(monkeypatch):
    """A host with an address beyond loopback, and a Ray that is not connected."""
    monkeypatch.setattr(ray._private.worker, "_global_node", None)
    monkeypatch.setattr(ray._private.services, "node_ip_address_from_perspective", lambda address: HOST)
    # A cluster of other tests may run meanwhile, with the switch off.
    monkeypatch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.delenv(SWITCH, raising=False)


def test_a_node_of_a_cluster_of_ours_is_on_loopback_and_others_as_ever(networked):
    assert address_of_a_node() == HOST
    with on_loopback():
        assert address_of_a_node() == "127.0.0.1"
        # Children, which read it when they import Ray.
        assert os.environ[SWITCH] == "0"
    assert address_of_a_node() == HOST
    assert SWITCH not in os.environ


def test_a_cluster_on_loopback_is_joined_there_and_one_elsewhere_as_ever(networked):
    resolved = ray._private.services.canonicalize_bootstrap_address
    assert resolved("127.0.0.1:6379") == f"{HOST}:6379"
    with reaching("127.0.0.1:6379"):
        assert resolved("127.0.0.1:6379") == "127.0.0.1:6379"
    for elsewhere in ("192.0.2.9:6379", "auto", ""):
        with reaching(elsewhere):
            assert SWITCH not in os.environ


@pytest.mark.parametrize(("node", "at"), [("127.0.0.1", "127.0.0.1:0"), ("2001:db8::1", "[2001:db8::1]:0")])
def test_a_replica_listens_at_the_address_of_its_node(node, at):
    opened = []
    replica = SimpleNamespace(add_port_to_grpc_server=lambda server, address: opened.append(address))
    serve_replica.install(replica, node)
    replica.add_port_to_grpc_server(None, "[::]:0")
    replica.add_port_to_grpc_server(None, "192.0.2.1:5")
    assert opened == [at, "192.0.2.1:5"]


def test_serve_opens_the_port_of_a_replica_by_the_name_that_is_corrected():
    from ray.serve._private import replica

    assert callable(replica.add_port_to_grpc_server)


# --- what is known of a socket ---


def tcp(
    port: int, address: str = "127.0.0.1", pid: int = NOBODY, process: str = "ray::WorkerActor"
) -> OpenSocket:
    return OpenSocket("tcp", address, port, pid, process)


WORKER = [tcp(1), tcp(2, "::ffff:127.0.0.1")]


def seen(*sockets: OpenSocket, service: int = 8000, **options):
    return recognised(sockets, service, **options)


def test_ports_of_the_services_processes_are_known_with_what_protects_them():
    exchange, calls = seen(*WORKER)
    assert (exchange.what, exchange.protection) == ("operations for this worker", "the pool's secret")
    assert (calls.protection, calls.reach) == ("Ray's token", "machine")
    (service,) = seen(tcp(8000, "0.0.0.0", process="haproxy"))
    assert (service.what, service.protection, service.reach) == (
        "the service",
        "the service's tokens",
        "network",
    )
    assert [found.level for found in findings([exchange, calls, service])] == ["ok"]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", HOST, "::ffff:192.0.2.7", "2001:db8::1"])
def test_a_port_that_a_program_opens_in_a_worker_is_not_taken_for_the_workers(address):
    found = findings(seen(*WORKER, tcp(4444, address)))
    assert "fail" in {one.level for one in found}
    (said,) = [one for one in found if "4444" in one.found]
    assert UNKNOWN in said.found
    assert said.advice == "iptables -I INPUT ! -i lo -p tcp --dport 4444 -j DROP"


@pytest.mark.parametrize(
    "process", ["deno", "python", "ray::Something", "ray::WorkerActorX", "nc", "task.py"]
)
def test_a_process_that_nobody_knows_is_a_finding_also_on_loopback(process):
    (found,) = findings(seen(tcp(1, process=process)))
    assert (found.level, UNKNOWN in found.found) == ("warn", True)


def test_what_asks_for_nothing_is_a_finding_where_other_machines_reach_it():
    for address, level in (("127.0.0.1", "ok"), ("0.0.0.0", "fail")):
        (found,) = findings(seen(tcp(44217, address, process="monitor.py")))
        assert found.level == level
    (found,) = findings(seen(tcp(8000, "0.0.0.0", process="haproxy"), tokens="nothing: it has no tokens"))
    assert found.level == "fail"


def test_an_unknown_udp_port_and_an_unknown_unix_socket_are_findings(tmp_path):
    odd = OpenSocket("unix", str(tmp_path / "odd"), None, NOBODY, "haproxy")
    found = findings(seen(OpenSocket("udp", "0.0.0.0", 514, NOBODY, "haproxy"), odd))
    assert [one.level for one in found] == ["fail", "warn"]


# --- what the kernel has ---

OPENS = """
import socket, sys
four, six, datagram = socket.socket(), socket.socket(socket.AF_INET6), socket.socket(type=socket.SOCK_DGRAM)
four.bind(("0.0.0.0", 0)), six.bind(("::1", 0)), datagram.bind(("127.0.0.1", 0))
four.listen(), six.listen()
path = socket.socket(socket.AF_UNIX)
path.bind(sys.argv[1]), path.listen()
print(four.getsockname()[1], six.getsockname()[1], datagram.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def opener(tmp_path):
    """A process with four listening sockets; `.ports` are three of them."""
    path = f"/tmp/dspool-test-{os.getpid()}.sock"
    variables = os.environ | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "ray_token")}
    command = [sys.executable, "-I", "-S", "-c", OPENS, path]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
    ) as process:
        process.ports, process.path = [int(port) for port in process.stdout.readline().split()], path
        yield process
        process.stdin.close()
    os.unlink(path)


def test_every_socket_of_the_services_processes_is_seen_whoever_opened_it(opener):
    found = {
        (one.protocol, one.port or one.address): one for one in listeners.report(this_process("default"))
    }
    four, six, datagram = opener.ports
    keys = [("tcp", four), ("tcp", six), ("udp", datagram), ("unix", opener.path)]
    assert [found[key].reach for key in keys[:3]] == ["network", "machine", "machine"]
    assert {found[key].pid for key in keys} == {opener.pid}
    assert {found[key].what for key in keys} == {UNKNOWN}
    assert str(four) in picture(list(found.values()))


def test_a_process_with_the_services_ray_token_is_the_services_wherever_it_came_from(opener, tmp_path):
    for path, there in ((tmp_path / "ray_token", True), (tmp_path / "another", False)):
        run = ServiceRun(pid=NOBODY, pid_started=0.0, pool="default", ray_token_path=str(path))
        assert (opener.pid in {one.pid for one in listeners.report(run)}) is there


STARTS = """
import subprocess, sys
subprocess.run([sys.executable, "-I", "-S", "-c", sys.argv[1], sys.argv[2]], env={})
"""


def test_what_a_worker_starts_with_an_environment_of_its_own_is_the_services_too(tmp_path):
    variables = os.environ | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "ray_token")}
    path = f"/tmp/dspool-test-{os.getpid()}.sock"
    command = [sys.executable, "-I", "-S", "-c", STARTS, OPENS, path]
    run = ServiceRun(
        pid=NOBODY, pid_started=0.0, pool="default", ray_token_path=variables["RAY_AUTH_TOKEN_PATH"]
    )
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
    ) as process:
        port = int(process.stdout.readline().split()[0])
        (found,) = [one for one in listeners.report(run) if one.port == port]
        process.stdin.close()
    os.unlink(path)
    assert found.pid != process.pid


def test_a_service_of_which_no_listener_can_be_seen_is_a_warning():
    assert [found.level for found in findings([])] == ["warn"]
    assert findings([], running=False) == []


def test_the_process_of_a_worker_is_looked_at_on_a_cluster_that_was_joined(opener):
    run = ServiceRun(pid=NOBODY, pid_started=0.0, pool="default", joined=True)
    assert {one.pid for one in listeners.report(run, [opener.pid, NOBODY])} == {opener.pid}


def test_a_socket_in_a_directory_that_others_cannot_enter_is_for_the_services_user(tmp_path):
    path = tmp_path / "private" / "s"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        (found,) = seen(OpenSocket("unix", str(path), None, NOBODY, "x"))
        assert found.reach == "user"


def test_doctor_prints_the_listeners_of_the_running_service_and_fails_for_one_that_is_open(
    opener, tmp_path, monkeypatch
):
    state = tmp_path / "state"
    RunFile(state).claim(this_process("default"))
    monkeypatch.setattr("dspool.cli.doctor.service.fork_server", lambda config: [])
    done = CliRunner().invoke(app, ["doctor", "--state-dir", str(state), "--json"])
    shown = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 1
    (four,) = [one for one in shown["listeners"] if one["port"] == opener.ports[0]]
    assert (four["address"], four["what"], four["reach"]) == ("0.0.0.0", UNKNOWN, "network")
    assert any(check["check"] == "listener" and check["level"] == "fail" for check in shown["checks"])
    text = CliRunner().invoke(app, ["doctor", "--state-dir", str(state)]).stdout
    assert f"0.0.0.0:{opener.ports[0]}" in text
