"""A script's cluster of its own: its token is its own, it needs no home, and nothing is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import still_there

pytestmark = pytest.mark.ray

SCRIPT = """
import asyncio, json, os, psutil, stat, subprocess, sys
import ray  # a notebook has it long before the pool
from dspool import Pool, PoolConfig

JOIN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('joined')"

def joining(**variables):
    # How often it asks a cluster that does not answer; Ray's default takes half a minute.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    environ |= {"RAY_NUM_REDIS_GET_RETRIES": "2"} | variables
    command = [sys.executable, "-c", JOIN, ray.get_runtime_context().gcs_address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environ, text=True, **pipes)

def joined(process):
    return process.communicate()[0].strip() == "joined"

def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)

async def main():
    async with Pool.start(PoolConfig.default(), pool_size=1, state_dir=sys.argv[1]) as pool:
        result = await pool.execute("qa", context="Paris is the capital of France.", question="What is the capital?")
        path = os.environ["RAY_AUTH_TOKEN_PATH"]
        told = {
            "answer": result.answer,
            "path": path,
            "modes": [mode(path), mode(os.path.dirname(path))],
            "hosts": [member.host for member in pool.client.membership.workers],
            "started": [process.pid for process in psutil.Process().children(recursive=True)],
            "directory": ray._private.worker._global_node.get_temp_dir_path(),
            "sockets": ray._private.worker._global_node.get_sockets_dir_path(),
        }
        if len(sys.argv) > 2:
            joins = {
                "with the token": joining(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=path),
                "without": joining(),
                "with another": joining(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
            }
            told |= {how: joined(process) for how, process in joins.items()}
    told["left"] = [os.path.exists(path), sorted(name for name in os.environ if name.startswith("RAY_AUTH_"))]
    print(json.dumps(told))

asyncio.run(main())
"""


def ran(tmp_path: Path, home: str | None, *arguments: str) -> dict:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_AUTH_") and name not in ("HOME", "PYTHONDONTWRITEBYTECODE")
    }
    environ |= {} if home is None else {"HOME": home}
    script = [sys.executable, "-c", SCRIPT, str(tmp_path / "state"), *arguments]
    done = subprocess.run(script, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["answer"] == "Paris"
    assert told["modes"] == [0o600, 0o700]
    assert told["left"] == [False, []]
    assert told["hosts"] == ["127.0.0.1"]
    # Neither a process nor a file is left of it.
    assert told["started"]
    assert still_there(told["started"]) == []
    assert not Path(told["directory"]).exists()
    return told


def test_only_who_has_the_token_of_the_run_joins_and_the_home_stays_empty(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    told = ran(tmp_path, str(home), "and join")
    assert (told["with the token"], told["without"], told["with another"]) == (True, False, False)
    assert list(home.iterdir()) == []
    # Ray opens what is in its directory to all users: it lies in one that nobody else can enter.
    assert Path(told["sockets"]).is_relative_to(Path(told["path"]).parent)


@pytest.mark.parametrize("home", ["/proc/nowhere", None])
def test_a_pool_starts_without_a_home_that_it_could_write_to(tmp_path, home):
    ran(tmp_path, home)
