"""The service as others' tools know it: Ray Serve's own command line, on a cluster that somebody else runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.serve.test_joined_cluster import FILES, Cluster
from tests.serve.test_service import ENDS_S, QA, QUESTION, START_S

pytestmark = pytest.mark.serve

SERVE = Path(sys.executable).with_name("serve")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cluster(dashboard: int):
    directory = tempfile.mkdtemp(prefix="dss-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "token")
        patched.setenv("RAY_AUTH_TOKEN", os.urandom(16).hex())
        for name, file in FILES.items():
            patched.setenv(f"RAY_SERVE_HAPROXY_{name}", f"{directory}/h/{file}")
        # What Ray's dashboard keeps in a directory for temporary files stays there when it is killed.
        patched.setenv("TMPDIR", directory)
        running = Cluster(directory + "/r", include_dashboard=True, dashboard_port=dashboard)
        patched.delenv("TMPDIR")
        patched.setenv("RAY_ADDRESS", running.address)
        patched.setenv("RAY_DASHBOARD_ADDRESS", f"http://127.0.0.1:{dashboard}")
        yield running
        running.end()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    document = {"pool_size": 1, "state_dir": str(tmp_path / "state"), "init_timeout_s": START_S}
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "pool.yaml"


def serve(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(SERVE), *arguments],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
        env={**os.environ, **environ},
    )


def answer(port: int) -> dict:
    """Of the default pool, as soon as the proxy knows the way."""
    until = time.monotonic() + START_S
    while True:
        try:
            asked = httpx.post(
                f"http://127.0.0.1:{port}{QA}", json={"inputs": QUESTION}, timeout=30, trust_env=False
            )
            if asked.status_code == 200 or time.monotonic() > until:
                return asked.json()
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def until_gone(cluster: Cluster) -> list[str]:
    until = time.monotonic() + ENDS_S
    while True:
        left = [name for name in cluster.named_actors() if name.startswith("dspool:")]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


@pytest.mark.long
def test_serve_builds_and_deploys_it_with_its_pool_and_takes_both_down(cluster, configured, tmp_path):
    built = serve(
        "build", "dspool_serve:app", "-o", str(tmp_path / "app.yaml"), DSPOOL_CONFIG=str(configured)
    )
    assert built.returncode == 0, built.stdout + built.stderr
    document = yaml.safe_load((tmp_path / "app.yaml").read_text())
    [application] = document["applications"]
    assert application["import_path"] == "dspool_serve:app"
    assert {one["name"] for one in application["deployments"]} == {"dspool-http", "dspool-pools"}

    port = free_port()
    document["http_options"] = {"host": "127.0.0.1", "port": port}
    application |= {"import_path": "dspool_serve:builder", "args": {"config": str(configured)}}
    (tmp_path / "app.yaml").write_text(yaml.safe_dump(document))
    deployed = serve("deploy", str(tmp_path / "app.yaml"))
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert "Stanford" in answer(port)["outputs"]["answer"]
    assert "dspool:default:supervisor" in cluster.named_actors()

    ended = serve("shutdown", "-y")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert until_gone(cluster) == []


def test_serve_runs_its_builder_with_typed_arguments_and_ctrl_c_ends_the_pool_too(cluster, configured):
    process = subprocess.Popen(
        [str(SERVE), "run", "dspool_serve:builder", f"config={configured}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert "Stanford" in answer(8000)["outputs"]["answer"]
        process.send_signal(signal.SIGINT)
        process.wait(ENDS_S)
        assert until_gone(cluster) == []
    finally:
        process.kill()


def test_an_argument_that_there_is_not_is_refused(cluster):
    refused = serve("run", "dspool_serve:builder", "confg=pool.yaml")
    assert refused.returncode != 0
    assert "confg" in refused.stdout + refused.stderr
    assert json.dumps(until_gone(cluster)) == "[]"
