"""Why a store does not open: the start and `dspool doctor` say it in the same words, those of the table of causes."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import URL

from dspool.cli.doctor import service
from dspool.config import PoolConfig
from dspool.config.store import StoreConfig
from dspool.errors import PoolError, StoreFailed
from dspool.store.failures import store_failed
from dspool.store.schema import parse_url
from dspool.store.store import SessionStore


def same_words(failed: PoolError, finding, cause: str) -> None:
    assert (finding.cause, finding.level) == (cause, "fail"), finding
    assert failed.details["cause"] == cause
    assert failed.message == f"{finding.found}; {finding.advice}"


async def opened(url: str, settings: StoreConfig | None = None) -> PoolError:
    with pytest.raises(PoolError) as failed:
        await SessionStore(url, settings=settings).open()
    return failed.value


def sqlite_config(tmp_path: Path) -> tuple[PoolConfig, Path, str]:
    file = tmp_path / "sessions.db"
    return PoolConfig(state_dir=tmp_path), file, f"sqlite:///{file}"


async def test_a_store_that_a_newer_dspool_wrote(tmp_path):
    config, file, url = sqlite_config(tmp_path)
    store = SessionStore(url)
    await store.open()
    await store.close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    failed = await opened(url)
    assert failed.details["version"] == 99
    same_words(failed, await in_thread(service.store, config), "store_newer")


async def test_a_store_that_is_no_database(tmp_path):
    config, file, url = sqlite_config(tmp_path)
    file.write_bytes(b"this is no database" * 100)
    same_words(await opened(url), await in_thread(service.store, config), "store_damaged")


async def test_a_store_that_another_process_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_STORE_S", 0.1)
    config, file, url = sqlite_config(tmp_path)
    store = SessionStore(url)
    await store.open()
    await store.close()
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    failed = await opened(url, StoreConfig(statement_timeout_s=0.1))
    same_words(failed, await in_thread(service.store, config), "store_locked")
    holder.close()


async def test_a_database_that_nobody_serves(tmp_path):
    url = "postgresql://user:hunter2@127.0.0.1:1/db"
    failed = await opened(url)
    same_words(
        failed,
        await in_thread(service.store, PoolConfig(state_dir=tmp_path, store_url=url)),
        "store_unreachable",
    )
    assert "hunter2" not in failed.message


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("28P01", "store_login"),
        ("28000", "store_login"),
        ("3D000", "store_missing"),
        ("53100", "no_space"),
        ("53300", "store_crowded"),
        ("25006", "store_standby"),
        ("57P03", "store_unreachable"),
        ("08006", "store_unreachable"),
        ("42601", None),
    ],
)
def test_what_postgresql_refuses_is_told_by_its_state_and_without_its_words(state, cause):
    class Refused(Exception):
        sqlstate = state

    url: URL = parse_url("postgresql://user:hunter2@db/x")
    error = store_failed(Refused("hunter2"), url)
    assert isinstance(error, StoreFailed)
    if cause is not None:
        assert "PostgreSQL at db:5432" in error.message or cause == "store_standby"
    assert error.details.get("cause") == cause
    assert "hunter2" not in error.message


async def in_thread(call, *args):
    return await asyncio.to_thread(call, *args)
