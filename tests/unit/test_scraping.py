"""`GET /metrics` of the service."""

from __future__ import annotations

import asyncio

import pytest
from http_doubles import FakePool, FixedPools, assert_problem, client_of
from measured import Measured

from dspool.errors import WorkerLost
from dspool.telemetry.exposition import CONTENT_TYPE
from dspool_serve.api import metrics
from dspool_serve.api.metrics import FRESH_S, Scrapes


class MeasuredPool(FakePool):
    def __init__(self, name: str = "default") -> None:
        super().__init__(name)
        self.measured = Measured(name).run(3)
        self.snapshots = 0
        self.lost = False
        self.hangs = False

    async def snapshot(self):
        self.snapshots += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.lost:
            raise WorkerLost("the metrics actor is gone")
        return self.measured.snapshot()


async def test_metrics_are_prometheus_text():
    async with client_of(MeasuredPool()) as http:
        answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == CONTENT_TYPE
    assert 'dspool_operations_total{pool="default",program="qa",outcome="ok"} 3' in answer.text.splitlines()


async def test_all_pools_are_on_one_page_with_each_head_once():
    async with client_of(MeasuredPool("a"), MeasuredPool("b")) as http:
        lines = (await http.get("/metrics")).text.splitlines()
    heads = [line for line in lines if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    assert {'dspool_metrics_reachable{pool="a"} 1', 'dspool_metrics_reachable{pool="b"} 1'} <= set(lines)


async def test_a_lost_metrics_actor_costs_only_its_own_metrics():
    away = MeasuredPool("away")
    away.lost = True
    async with client_of(away, MeasuredPool("here")) as http:
        answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert 'dspool_metrics_reachable{pool="away"} 0' in answer.text
    assert 'dspool_pool_health_score{pool="here"}' in answer.text


async def test_a_metrics_actor_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(metrics, "TIMEOUT_S", 0.01)
    pool = MeasuredPool()
    pool.hangs = True
    async with client_of(pool) as http:
        assert 'dspool_metrics_reachable{pool="default"} 0' in (await http.get("/metrics")).text


async def test_the_metrics_actor_is_asked_once_a_second_however_many_scrape():
    now, pool = 10.0, MeasuredPool()
    scrapes = Scrapes(FixedPools(pool), clock=lambda: now)
    pages = await asyncio.gather(*(scrapes.page() for _ in range(20)))
    assert len(set(pages)) == 1
    now += FRESH_S / 2
    await scrapes.page()
    assert pool.snapshots == 1
    now += FRESH_S / 2
    await scrapes.page()
    assert pool.snapshots == 2


async def test_one_who_hangs_up_does_not_take_the_page_from_the_others():
    pool = MeasuredPool()
    scrapes = Scrapes(FixedPools(pool))
    first, second = (asyncio.ensure_future(scrapes.page()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert b"dspool_operations_total" in await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_unknown_query_parameters_are_refused():
    async with client_of(MeasuredPool()) as http:
        assert_problem(await http.get("/metrics?pool=default"), 422, "invalid_request")
