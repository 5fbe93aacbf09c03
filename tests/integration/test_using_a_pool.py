"""A pool as its users meet it: operations, sessions, streams, the other client, refusals."""

from __future__ import annotations

import asyncio
import time

import pytest
from harness import PATIENCE_S, QUESTION, SecondClient, actors_of, pids, until

from dspool import BlockingPool, Pool, PoolConfig
from dspool.errors import (
    ConfigError,
    Conflict,
    InvalidRequest,
    NotAllowed,
    UnknownPool,
    UnknownProgram,
    UnknownSession,
)
from dspool.messages import Ping, Result, StreamProgram

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.both_starts
async def test_a_pool_program_answers_and_says_who_answered(pool):
    result = await pool.execute("qa", **QUESTION)
    assert result.answer == "Paris"
    assert result.outputs == {"answer": "Paris"}
    assert result.offline is True
    assert result.program_version == 1
    assert result.worker in pids(pool)
    assert result.wait_s >= 0
    assert result.run_s > 0


async def test_work_is_spread_over_all_workers(pool):
    results = await asyncio.gather(*(pool.execute("qa", **QUESTION) for _ in range(200)))
    assert {result.answer for result in results} == {"Paris"}
    assert {result.worker for result in results} == set(pids(pool))
    assert len({result.operation_id for result in results}) == 200


@pytest.mark.both_starts
async def test_a_session_keeps_programs_and_variables_until_it_ends(pool):
    session = pool.session("alice")
    created = await session.create_program("reader", "context, question -> answer")
    assert created["created"] is True
    assert (await session.execute("reader", **QUESTION)).answer == "Paris"
    await session.set_variable("topic", {"country": "France"})
    assert (await session.get_variable("topic"))["value"] == {"country": "France"}
    assert (await session.variables())["variables"] == ["topic"]
    assert "reader" in [program["program"] for program in (await session.programs())["programs"]]
    assert [done["command"] for done in (await session.history())["operations"]][:2] == [
        "create_program",
        "execute_program",
    ]
    await session.delete_program("reader")
    with pytest.raises(UnknownProgram):
        await session.execute("reader", **QUESTION)
    await session.end()
    with pytest.raises(UnknownSession):
        await session.variables()


@pytest.mark.both_starts
async def test_sessions_do_not_see_each_other(pool):
    one, other = pool.session("one"), pool.session("other")
    await asyncio.gather(one.set_variable("x", 1), other.set_variable("y", 2))
    assert (await one.variables())["variables"] == ["x"]
    assert (await other.variables())["variables"] == ["y"]


async def test_a_session_belongs_to_the_principal_that_made_it(pool):
    await pool.session("private", principal="ann").set_variable("x", 1)
    with pytest.raises(UnknownSession):
        await pool.session("private", principal="bob").get_variable("x")
    assert (await pool.session("private", principal="ann").get_variable("x"))["value"] == 1


async def test_two_handles_of_one_session_are_the_same_session(pool):
    await pool.session("twice").set_variable("x", 5)
    assert (await pool.session("twice").get_variable("x"))["value"] == 5


async def test_sessions_are_listed_page_by_page(pool):
    for name in ("page-a", "page-b", "page-c"):
        await pool.session(name).set_variable("x", 1)
    found, after = [], None
    while True:
        page, after = await pool.sessions(limit=2, after=after)
        assert len(page) <= 2
        found += page
        if after is None:
            break
    listed = {info.id: info for info in found}
    assert {"page-a", "page-b", "page-c"} <= set(listed)
    assert listed["page-a"].owner in pids(pool)


@pytest.mark.both_starts
async def test_operations_of_a_session_run_in_order_and_one_at_a_time(pool, log):
    session = pool.session("ordered")
    await session.create_program("p", import_path="noted:Noted")
    labels = [f"n{number}" for number in range(20)]
    await asyncio.gather(*(session.execute("p", **log.inputs(label, 0.005)) for label in labels))
    expected = [(what, label) for label in labels for what in ("begin", "end")]
    assert [(entry.what, entry.label) for entry in log.entries()] == expected


async def test_a_stream_gives_events_and_then_the_result(pool):
    *events, result = [event async for event in pool.stream(StreamProgram("qa", QUESTION))]
    assert isinstance(result, Result)
    assert result.answer == "Paris"
    assert events
    session = pool.session("streamer")
    await session.create_program("reader", "context, question -> answer")
    *events, result = [event async for event in session.stream("reader", **QUESTION)]
    assert result.answer == "Paris"


