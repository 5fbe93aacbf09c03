"""Ended operations from the client's buffer to the file: bounded everywhere, in nobody's way, there after a restart."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time

import pytest

from dspool.config import PoolConfig
from dspool.core.metrics.operation_records import (
    EndedOperation,
    OperationBatch,
    OperationBuffer,
    OperationQuery,
    decode_records,
)
from dspool.errors import InvalidRequest, PoolNotReady, QueueFull
from dspool.telemetry import operation_store
from dspool.telemetry.operation_keeper import MAX_BATCHES, MAX_SEARCHES, OperationKeeper, operations_file
from dspool.telemetry.operation_store import MEMORY_ROWS, OperationStore
from dspool.telemetry.pool_metrics import PoolMetrics

NOW = 1_700_000_000.0


def ended(number: int, *, outcome: str = "ok", at: float = NOW, **more) -> EndedOperation:
    code = None if outcome == "ok" else "program_error"
    return EndedOperation(
        f"op-{number}", at + number, 0.2, 0.1, 0.1, "execute_program", "qa", 3, outcome, code, **more
    )


def batch(*operations: EndedOperation, pool: str = "p", left_out: int = 0) -> OperationBatch:
    buffer = OperationBuffer(pool)
    for one in operations:
        assert buffer.has_room(one.outcome)
        buffer.add(one)
    made = buffer.take()
    assert made is not None
    return OperationBatch(made.pool, made.records, left_out)


def ids(found) -> list[str]:
    return [one.id for one in found]


# --- the client's buffer ----------------------------------------------------------------------------


def test_a_full_buffer_counts_what_it_has_no_room_for_and_failures_have_room_of_their_own():
    buffer = OperationBuffer("p", limit=2)
    for number in range(5):
        if buffer.has_room("ok"):
            buffer.add(ended(number))
    assert buffer.has_room("error")
    buffer.add(ended(9, outcome="error"))
    sent = buffer.take()
    assert sent is not None
    assert ids(decode_records(sent.records)) == ["op-0", "op-1", "op-9"]
    assert sent.left_out == 3
    assert buffer.take() is None


def test_what_did_not_arrive_goes_again_unchanged_before_anything_newer():
    buffer = OperationBuffer("p")
    buffer.add(ended(1))
    sent = buffer.take()
    assert sent is not None
    buffer.add(ended(2))
    buffer.give_back(sent)
    assert buffer.take() is sent
    assert ids(decode_records(buffer.take().records)) == ["op-2"]  # type: ignore[union-attr]


def test_a_pool_that_keeps_no_operations_records_none():
    buffer = OperationBuffer("p", is_on=False)
    assert not buffer.has_room("error")
    assert buffer.take() is None


# --- bounds -----------------------------------------------------------------------------------------


def test_the_oldest_go_when_there_are_more_than_the_bound(tmp_path):
    store = OperationStore(tmp_path / "o.db", max_rows=10)
    for start in range(0, 50, 5):
        store.write([ended(number) for number in range(start, start + 5)], now=NOW)
        assert store.kept <= 10
    found, _ = store.find(OperationQuery())
    assert ids(found) == [f"op-{number}" for number in range(49, 39, -1)]
    store.close()


def test_what_is_too_old_goes_with_the_next_batch(tmp_path):
    store = OperationStore(tmp_path / "o.db", max_rows=1000, max_age_s=60.0)
    store.write([ended(0), ended(50)], now=NOW + 50)
    store.write([ended(100)], now=NOW + 100)
    assert ids(store.find(OperationQuery())[0]) == ["op-100", "op-50"]
    assert store.oldest_at() == NOW + 50
    store.close()


def test_the_file_stays_within_its_bytes(tmp_path):
    most = 300_000
    store = OperationStore(tmp_path / "o.db", max_rows=10**6, max_bytes=most)
    for start in range(0, 20_000, 500):
        store.write([ended(n) for n in range(start, start + 500)], now=NOW)
    assert 0 < store.kept < 10_000
    assert (tmp_path / "o.db").stat().st_size < 2 * most
    assert store.find(OperationQuery(limit=1))[0][0].id == "op-19999"
    store.close()


def test_a_store_without_a_file_keeps_few():
    assert OperationStore(None, max_rows=10**6)._max_rows == MEMORY_ROWS
    store = OperationStore(None, max_rows=3)
    store.write([ended(n) for n in range(9)], now=NOW)
    assert ids(store.find(OperationQuery())[0]) == ["op-8", "op-7", "op-6"]
    store.close()


def test_a_damaged_file_and_one_of_another_version_begin_anew(tmp_path):
    path = tmp_path / "o.db"
    path.write_bytes(b"no database" * 100)
    store = OperationStore(path, max_rows=10)
    store.write([ended(1)], now=NOW)
    store.close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 99")
    other.close()
    store = OperationStore(path, max_rows=10)
    store.write([ended(2)], now=NOW)
    assert ids(store.find(OperationQuery())[0]) == ["op-2"]
    store.close()


def test_a_search_that_takes_too_long_ends_and_says_so(tmp_path, monkeypatch):
    store = OperationStore(tmp_path / "o.db", max_rows=10**6)
    store.write([ended(n) for n in range(5000)], now=NOW)
    monkeypatch.setattr(operation_store, "SEARCH_S", -1.0)
    monkeypatch.setattr(operation_store, "_CHECK_EVERY", 100)
    with pytest.raises(PoolNotReady, match="name a shorter time"):
        store.find(OperationQuery(text="not there"))
    store.close()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"outcome": "fine"}, "outcome"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"text": ""}, "text"),
        ({"program": "x" * 201}, "program"),
        ({"since": -1.0}, "since"),
        ({"at_least_s": float("nan")}, "at_least_s"),
        ({"version": -1}, "version"),
        ({"cursor": "1.2.3"}, "cursor"),
        ({"cursor": "x"}, "cursor"),
    ],
)
def test_a_query_that_cannot_be_is_refused_with_what_is_wrong(asked, field):
    with pytest.raises(InvalidRequest) as refused:
        OperationQuery(**asked).checked()
    assert refused.value.field == field


# --- beside the event loop --------------------------------------------------------------------------


async def test_operations_are_there_after_a_restart_of_what_keeps_them(tmp_path):
    config = PoolConfig(name="p", state_dir=tmp_path)
    today = float(round(time.time()))
    for life in range(2):
        metrics = PoolMetrics(config, operations_file(config))
        await metrics.report(batch(ended(life, at=today)))
        await metrics.report(batch(ended(7, at=today), pool="other"))
        await metrics.operations.written()
        found = await metrics.operations.find(OperationQuery())
        assert ids(found.operations) == [f"op-{number}" for number in range(life, -1, -1)]
        assert (found.kept, found.left_out, found.oldest_at) == (life + 1, 0, today)
        await metrics.operations.close()
        metrics.observation.close()
    assert oct(operations_file(config).stat().st_mode & 0o777) == "0o600"


class HeldStore(OperationStore):
    """Writes and searches wait until the test lets them."""

    def __init__(self) -> None:
        super().__init__(None, max_rows=1000)
        self.entered = threading.Event()
        self.go = threading.Event()

    def write(self, operations, now):
        self.entered.set()
        self.go.wait(30)
        super().write(operations, now)

    def find(self, query):
        self.go.wait(30)
        return super().find(query)


async def test_a_slow_disk_holds_nobody_and_costs_counted_records():
    store = HeldStore()
    keeper = OperationKeeper(store, "p", wall=lambda: NOW)
    keeper.take(batch(ended(0)))
    await asyncio.to_thread(store.entered.wait, 30)
    for number in range(MAX_BATCHES + 3):
        keeper.take(batch(ended(1 + number), left_out=1))
    store.go.set()
    await keeper.written()
    # Three batches of one record, and what the clients themselves had left out.
    assert keeper.left_out == 3 + MAX_BATCHES + 3
    assert store.kept == 1 + MAX_BATCHES
    await keeper.close()


async def test_searches_wait_in_a_bounded_line():
    store = HeldStore()
    keeper = OperationKeeper(store, "p")
    searches = [asyncio.ensure_future(keeper.find(OperationQuery())) for _ in range(MAX_SEARCHES)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await keeper.find(OperationQuery())
    store.go.set()
    await asyncio.gather(*searches)
    assert (await keeper.find(OperationQuery())).kept == 0
    await keeper.close()


async def test_a_disk_that_fails_costs_records_and_says_so_once(tmp_path, caplog):
    config = PoolConfig(name="p", state_dir=tmp_path)
    (tmp_path / "operations-p.db").mkdir()
    keeper = OperationKeeper.of(config, operations_file(config))
    for number in range(3):
        keeper.take(batch(ended(number)))
        await keeper.written()
    assert keeper.left_out == 3
    assert [record.message.split(":")[0] for record in caplog.records] == ["operations are not kept now"]
    with pytest.raises(PoolNotReady):
        await keeper.find(OperationQuery())
    await keeper.close()


async def test_a_batch_of_another_version_of_dspool_is_counted_and_harms_nothing():
    keeper = OperationKeeper(OperationStore(None, max_rows=10), "p", wall=lambda: NOW)
    keeper.take(OperationBatch("p", b"\x92\x01\x02", 0))
    keeper.take(OperationBatch("p", b"\xc1", 0))
    keeper.take(batch(ended(1)))
    await keeper.written()
    assert keeper.left_out == 2
    assert ids((await keeper.find(OperationQuery())).operations) == ["op-1"]
    await keeper.close()
