"""The token of a service's own Ray: in a directory of the run, never in the home; who needs it finds it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_service import QA, QUESTION, Up, dspool

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300)]

JOIN = """
import asyncio, sys, ray
from dspool import Pool

async def main():
    ray.init(address=sys.argv[1], namespace="dspool", log_to_driver=False)
    pool = await Pool.connect("default")
    result = await pool.execute("qa", context="Paris is the capital of France.", question="What is the capital?")
    print(result.answer)
    await pool.close()

asyncio.run(main())
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("home", ["home", "/proc"])
def test_a_service_keeps_its_token_to_itself_and_needs_no_home(tmp_path, monkeypatch, home):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    # The operator's settings are for clusters that are joined.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    up = Up(tmp_path / "state", "--pool-size", "1")
    try:
        with up.client() as http:
            assert http.post(QA, json={"inputs": QUESTION, "timeout_s": 30}).status_code == 200
        shown = json.loads(dspool("status", "--state-dir", str(tmp_path / "state"), "--json").stdout)
        token = Path(shown["ray_token_path"])
        assert (mode(token), mode(token.parent)) == (0o600, 0o700)
        assert token.read_text() != os.environ["RAY_AUTH_TOKEN"]
        if home != "/proc":
            # As docs/how-to/deploy.md says it to a second process.
            environ = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
            environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
            command = [sys.executable, "-c", JOIN, shown["ray_address"]]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            assert done.stdout == "Paris\n", done.stderr[-2000:]
    finally:
        up.end()
    assert up.process.returncode == 0
    assert not token.parent.exists()
    assert list((tmp_path / "home").iterdir()) == []
