"""What SQLite has synced survives a loss of power in the simulation, and what it has not may be lost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# SQLite of a whole process gets another way to files: not of this one.
PROGRAM = """
import json, random, sqlite3, sys
from pathlib import Path
from tests.simulation.power import files

files.install()
found = []
for number in range(20):
    place = Path(sys.argv[2]) / str(number)
    place.mkdir()
    files.watch(str(place))
    database = sqlite3.connect(place / "db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE t (x)")
    database.execute(f"PRAGMA synchronous={sys.argv[1]}")
    for value in range(50):
        database.execute("INSERT INTO t VALUES (?)", (value,))
    held = files.after_loss(random.Random(number))
    database.close()
    for path in place.iterdir():
        path.unlink()
    for path, data in held.items():
        Path(path).write_bytes(data)
    found.append(sqlite3.connect(place / "db").execute("SELECT count(*) FROM t").fetchone()[0])
print(json.dumps(found))
"""


@pytest.mark.parametrize(("synchronous", "all_of_it"), [("FULL", True), ("OFF", False)])
def test_what_was_committed_survives_only_if_it_was_synced(tmp_path, synchronous, all_of_it):
    command = [sys.executable, "-c", PROGRAM, synchronous, str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert (found == [50] * 20) is all_of_it
