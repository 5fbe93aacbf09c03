"""`Idempotency-Key`: once, and the same answer for everyone who sends it."""

from __future__ import annotations

import asyncio

import pytest
from http_doubles import FakePool, assert_problem, client_of, until

from dspool.errors import ProgramError, QueueFull, StoreFailed, WorkerLost
from dspool.messages import StreamEvent

QA = "/v1/pools/default/programs/qa/execute"
KEY = {"idempotency-key": "k-1"}
BODY = {"inputs": {"a": 1, "b": 2}}


async def test_the_same_key_and_body_is_done_once_and_answered_the_same():
    pool = FakePool()
    async with client_of(pool) as http:
        first = await http.post(QA, json=BODY, headers=KEY)
        # The same value, written in another way.
        again = await http.post(QA, content=b'{ "inputs": {"b":2,  "a":1} }', headers=KEY)
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert pool.runs == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (QA, {"inputs": {"a": 2, "b": 2}}),
        ("/v1/pools/default/programs/other/execute", BODY),
        (QA + "?x=1", BODY),
    ],
)
async def test_the_same_key_for_another_request_is_refused(path, body):
    async with client_of(FakePool()) as http:
        await http.post(QA, json=BODY, headers=KEY)
        answer = await http.post(path, json=body, headers=KEY)
    assert_problem(answer, 422, "idempotency_key_reused")


async def test_a_request_whose_first_is_still_running_is_a_conflict():
    pool = FakePool()
    pool.hold = asyncio.Event()
    async with client_of(pool) as http:
        first = asyncio.create_task(http.post(QA, json=BODY, headers=KEY))
        await until(lambda: bool(pool.runs))
        assert_problem(await http.post(QA, json=BODY, headers=KEY), 409, "idempotency_in_progress")
        pool.hold.set()
        assert (await first).status_code == 200
        assert (await http.post(QA, json=BODY, headers=KEY)).content == (await first).content
    assert pool.runs == 1


async def test_what_is_done_under_a_key_ends_although_its_client_went_away():
    pool = FakePool()
    pool.hold = asyncio.Event()
    async with client_of(pool) as http:
        first = asyncio.create_task(http.post(QA, json=BODY, headers=KEY))
        await until(lambda: bool(pool.runs))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        pool.hold.set()
        await until(lambda: all(answer is not None for *_, answer in pool.keys.values()))
        answer = await http.post(QA, json=BODY, headers=KEY)
    assert answer.json()["outputs"] == BODY["inputs"]
    assert pool.runs == 1


@pytest.mark.parametrize("error", [ProgramError("it broke"), WorkerLost("died")])
async def test_an_error_of_the_work_is_an_answer_like_any_other(error):
    pool = FakePool()
    pool.fail_with = error
    async with client_of(pool) as http:
        first = await http.post(QA, json=BODY, headers=KEY)
        pool.fail_with = None
        again = await http.post(QA, json=BODY, headers=KEY)
    assert first.status_code == again.status_code >= 500
    assert first.json() == again.json()


async def test_what_was_refused_before_any_work_may_be_tried_again_with_its_key():
    pool = FakePool()
    pool.fail_with = QueueFull("no room")
    async with client_of(pool) as http:
        assert (await http.post(QA, json=BODY, headers=KEY)).status_code == 429
        pool.fail_with = None
        assert (await http.post(QA, json=BODY, headers=KEY)).status_code == 200


async def test_a_defect_under_a_key_is_answered_and_kept():
    pool = FakePool()
    pool.fail_with = ZeroDivisionError()
    async with client_of(pool) as http:
        first = await http.post(QA, json=BODY, headers=KEY)
        assert_problem(first, 500, "internal_error")
        assert (await http.post(QA, json=BODY, headers=KEY)).json() == first.json()


async def test_an_answer_that_cannot_be_kept_is_given_all_the_same():
    pool = FakePool()
    pool.fail_settling = StoreFailed("away")
    async with client_of(pool) as http:
        assert (await http.post(QA, json=BODY, headers=KEY)).status_code == 200


async def test_keys_of_one_pool_mean_nothing_in_another():
    one, two = FakePool("one"), FakePool("two")
    async with client_of(one, two) as http:
        for name in ("one", "two"):
            answer = await http.post(f"/v1/pools/{name}/programs/qa/execute", json=BODY, headers=KEY)
            assert answer.status_code == 200
    assert one.runs == two.runs == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
async def test_a_key_that_is_none_is_refused_before_any_work(key):
    pool = FakePool()
    async with client_of(pool) as http:
        assert_problem(
            await http.post(QA, json=BODY, headers={"idempotency-key": key}), 422, "invalid_request"
        )
    assert pool.runs == 0


async def test_a_stream_under_a_key_is_sent_again_all_at_once():
    pool = FakePool()
    pool.told = [StreamEvent("token", "answer", "Ber")]
    path = "/v1/pools/default/programs/qa/stream"
    async with client_of(pool) as http:
        first = await http.post(path, json=BODY, headers=KEY)
        again = await http.post(path, json=BODY, headers=KEY)
    assert first.text == again.text
    assert again.headers["content-type"] == "text/event-stream"
    assert again.headers["idempotency-replayed"] == "true"
    assert len(pool.asked) == 1


async def test_a_refused_stream_under_a_key_may_be_tried_again():
    pool = FakePool()
    pool.fail_with = QueueFull("no room")
    path = "/v1/pools/default/programs/qa/stream"
    async with client_of(pool) as http:
        assert (await http.post(path, json=BODY, headers=KEY)).status_code == 429
        pool.fail_with = None
        assert "event: final" in (await http.post(path, json=BODY, headers=KEY)).text


async def test_without_a_key_the_store_is_not_asked():
    pool = FakePool()
    async with client_of(pool) as http:
        await http.post(QA, json=BODY)
        await http.post(QA, json=BODY)
    assert pool.runs == 2
    assert pool.keys == {}
