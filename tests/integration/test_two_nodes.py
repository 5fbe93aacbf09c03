"""Two nodes on one machine: a store on SQLite never comes up on the other one, and each has a parent of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from harness import still_there

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.fixture(scope="module")
def seen():
    """What `two_nodes.py` saw, and the directory in which its cluster was."""
    program = Path(__file__).with_name("two_nodes.py")
    with tempfile.TemporaryDirectory(prefix="dsp-n-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [sys.executable, str(program), folder], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        yield json.loads((Path(folder) / "seen.json").read_text()) | {"folder": Path(folder)}


def test_a_store_on_sqlite_stays_on_its_node_and_a_new_one_is_refused_on_two(seen):
    assert set(seen["nodes"]) == {"first"}
    assert seen["sessions"] == ["ada"]
    # Also when the pool is started anew: its file is there.
    assert (seen["again"], seen["kept"]) == ("first", "blue")
    assert seen["status"]["pinned"] is True
    # It opens its database when it is asked something: not after each of its deaths.
    assert seen["status"]["epoch"] >= 3
    assert "2" in seen["refused"]
    assert "store_url" in seen["refused"]
    assert "PostgreSQL" in seen["refused"]
    assert seen["left"] == []


def test_workers_stand_on_the_nodes_that_were_chosen_for_them(seen):
    """Left to itself Ray would put them anywhere."""
    assert seen["spread"] == [3, 3]


def test_each_node_has_a_parent_of_its_own_and_nothing_outlives_the_cluster(seen):
    (one, its_parent, how), (other, others_parent, how_too) = seen["forked"]
    assert how == how_too == "fork"
    assert its_parent != others_parent
    # Two parents and two workers.
    assert still_there([one, its_parent, other, others_parent]) == []
    files = seen["folder"].rglob("*")
    assert not [path for path in files if "forkserver" in path.parts and path.is_socket()]
