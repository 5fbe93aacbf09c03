"""`dspool up --address`: a service on a Ray cluster that somebody else runs, and what is left there after `down`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dspool.runtime import forkserver
from tests.serve.test_service import ENDS_S, QA, QUESTION, SPEC, START_S, Up, dspool

pytestmark = pytest.mark.serve

CLUSTER = """
import json, sys, ray
found = ray.init(address="local", _temp_dir=sys.argv[1], _node_ip_address="127.0.0.1", **json.loads(sys.argv[2]),
                 num_cpus=2, object_store_memory=128 * 1024 * 1024, log_to_driver=False, logging_level="ERROR")
print(found.address_info["gcs_address"], flush=True)
for _ in sys.stdin:
    named = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    print(json.dumps(named), flush=True)
"""

FILES = {
    "CONFIG_FILE_LOC": "haproxy.cfg",
    "SOCKET_PATH": "admin.sock",
    "METRICS_SOCKET_PATH": "m.sock",
    "SERVER_STATE_BASE": "",
    "SERVER_STATE_FILE": "server-state",
}


class Cluster:
    """Somebody else's Ray, with a token."""

    def __init__(self, directory: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, directory, json.dumps({"include_dashboard": False, **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._line()
        self.session = Path(directory, "session_latest")

    def named_actors(self) -> list[str]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: list[str] = json.loads(self._line())
        return found

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        left = self.processes()
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(left, timeout=ENDS_S)
        for one in alive:
            one.kill()
        self.process.wait(ENDS_S)


@pytest.fixture(scope="module")
def cluster():
    # Short: paths of sockets end at 107 characters.
    directory = tempfile.mkdtemp(prefix="dsj-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "token")
        patched.setenv("RAY_AUTH_TOKEN", os.urandom(16).hex())
        # A Serve on another's cluster keeps HAProxy's files in /tmp/haproxy-serve unless it is told where.
        for name, file in FILES.items():
            patched.setenv(f"RAY_SERVE_HAPROXY_{name}", f"{directory}/h/{file}")
        running = Cluster(directory + "/r")
        yield running
        running.end()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def joined(cluster, tmp_path_factory):
    """A service on that cluster."""
    up = Up(tmp_path_factory.mktemp("joined") / "state", "--address", cluster.address, "--pool-size", "1")
    yield up
    up.end()


def test_all_actors_of_a_pool_are_forked_from_one_parent_also_where_the_node_is_somebody_else_s(
    cluster, joined
):
    (parent,) = [found for found in forkserver.report(cluster.session) if found.pid is not None]
    forked = {psutil.Process(pid).name().partition(".")[0] for pid in parent.workers}
    assert forked == {f"ray::{role}Actor" for role in ("Supervisor", "Store", "Metrics", "Worker")}


def test_a_service_joins_serves_and_leaves_nothing_behind(cluster, joined):
    """Ends `joined`."""
    up, state = joined, joined.state_dir
    with up.client() as http:
        answer = http.post(QA, json={"inputs": QUESTION, "timeout_s": 30})
        assert "Stanford" in answer.json()["outputs"]["answer"], answer.text
        program = "/v1/pools/default/sessions/s/programs/p"
        assert http.put(program, json={"spec": SPEC}).status_code == 200
    shown = json.loads(dspool("status", "--state-dir", str(state), "--json").stdout)
    assert shown["status"]["actual"] == 1
    assert any(name.startswith("dspool:default:") for name in cluster.named_actors())

    stopped = dspool("down", "--state-dir", str(state))
    assert stopped.returncode == 0, stopped.stderr
    assert up.process.wait(ENDS_S) == 0
    assert cluster.named_actors() == []
    assert "haproxy" not in {one.name() for one in cluster.processes()}
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{up.url}/healthz", timeout=5, trust_env=False)
    assert not (state / "run.json").exists()


def begun(state, cluster, until: str) -> subprocess.Popen[str]:
    """`dspool up` on the cluster, as far as the first line that says `until`."""
    state.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "dspool.cli", "up", "--port", "0", "--pool-size", "1"]
    process = subprocess.Popen(
        [*command, "--state-dir", str(state), "--address", cluster.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "DSPOOL_INIT_TIMEOUT_S": str(START_S)},
        text=True,
    )
    read_until(process, until)
    return process


def read_until(process: subprocess.Popen[str], said: str) -> None:
    assert process.stdout is not None
    assert any(said in line for line in process.stdout), f"it never said {said!r}"


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(ENDS_S)
    assert process.stdout is not None
    process.stdout.close()


def end_with_nothing_left(cluster, state) -> None:
    stopped = dspool("down", "--state-dir", str(state))
    assert stopped.returncode == 0, stopped.stderr
    assert cluster.named_actors() == []
    assert "haproxy" not in {one.name() for one in cluster.processes()}
    assert not (state / "run.json").exists()


@pytest.mark.long
def test_a_service_whose_up_was_killed_goes_on_until_the_next_up_takes_it_over(cluster, tmp_path):
    state = tmp_path / "state"
    first = Up(state, "--address", cluster.address, "--pool-size", "1")
    workers = {one["id"]: one["pid"] for one in first.workers()}
    killed(first.process)

    shown = json.loads(dspool("status", "--state-dir", str(state), "--json").stdout)
    assert (shown["running"], shown["looked_after"], shown["status"]["actual"]) == (True, False, 1)

    # As somebody would who knows nothing of the cluster: the run file does.
    second = dspool("up", "--detach", "--json", "--port", "0", "--state-dir", str(state))
    assert second.returncode == 0, second.stderr
    said = [json.loads(line) for line in second.stdout.splitlines()]
    assert any("taking over the service" in line.get("text", "") for line in said)
    assert said[-1]["url"] == first.url
    assert {one["id"]: one["pid"] for one in first.workers()} == workers
    shown = json.loads(dspool("status", "--state-dir", str(state), "--json").stdout)
    assert (shown["looked_after"], shown["pid"]) == (True, said[-1]["pid"])
    # It outlived the command that started it.
    assert psutil.Process(said[-1]["pid"]).ppid() != os.getpid()

    end_with_nothing_left(cluster, state)


@pytest.mark.long
def test_a_start_that_was_cut_off_is_cleared_by_down(cluster, tmp_path):
    state = tmp_path / "state"
    killed(begun(state, cluster, until="opening the HTTP service"))
    shown = dspool("status", "--state-dir", str(state))
    assert (shown.returncode, "ended without cleaning up" in shown.stdout) == (3, True)
    end_with_nothing_left(cluster, state)


@pytest.mark.long
def test_an_end_that_was_cut_off_is_finished_by_the_next_up_which_then_serves(cluster, tmp_path):
    state = tmp_path / "state"
    process = begun(state, cluster, until="Ctrl-C lets")
    process.send_signal(signal.SIGTERM)
    read_until(process, "stopping the workers")
    killed(process)
    second = Up(state, "--address", cluster.address, "--pool-size", "1")
    try:
        with second.client() as http:
            assert http.post(QA, json={"inputs": QUESTION, "timeout_s": 30}).status_code == 200
        end_with_nothing_left(cluster, state)
    finally:
        second.end()
