"""One pool, one database: a store on SQLite never comes up on another node."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


async def test_a_store_on_sqlite_stays_on_its_node_and_is_refused_on_two(short_path):
    program = Path(__file__).with_name("growing_cluster.py")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(program), str(short_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((short_path / "seen.json").read_text())
    assert set(seen["nodes"]) == {"first"}
    assert seen["sessions"] == ["ada"]
    assert "2" in seen["refused"]
    assert "store_url" in seen["refused"]
    assert "PostgreSQL" in seen["refused"]
    assert seen["left"] == []
