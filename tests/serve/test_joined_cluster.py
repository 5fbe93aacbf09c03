"""`dspool up --address`: a service on a Ray cluster that somebody else runs, and what is left there after `down`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import httpx
import psutil
import pytest

from tests.serve.test_service import ENDS_S, QA, QUESTION, SPEC, Up, dspool

pytestmark = pytest.mark.serve

CLUSTER = """
import json, sys, ray
found = ray.init(address="local", _temp_dir=sys.argv[1], _node_ip_address="127.0.0.1", include_dashboard=False,
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

    def __init__(self, directory: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._line()

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


def test_a_service_joins_serves_and_leaves_nothing_behind(cluster, tmp_path):
    state = tmp_path / "state"
    up = Up(state, "--address", cluster.address, "--pool-size", "1")
    try:
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
    finally:
        up.end()


def test_what_a_killed_service_leaves_on_a_cluster_is_removed_by_down(cluster, tmp_path):
    state = tmp_path / "state"
    up = Up(state, "--address", cluster.address, "--pool-size", "1")
    try:
        up.process.kill()
        up.process.wait(ENDS_S)
        # Detached actors live on, as they must for a service that is only restarted.
        assert any(name.startswith("dspool:default:") for name in cluster.named_actors())
        stopped = dspool("down", "--state-dir", str(state))
        assert stopped.returncode == 0, stopped.stderr
        # The Serve that it started too.
        assert cluster.named_actors() == []
        assert "haproxy" not in {one.name() for one in cluster.processes()}
    finally:
        up.end()
