"""`GET /v1/pools/{pool}/operations`: filters, pages, and who may know whose an operation was."""

from __future__ import annotations

import time

import httpx
import pytest

from dspool.remote import RemotePool
from dspool.telemetry.pseudonyms import session_hash
from tests.dashboard_demo import application, tokens_for, write_traces
from tests.simulated_pool import SimulatedPool
from tests.unit.http_doubles import JSON

OPERATIONS = "/v1/pools/default/operations"
NUMBER = 120


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    pool = SimulatedPool(workers=3, history_s=10, state_dir=tmp_path_factory.mktemp("state"), pretty=True)
    write_traces(pool, NUMBER)
    return pool


@pytest.fixture(scope="module")
def tokens():
    return tokens_for(root="admin", eve="reader")


def client(pool, tokens=None, name=None):
    texts, source = tokens or ({}, None)
    headers = JSON | ({"authorization": f"Bearer {texts[name]}"} if name else {})
    transport = httpx.ASGITransport(app=application(pool, tokens=source))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


async def found(http, **query):
    answer = await http.get(OPERATIONS, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_each_filter_narrows_what_is_found_and_all_together_do(demo):
    worker = list(demo.rows)[1]
    now = time.time()
    filters = {
        "program": ("qa", lambda one: one["program"] == "qa"),
        "version": (3, lambda one: one["version"] == 3),
        "outcome": ("failed", lambda one: one["outcome"] != "ok"),
        "error": ("KeyError", lambda one: one["exception"] == "KeyError"),
        "session": ("user-3", lambda one: one["session"] == "user-3"),
        "session_hash": (session_hash("user-3", "default"), lambda one: one["session"] == "user-3"),
        "principal": ("eve", lambda one: one["principal"] == "eve"),
        "worker": (worker, lambda one: one["worker"] == worker),
        "range": (60, lambda one: one["ended_at"] > now - 62),
        "from": (now - 30, lambda one: one["ended_at"] >= now - 30),
        "to": (now - 30, lambda one: one["ended_at"] < now - 30),
        "at_least_s": (0.3, lambda one: one["duration_s"] >= 0.3),
        "at_most_s": (0.3, lambda one: one["duration_s"] <= 0.3),
        "id": ("op-1", lambda one: one["id"] == "op-1"),
        "text": ("p-11", lambda one: "p-11" in one["id"]),
    }
    async with client(demo) as http:
        everything = (await found(http, limit=1000))["operations"]
        assert len(everything) == NUMBER
        for name, (value, fits) in filters.items():
            rows = (await found(http, limit=1000, **{name: value}))["operations"]
            assert 0 < len(rows) < NUMBER, name
            assert all(map(fits, rows)), name
            if name != "range":
                assert len(rows) == sum(map(fits, everything)), name
        assert (await found(http, outcome="failed", error="program_error", worker=worker))["operations"]
        assert not (await found(http, outcome="ok", error="program_error"))["operations"]


async def test_pages_follow_each_other_by_time_and_by_duration(demo):
    async with client(demo) as http:
        for query, figure in (({}, "ended_at"), ({"sort": "duration"}, "duration_s")):
            rows, cursor = [], None
            while True:
                page = await found(http, limit=50, **query, **({"cursor": cursor} if cursor else {}))
                rows += [one[figure] for one in page["operations"]]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
            assert len(rows) == NUMBER
            assert rows == sorted(rows, reverse=True)
        assert (page["kept"], page["left_out"]) == (NUMBER, 0)
        shortest = (await found(http, sort="duration", ascending="true", limit=1))["operations"][0]
        assert shortest["duration_s"] == min(rows)


async def test_without_a_query_the_answer_has_the_traced_ones_as_before(demo):
    async with client(demo) as http:
        page = await found(http)
        assert len(page["recent"]) == 100
        assert page["slowest"]
        assert len(page["operations"]) == 100
        searched = await found(http, outcome="ok")
        assert searched["recent"] == searched["slowest"] == searched["errors"] == []


async def test_what_cannot_be_a_filter_is_refused_by_its_name(demo):
    async with client(demo) as http:
        for query in (
            {"outcome": "fine"}, {"version": "x"}, {"limit": 0}, {"sort": "name"}, {"cursor": "?"},
            {"at_least_s": "nan"}, {"text": "x" * 201}, {"colour": "red"}, {"from": "-1"},
        ):  # fmt: skip
            answer = await http.get(OPERATIONS, params=query)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), query


async def test_only_admins_and_oneself_are_told_whose_an_operation_was(demo, tokens):
    async with client(demo, tokens, "root") as http:
        rows = (await found(http, limit=1000))["operations"]
        assert {one["principal"] for one in rows} == {"ada", "eve"}
        assert {one["session"] for one in rows} == {None, *(f"user-{n}" for n in range(5))}
    async with client(demo, tokens, "eve") as http:
        rows = (await found(http, limit=1000))["operations"]
        assert len(rows) == NUMBER
        assert {one["principal"] for one in rows} == {None, "eve"}
        assert all(one["session"] is None for one in rows if one["principal"] is None)
        assert any(one["session_hash"] for one in rows if one["principal"] is None)


async def test_nobody_finds_out_names_of_others_by_searching_for_them(demo, tokens):
    async with client(demo, tokens, "eve") as http:
        refused = await http.get(OPERATIONS, params={"principal": "ada"})
        assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
        assert (await found(http, principal="eve"))["operations"]
        # user-0 has operations of both.
        mine = (await found(http, session="user-0", limit=1000))["operations"]
        assert {(one["session"], one["principal"]) for one in mine} == {("user-0", "eve")}


async def test_a_remote_pool_searches_as_one_in_the_cluster_does(demo):
    transport = httpx.ASGITransport(app=application(demo))
    async with RemotePool("http://localhost", transport=transport) as pool:
        page = await pool.operations(
            outcome="failed", since=time.time() - 100, sort="duration", ascending=True, limit=2
        )
        assert [one.exception for one in page.operations] == ["KeyError", "KeyError"]
        more = await pool.operations(
            outcome="failed",
            since=time.time() - 100,
            sort="duration",
            ascending=True,
            cursor=page.next_cursor,
        )
        assert page.operations[1].duration_s <= more.operations[0].duration_s
