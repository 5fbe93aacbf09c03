"""A state directory on a full file system: what is new is refused by its cause, reading goes on, writing comes back."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import uuid

import pytest

from dspool.config import PoolConfig
from dspool.core.metrics.operation_records import OperationQuery
from dspool.errors import StoreFailed
from dspool.messages import Change, Deployment
from dspool.store.store import SessionStore
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.observation import Observation
from dspool.telemetry.operation_store import OperationStore
from tests.small_disk import fill, make_room, small_disk
from tests.unit.test_kept_operations import ended

POOL = "p"


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path) as place:
        yield place


@pytest.fixture
async def store(disk):
    store = SessionStore(f"sqlite:///{disk}/sessions.db")
    await store.open()
    yield store
    await store.close()


def value(size=10):
    return Change("variable", "x", "v" * size)


async def refused(work):
    with pytest.raises(StoreFailed) as failed:
        await work
    assert failed.value.cause == "no_space"
    assert "there is no space left on the device" in failed.value.message
    assert failed.value.message.endswith("make room on that disk; writing goes on by itself then")


async def test_what_is_new_is_refused_and_names_the_cause(store, disk):
    lease = await store.acquire(POOL, "s", "w1", create=True)
    await store.commit(POOL, "s", "w1", lease.epoch, [value()])
    await store.add_deployment(POOL, Deployment("a", 0, spec={"signature": "q -> a"}))
    fill(disk)
    await refused(store.commit(POOL, "s", "w1", lease.epoch, [value(20)]))
    await refused(store.create(POOL, "other"))
    await refused(store.acquire(POOL, "new", "w1", create=True))
    await refused(store.add_deployment(POOL, Deployment("a", 0, spec={"signature": "q -> b"})))
    claim = {"principal": None, "fingerprint": "f", "holder": "h", "patience_s": 1.0, "keep_s": 1.0}
    await refused(store.claim_key(POOL, "key", **claim))


async def test_sessions_versions_and_values_are_read_all_the_same(store, disk):
    lease = await store.acquire(POOL, "s", "w1", create=True)
    await store.commit(POOL, "s", "w1", lease.epoch, [value()])
    await store.add_deployment(POOL, Deployment("a", 0, spec={"signature": "q -> a"}))
    fill(disk)
    await refused(store.commit(POOL, "s", "w1", lease.epoch, [value(20)]))
    assert (await store.acquire(POOL, "s", "w1", create=False)).items == (value(),)
    assert await store.count(POOL) == 1
    assert (await store.get(POOL, "s")).owner == "w1"
    assert [d.version for d in await store.deployments(POOL)] == [1]
    assert await store.current_versions(POOL) == {"a": 1}


async def test_a_session_moves_to_another_worker_any_number_of_times(store, disk):
    lease = await store.acquire(POOL, "s", "w0", create=True)
    await store.commit(POOL, "s", "w0", lease.epoch, [value()])
    fill(disk)
    for number in range(300):
        await store.release(POOL, f"w{number}", ["s"])
        lease = await store.acquire(POOL, "s", f"w{number + 1}", create=False)
        assert lease.granted
        assert lease.items == (value(),)


@pytest.mark.parametrize("size", [300_000, 30_000, 3_000])
async def test_so_it_is_however_the_disk_came_to_be_full(store, disk, size):
    lease = await store.acquire(POOL, "s", "w0", create=True)
    changes = (
        Change("variable", f"x{number}", uuid.uuid4().hex * (size // 32)) for number in itertools.count()
    )
    with contextlib.suppress(StoreFailed):
        while True:
            await store.commit(POOL, "s", "w0", lease.epoch, [next(changes)])
    fill(disk)
    for number in range(30):
        await store.release(POOL, f"w{number}", ["s"])
        assert (await store.acquire(POOL, "s", f"w{number + 1}", create=False)).granted


async def test_what_ends_makes_room_within_the_database(store, disk):
    lease = await store.acquire(POOL, "s", "w1", create=True)
    await store.commit(POOL, "s", "w1", lease.epoch, [value()])
    fill(disk)
    await store.commit(POOL, "s", "w1", lease.epoch, [Change("variable", "x", None)])
    assert await store.end(POOL, "s")
    assert await store.count(POOL) == 0


async def test_writing_goes_on_by_itself_once_there_is_room(store, disk):
    lease = await store.acquire(POOL, "s", "w1", create=True)
    fill(disk)
    await refused(store.commit(POOL, "s", "w1", lease.epoch, [value(20)]))
    make_room(disk)
    await store.commit(POOL, "s", "w1", lease.epoch, [value(20)])
    assert (await store.acquire(POOL, "s", "w1", create=False)).items == (value(20),)


async def test_a_disk_that_is_full_at_the_start_is_named(disk):
    fill(disk)
    await refused(SessionStore(f"sqlite:///{disk}/sessions.db").open())


async def test_a_database_on_a_full_disk_is_opened_and_read(store, disk):
    await store.create(POOL, "s")
    await store.close()
    fill(disk)
    # Its log and the log's index are made anew, which takes some pages.
    (disk / "filling").open("r+b").truncate((disk / "filling").stat().st_size - 65_536)
    again = SessionStore(f"sqlite:///{disk}/sessions.db")
    await again.open()
    assert await again.count(POOL) == 1
    await refused(again.create(POOL, "t"))
    await again.close()


def test_kept_operations_are_searched_and_kept_again_once_there_is_room(disk):
    store = OperationStore(disk / "operations.db", max_rows=100_000)
    store.write([ended(number, at=1.0 + number) for number in range(1000)], now=2000.0)
    fill(disk)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.write([ended(number, at=1.0 + number) for number in range(1000, 30_000)], now=2000.0)
    found, _ = store.find(OperationQuery(limit=10))
    assert len(found) == 10
    make_room(disk)
    store.write([ended(200_000, at=200_000.0)], now=2000.0)
    assert len(store.find(OperationQuery(limit=1))[0]) == 1
    store.close()


async def test_the_checkpoint_of_the_metrics_stays_as_it_was(disk, caplog):
    config = PoolConfig(state_dir=disk)
    observation = Observation(config, Metrics("default"))
    await observation.save()
    before = (disk / "metrics-default.checkpoint").read_bytes()
    fill(disk)
    await observation.save()
    assert "No space left on device" in caplog.text
    assert (disk / "metrics-default.checkpoint").read_bytes() == before
    make_room(disk)
    caplog.clear()
    await observation.save()
    assert not caplog.text
    observation.close()
