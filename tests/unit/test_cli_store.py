"""`dspool store` as an operator and a script see it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from dspool.cli import app
from dspool.messages import Change
from dspool.store.store import SessionStore

run = CliRunner().invoke


@pytest.fixture
def state(tmp_path):
    """A state directory with a store that has two sessions."""

    async def fill():
        store = SessionStore(f"sqlite:///{tmp_path}/state/sessions.db")
        await store.open()
        for name in ("ada", "bob"):
            lease = await store.acquire("default", name, "w", create=True)
            await store.commit("default", name, "w", lease.epoch, [Change("variable", "x", name)])
        await store.close()

    asyncio.run(fill())
    return tmp_path / "state"


def said(*line, code=0):
    ended = run(app, ["store", *map(str, line), "--json"])
    assert ended.exit_code == code, ended.output
    return json.loads(ended.stdout if code == 0 or ended.stdout else ended.stderr)


def test_a_backup_is_restored_into_another_state_directory(state, tmp_path):
    file = tmp_path / "b.db"
    made = said("backup", file, "--state-dir", state)
    assert (made["target"], made["rows"]["sessions"], made["rows"]["session_items"]) == (str(file), 2, 2)
    restored = said("restore", file, "--state-dir", tmp_path / "new")
    assert restored["rows"]["sessions"] == 2
    checked = said("check", "--state-dir", tmp_path / "new")
    assert checked["ok"] is True
    assert checked["identity"] == made["identity"]


def test_what_is_refused_has_exit_code_2_and_what_is_broken_1(state, tmp_path):
    file = tmp_path / "b.db"
    said("backup", file, "--state-dir", state)
    assert said("backup", file, "--state-dir", state, code=2)["code"] == "conflict"
    assert said("restore", file, "--state-dir", state, code=2)["code"] == "conflict"
    assert said("restore", tmp_path / "none", "--state-dir", state, code=2)["code"] == "config_error"
    assert said("check", "--state-dir", tmp_path / "empty", code=2)["code"] == "config_error"
    assert said("restore", file, "--replace", "--state-dir", state)["rows"]["sessions"] == 2
    with closing(sqlite3.connect(state / "sessions.db")) as connection, connection:
        connection.execute("UPDATE usage SET sessions = 7")
    broken = said("check", "--state-dir", state, code=1)
    assert [one["check"] for one in broken["checks"] if not one["ok"]] == ["usage"]


def test_a_store_goes_to_another_database(state, tmp_path):
    moved = said("migrate", "--to", f"sqlite:///{tmp_path}/other.db", "--state-dir", state)
    assert moved["rows"]["sessions"] == 2
    assert said("migrate", "--to", f"sqlite:///{state}/sessions.db", "--state-dir", state, code=2)


def test_people_read_where_from_where_to_and_how_much(state, tmp_path):
    shown = run(app, ["store", "backup", str(tmp_path / "b.db"), "--state-dir", str(state)]).stdout
    assert shown.startswith("backed up sqlite")
    assert "2 sessions" in shown
    shown = run(app, ["store", "check", "--state-dir", str(state)]).stdout
    assert "integrity" in shown
    assert "FAIL" not in shown
