"""The live stream: one question and one encoding for all viewers, places to come back to, and nobody held up."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from dspool.errors import PoolNotReady, WorkerLost
from dspool_console.dashboard.hub import FRAMES_KEPT, Hub
from dspool_console.dashboard.service import Dashboard
from dspool_serve.fresh import Fresh
from tests.dashboard_demo import SimulatedPools, application
from tests.simulated_pool import SimulatedPool
from tests.unit.http_doubles import until


class Beats:
    """News that a test gives, and a clock that goes on when it says so."""

    def __init__(self):
        self.given: asyncio.Queue = asyncio.Queue()
        self.wanted: list[frozenset] = []
        self.asked = self.forgot = 0
        self.now = 0.0
        self.hub = Hub(self, clock=lambda: self.now, wall=lambda: 1000.0 + self.now, sleep=self._sleep)

    def forget(self):
        self.forgot += 1

    async def beat(self, wanted):
        self.asked += 1
        self.wanted.append(wanted)
        found = await self.given.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def _sleep(self, seconds):
        self.now += max(0.0, seconds)
        await asyncio.sleep(0)

    def tell(self, *data, topic="overview"):
        self.given.put_nowait([(topic, "tick", one) for one in data])


def events_of(data):
    found = []
    for block in data.decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields["event"], json.loads(fields["data"]), fields["id"]))
    return found


async def read(stream, number):
    found = []
    while len(found) < number:
        found += events_of(await asyncio.wait_for(anext(stream), 60))
    return found


OVERVIEW = frozenset({"overview"})


async def test_a_hundred_viewers_cost_one_question_and_get_the_same_bytes():
    beats = Beats()
    streams = [beats.hub.follow(OVERVIEW, None) for _ in range(100)]
    assert {(await read(stream, 1))[0][0] for stream in streams} == {"hello"}
    beats.tell({"n": 1})
    got = [await asyncio.wait_for(anext(stream), 60) for stream in streams]
    assert len({id(data) for data in got}) == 1
    assert events_of(got[0])[0][1] == {"n": 1}
    await until(lambda: beats.asked == 2)
    for stream in streams:
        await stream.aclose()
    assert beats.hub.viewers == 0
    beats.hub.close()


async def test_nothing_is_asked_when_nobody_looks_any_more():
    beats = Beats()
    stream = beats.hub.follow(OVERVIEW, None)
    await read(stream, 1)
    beats.tell({"n": 1})
    await read(stream, 1)
    await stream.aclose()
    beats.tell({"n": 2})
    await until(lambda: beats.hub._beating.done())
    assert beats.asked <= 2


async def test_a_viewer_who_comes_back_goes_on_where_it_was():
    beats = Beats()
    first, other = beats.hub.follow(OVERVIEW, None), beats.hub.follow(OVERVIEW, None)
    await read(first, 1)
    await read(other, 1)
    beats.tell({"n": 1})
    ((_, _, place),) = await read(first, 1)
    await first.aclose()
    beats.tell({"n": 2}, {"n": 3})
    await read(other, 3)
    again = beats.hub.follow(OVERVIEW, place)
    found = await read(again, 3)
    assert found[0][:2] == ("hello", {"resumed": True, "at": found[0][1]["at"]})
    assert [data["n"] for _, data, _ in found[1:]] == [2, 3]
    for stream in (other, again):
        await stream.aclose()
    beats.hub.close()


@pytest.mark.parametrize("place", ["", "nonsense", "00000000-5", "x-99999999999999999999", "-1"])
async def test_a_place_that_is_not_here_begins_anew(place):
    beats = Beats()
    stream = beats.hub.follow(OVERVIEW, place)
    assert (await read(stream, 1))[0][1]["resumed"] is False
    await stream.aclose()
    beats.hub.close()


async def test_a_viewer_who_reads_too_slowly_loses_its_place_and_is_told():
    beats = Beats()
    slow, quick = beats.hub.follow(OVERVIEW, None), beats.hub.follow(OVERVIEW, None)
    await read(slow, 1)
    await read(quick, 1)
    beats.tell(*({"n": number} for number in range(FRAMES_KEPT + 5)))
    await asyncio.wait_for(anext(quick), 60)
    assert (await read(slow, 1))[0][0] == "reset"
    assert len(beats.hub._frames) == FRAMES_KEPT
    for stream in (slow, quick):
        await stream.aclose()
    beats.hub.close()


async def test_a_viewer_hears_only_its_topics_and_the_pool_is_asked_for_all_of_them():
    beats = Beats()
    events, overview = beats.hub.follow(frozenset({"events"}), None), beats.hub.follow(OVERVIEW, None)
    await read(events, 1)
    await read(overview, 1)
    beats.given.put_nowait([("overview", "tick", {}), ("events", "event", {"number": 1})])
    assert [name for name, *_ in await read(events, 1)] == ["event"]
    assert [name for name, *_ in await read(overview, 1)] == ["tick"]
    await until(lambda: len(beats.wanted) > 1)
    assert beats.wanted[-1] == {"events", "overview"}
    for stream in (events, overview):
        await stream.aclose()
    beats.hub.close()


async def test_a_pool_that_fails_is_told_once_and_the_stream_goes_on():
    beats = Beats()
    stream = beats.hub.follow(frozenset({"events"}), None)
    await read(stream, 1)
    for _ in range(3):
        beats.given.put_nowait(WorkerLost("it is away"))
    beats.tell({"n": 1}, topic="events")
    found = await read(stream, 2)
    assert [name for name, *_ in found] == ["error", "tick"]
    assert found[0][1]["code"] == "worker_lost"
    await stream.aclose()
    beats.hub.close()


async def test_news_that_cannot_be_encoded_does_not_end_the_stream():
    beats = Beats()
    stream = beats.hub.follow(OVERVIEW, None)
    await read(stream, 1)
    beats.tell(object())
    beats.tell({"n": 1})
    assert [name for name, *_ in await read(stream, 2)] == ["error", "tick"]
    await stream.aclose()
    beats.hub.close()


async def test_the_stream_of_a_service_begins_with_everything_and_goes_on_with_what_changed():
    pool = SimulatedPool(workers=2, history_s=5)
    dashboard = Dashboard(SimulatedPools(pool))
    stream = dashboard.of("default").hub.follow(frozenset({"overview", "workers", "events"}), None)
    await read(stream, 1)
    first = {name: data for name, data, _ in await read(stream, 2)}
    assert first["tick"]["now"]["throughput"] > 0
    assert {row["id"] for row in first["workers"]["changed"]} == set(pool.rows)
    pool._second(whole=True)
    pool.happen("pool.resize", {"from": 1, "to": 2, "overflow": 0}, reason="by hand", action="grow")
    found = await read(stream, 3)
    tick = next(data for name, data, _ in found if name == "tick")
    assert len(tick["points"]["at"]) == 1
    assert "min_size" not in tick.get("pool", {})
    assert any(name == "event" and (data["marker"] or {}).get("kind") == "resize" for name, data, _ in found)
    await stream.aclose()
    dashboard.close()


async def test_all_of_a_pools_state_is_told_again_every_few_beats_because_an_answer_may_have_been_newer():
    pool = SimulatedPool(workers=1, history_s=5)
    dashboard = Dashboard(SimulatedPools(pool))
    news = dashboard.of("default").hub._changes
    told = []
    for _ in range(11):
        ((_, _, tick),) = await news.beat(frozenset({"overview"}))
        told.append(tick.get("pool", {}).get("state"))
    assert [n for n, state in enumerate(told, 1) if state] == [1, 5, 10]
    dashboard.close()


async def test_a_supervisor_that_is_away_takes_neither_events_nor_figures_from_those_who_look():
    pool = SimulatedPool(workers=1, history_s=5)
    dashboard = Dashboard(SimulatedPools(pool))
    changes = dashboard.of("default").hub._changes
    topics = frozenset({"overview", "events", "warmup", "sizing"})
    await changes.beat(topics)

    async def away(*args: object, **kwargs: object) -> None:
        raise PoolNotReady("the pool's supervisor is being restarted")

    pool.warm_progress = pool.decisions = away
    pool.happen("pool.resize", {"from": 1, "to": 2, "overflow": 0}, reason="by hand", action="grow")
    assert {name for _, name, _ in await changes.beat(topics)} == {"tick", "event"}
    dashboard.close()


async def test_an_unknown_topic_is_refused_before_the_stream_begins():
    app = application(SimulatedPool(workers=1, history_s=2))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as http:
        answer = await http.get("/v1/pools/default/live?topics=overview,secrets")
    assert answer.status_code == 422


# --- answers for many -------------------------------------------------------------------------------


async def test_an_answer_is_made_once_for_all_who_ask_meanwhile():
    now = 0.0
    made = []
    fresh = Fresh(1.0, clock=lambda: now)

    async def make():
        made.append(1)
        await asyncio.sleep(0)
        return len(made)

    assert await asyncio.gather(*(fresh.get("k", make) for _ in range(9))) == [1] * 9
    now = 0.9
    assert await fresh.get("k", make) == 1
    now = 1.0
    assert await fresh.get("k", make) == 2


async def test_after_a_change_nobody_gets_an_answer_from_before_it():
    gate = asyncio.Event()
    fresh = Fresh(60.0)
    states = ["before", "after"]

    async def make():
        state = states[0]
        await gate.wait()
        return state

    early = asyncio.create_task(fresh.get("k", make))
    for _ in range(3):
        await asyncio.sleep(0)
    del states[0]
    fresh.drop("k")
    late = asyncio.create_task(fresh.get("k", make))
    await asyncio.sleep(0)
    gate.set()
    assert (await early, await late, await fresh.get("k", make)) == ("before", "after", "after")


async def test_one_who_hangs_up_does_not_take_the_answer_from_others():
    fresh = Fresh(1.0)
    go = asyncio.Event()

    async def make():
        await go.wait()
        return 7

    first, second = (asyncio.ensure_future(fresh.get("k", make)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    go.set()
    assert await second == 7


async def test_a_failure_is_not_kept():
    fresh = Fresh(60.0)
    answers = iter([WorkerLost("away"), 5])

    async def make():
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    with pytest.raises(WorkerLost):
        await fresh.get("k", make)
    await asyncio.sleep(0)
    assert await fresh.get("k", make) == 5
