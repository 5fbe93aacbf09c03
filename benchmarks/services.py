"""Processes that benchmarks start beside their own: `dspool up`, models behind HTTP, and whatever else serves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT
from dspool_serve.ingress.haproxy import free_ports

START_S = 300.0


@contextlib.contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process and all that it starts; ended by SIGTERM, and by SIGKILL what does not heed it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Several clusters start on one machine beside those that run: Ray and Serve kill what takes longer than this.
    environ["RAY_raylet_start_wait_time_s"] = "300"
    if command[0] != sys.executable:
        # Another installation has its own.
        environ.pop("PYTHONPATH", None)
    environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "120"
    started = subprocess.Popen(
        command, cwd=ROOT, env=environ, text=True, stdin=subprocess.PIPE, start_new_session=True, **options
    )
    try:
        yield started
    finally:
        family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
        assert started.stdin is not None
        started.stdin.close()
        started.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=20)
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        started.wait()


@contextlib.contextmanager
def dspool_up(
    directory: Path, settings: dict[str, Any], python: str = sys.executable
) -> Iterator[tuple[str, int]]:
    """`dspool up` with these settings: its address and its process."""
    with running_service(directory, settings, python) as said:
        yield str(said["url"]), int(said["pid"])


@contextlib.contextmanager
def running_service(
    directory: Path, settings: dict[str, Any], python: str = sys.executable
) -> Iterator[dict[str, Any]]:
    """`dspool up` with these settings: what it says of itself when it is ready."""
    directory.mkdir(exist_ok=True)
    file = directory / "pool.yaml"  # JSON is YAML
    file.write_text(json.dumps({"init_timeout_s": START_S, **settings}))
    command = [python, "-m", "dspool.cli", "up", "--json", "--port", "0"]
    command += ["--config", str(file), "--state-dir", str(directory)]
    with process(command, stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        for line in service.stdout:
            said = json.loads(line)
            if said["event"] == "ready":
                break
            if said["event"] == "error":
                raise RuntimeError(said["message"])
        else:
            raise RuntimeError("dspool up ended before it was ready")
        yield {**said, "pid": service.pid}


@contextlib.contextmanager
def model_server(latency_s: float, port: int | None = None) -> Iterator[int]:
    """A model behind real HTTP, in a process of its own; at the port that is given back."""
    port = port or free_ports(1)[0]
    command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", "dspool.testing.lm_server"]
    with process([*command, "--port", str(port), "--latency", str(latency_s)], stdout=subprocess.DEVNULL):
        yield port


def model_settings(port: int) -> dict[str, Any]:
    """Of a pool whose programs ask that model."""
    endpoint = f"http://127.0.0.1:{port}/v1"
    return {
        "lm_profiles": {"model": {"model": "openai/model", "endpoint": endpoint, "engine": "lm15"}},
        "default_lm": "model",
    }
