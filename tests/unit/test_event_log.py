"""Events on their way from the processes of a pool to the one log that keeps the newest."""

from __future__ import annotations

import asyncio

import pytest

from dspool.config import PoolConfig
from dspool.errors import InvalidRequest
from dspool.telemetry.event_log import FORWARDED, EventBatch, EventBuffer, EventLog, OutgoingEvent
from dspool.telemetry.events import EVENTS, emit
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.observation import Observation

CREATED = {"pool": "p", "session_hash": "abc", "worker": "p-w0-a"}


@pytest.fixture
def buffer():
    buffer = EventBuffer("p", "p-w0-a", limit=3, wall=lambda: 7.0).attach()
    yield buffer
    buffer.detach()


@pytest.fixture
def observation(tmp_path):
    observation = Observation(PoolConfig(name="p", state_dir=tmp_path), Metrics("p"))
    yield observation
    observation.close()


def events(*names: str) -> list[OutgoingEvent]:
    return [OutgoingEvent(1.0, name, {}, {"pool": "p"}) for name in names]


def test_what_happens_once_an_operation_stays_in_its_process():
    assert {"session.moved", "pool.resize", "worker.init", "telemetry.handler_failed"} <= set(FORWARDED)
    per_operation = {name for name in EVENTS if name.startswith("operation.")} | {
        "worker.checkout",
        "worker.checkin",
    }
    assert not per_operation & set(FORWARDED)


def test_a_buffer_keeps_the_events_of_its_pool_until_they_are_delivered(buffer):
    emit("session.created", {}, CREATED)
    emit("session.created", {}, {**CREATED, "pool": "other"})
    emit("worker.health_check", {}, {"pool": "p", "outcome": "ok"})
    batch = buffer.batch()
    assert batch == EventBatch("p", "p-w0-a", 1, [OutgoingEvent(7.0, "session.created", {}, CREATED)])
    assert buffer.batch() == batch
    buffer.delivered(batch)
    assert buffer.batch() is None


def test_a_full_buffer_drops_and_counts(buffer):
    for _ in range(5):
        emit("session.created", {}, CREATED)
    batch = buffer.batch()
    assert (len(batch.events), batch.dropped) == (3, 2)
    emit("session.created", {}, CREATED)
    buffer.delivered(batch)
    log = EventLog("p")
    log.take(batch)
    emit("session.created", {}, CREATED)
    log.take(buffer.batch())
    assert log.dropped == 3
    assert log.counts["session.created"] == 4


async def test_what_could_not_be_delivered_is_sent_again_and_kept_once(buffer):
    log = EventLog("p")

    async def arrives_but_nobody_hears(batch: EventBatch) -> None:
        log.take(batch)
        raise ConnectionError

    async def arrives(batch: EventBatch) -> None:
        log.take(batch)

    emit("session.created", {}, CREATED)
    await buffer.deliver(arrives_but_nobody_hears)
    emit("session.moved", {"items": 2}, CREATED)
    await buffer.deliver(arrives)
    assert [seen.event for seen in log.after()] == ["session.created", "session.moved"]
    assert [seen.source for seen in log.after()] == ["p-w0-a", "p-w0-a"]


def test_the_log_is_bounded_and_says_what_was_missed():
    log = EventLog("p", limit=3)
    began = log.began
    log.take(EventBatch("p", "s", 1, events(*["pool.resize"] * 5)))
    page = log.page(began + 1)
    assert [seen.number - began for seen in page.events] == [3, 4, 5]
    assert page.missed
    assert log.counts["pool.resize"] == 5
    assert not log.page(page.next).events
    assert not log.page(page.next).missed
    assert [seen.number - began for seen in log.page(0, limit=2).events] == [4, 5]


def test_numbers_grow_over_the_death_of_the_log():
    now = [1000.0]
    first = EventLog("p", wall=lambda: now[0])
    first.take(EventBatch("p", "s", 1, events(*["pool.resize"] * 100)))
    now[0] += 0.5
    second = EventLog("p", wall=lambda: now[0])
    second.take(EventBatch("p", "s", 101, events("pool.init")))
    page = second.page(first.newest)
    assert [seen.event for seen in page.events] == ["pool.init"]
    assert page.missed


def test_a_batch_of_another_pool_is_not_kept():
    log = EventLog("p")
    log.take(EventBatch("q", "s", 1, events("pool.init")))
    assert not log.after()


async def test_whoever_waits_for_events_hears_of_the_next_one(observation):
    first = await observation.events()
    assert not first.events
    waiting = asyncio.ensure_future(observation.events(first.next, 10, 20.0))
    await asyncio.sleep(0)
    observation.report(EventBatch("p", "s", 1, events("pool.resize")))
    page = await asyncio.wait_for(waiting, 60)
    assert [seen.event for seen in page.events] == ["pool.resize"]


async def test_waiting_ends_with_an_empty_page(observation):
    page = await observation.events((await observation.events()).next, 10, 0.01)
    assert page.events == []


@pytest.mark.parametrize("asked", [{"limit": 0}, {"limit": 1001}, {"timeout_s": -1.0}, {"timeout_s": 31.0}])
async def test_a_page_out_of_bounds_is_refused(observation, asked):
    with pytest.raises(InvalidRequest):
        await observation.events(**asked)


async def test_metrics_go_on_from_their_checkpoint(observation, tmp_path):
    assert observation.restore() is False
    observation.metrics.tick(observation.metrics._clock() + 1)
    await observation.save()
    again = Observation(PoolConfig(name="p", state_dir=tmp_path), Metrics("p"))
    try:
        assert again.restore() is True
        assert len(again.metrics.history(60).points) == 1
    finally:
        again.close()


async def test_a_damaged_checkpoint_is_left_alone(observation, tmp_path):
    await observation.save()
    (tmp_path / "metrics-p.checkpoint").write_bytes(b"\xc1nonsense")
    assert observation.restore() is False