@pytest.mark.both_starts
async def test_leaving_a_stream_early_frees_its_slot(pool):
    stream = pool.stream(StreamProgram("qa", QUESTION))
    await anext(stream)
    await stream.aclose()
    await until(lambda: pool.client.running == 0)


async def test_another_process_joins_by_name(pool, cluster, log):
    with SecondClient(cluster, pool=pool.name, inputs=[log.inputs("from afar")]) as client:
        assert set((await client.said())["connected"]) == set(pids(pool).values())
        assert (await client.said())["labels"] == ["from afar"]


async def test_an_unknown_pool_is_refused_with_the_names_that_exist(pool):
    with pytest.raises(UnknownPool, match=pool.name):
        await Pool.connect("nowhere")


async def test_a_second_pool_of_the_same_name_is_refused_and_the_first_goes_on(pool):
    with pytest.raises(Conflict, match="already"):
        async with Pool.start(pool.client.config):
            pass
    assert (await pool.execute("qa", **QUESTION)).answer == "Paris"


async def test_the_blocking_twin_does_the_same(pool):
    def script():
        with BlockingPool.connect(pool.name) as blocking:
            assert blocking.execute("qa", **QUESTION).answer == "Paris"
            assert [result.answer for result in blocking.map("qa", [QUESTION] * 5)] == ["Paris"] * 5
            session = blocking.session("script")
            session.set_variable("x", 1)
            assert session.get_variable("x")["value"] == 1
            return blocking.run(Ping()).value

    await asyncio.to_thread(script)


async def test_code_is_not_run_unless_the_configuration_allows_it(pool):
    with pytest.raises(NotAllowed, match="allow_execute_code"):
        await pool.session("coder").execute_code("1 + 1")


async def test_an_import_path_outside_the_allowed_ones_is_refused(pool):
    with pytest.raises((NotAllowed, InvalidRequest), match="allowed_imports"):
        await pool.session("importer").create_program("p", import_path="subprocess:Popen")


async def test_wrong_inputs_are_named_and_the_pool_goes_on(pool):
    with pytest.raises(InvalidRequest, match="question"):
        await pool.execute("qa", context="Paris.")
    with pytest.raises(InvalidRequest, match="colour"):
        await pool.execute("qa", **QUESTION, colour="red")
    with pytest.raises(UnknownProgram, match="qa"):
        await pool.execute("nothing", question="?")
    assert (await pool.execute("qa", **QUESTION)).answer == "Paris"


async def test_a_bad_configuration_is_refused_before_anything_starts(cluster):
    with pytest.raises(ConfigError, match="pool_size"):
        async with Pool.start(PoolConfig.default(), name="bad", pool_size=99):
            pass
    with pytest.raises(ConfigError, match="no_such_key"):
        async with Pool.start(name="bad", no_such_key=1):
            pass
    assert actors_of("bad") == []


async def test_a_program_file_that_cannot_be_read_is_named_and_leaves_nothing_behind(start_pool, tmp_path):
    programs = {"p": {"spec": {"signature": "a -> b"}, "state_file": str(tmp_path / "gone.json")}}
    with pytest.raises(ConfigError, match=r"gone\.json"):
        await start_pool(name="unreadable", programs=programs)
    assert actors_of("unreadable") == []


async def test_the_parts_say_who_they_are(pool):
    for actor, said in (
        (pool.supervisor, f"dspool supervisor {pool.name}"),
        (pool.metrics, f"dspool metrics {pool.name}"),
        (pool.store, "dspool session store"),
    ):
        assert await actor.__ray_call__.remote(repr) == said
    for worker in pool.workers().values():
        assert f"dspool worker {pool.name}[" in await worker.__ray_call__.remote(repr)


async def test_metrics_count_what_clients_did(pool):
    before = (await pool.metrics_snapshot()).counters.by_outcome["ok"]
    await asyncio.gather(*(pool.execute("qa", **QUESTION) for _ in range(25)))
    deadline = time.monotonic() + PATIENCE_S
    while (snapshot := await pool.metrics_snapshot()).counters.by_outcome["ok"] < before + 25 or (
        snapshot.size != 2
    ):
        assert time.monotonic() < deadline, snapshot
        await asyncio.sleep(0.05)
    assert snapshot.desired == 2
    assert snapshot.programs["qa"].counters.by_outcome["ok"] >= 25
    assert (await pool.metrics_history(60)).points
    with pytest.raises(InvalidRequest, match="duration_s"):
        await pool.metrics_history(0)
