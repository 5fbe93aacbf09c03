"""Bad and hostile input: a typed problem with a status that fits, and never a 500."""

from __future__ import annotations

import pytest
from http_doubles import FakePool, assert_problem, client_of

from dspool import errors
from dspool.errors import InternalError, PoolError, QueueFull
from dspool_serve.http.problems import TABLE, problem

QA = "/v1/pools/default/programs/qa/execute"


def every_error(kind: type[PoolError] = PoolError) -> list[type[PoolError]]:
    subclasses = [sub for sub in kind.__subclasses__() if sub.__module__.startswith("dspool")]
    return [kind, *(found for sub in subclasses for found in every_error(sub))]


def test_every_error_of_the_tree_has_its_status():
    assert {kind.code for kind in every_error()} == set(TABLE)


def test_a_class_that_ray_makes_of_an_error_does_not_take_its_code():
    type("RayTaskError(UnknownSession)", (errors.UnknownSession,), {"__init__": lambda self, cause: None})
    sent = errors.UnknownSession("no session 'x'", session="x").to_wire()
    assert type(errors.from_wire(sent)) is errors.UnknownSession


def test_an_error_says_type_title_status_detail_and_details():
    answer = problem(errors.UnknownProgram("no program 'x'", program="x"))
    assert answer.status == 404
    assert answer.content_type == b"application/problem+json"
    assert b'"details":{"program":"x"}' in answer.body


@pytest.mark.parametrize(("after", "header"), [(0.2, b"1"), (3.0, b"3"), (None, b"1"), (float("nan"), None)])
def test_a_refusal_says_when_to_come_back(after, header):
    answer = problem(QueueFull("full", retry_after_s=after) if after is not None else QueueFull("full"))
    assert dict(answer.headers).get(b"retry-after") == header


def test_a_model_error_with_a_pause_says_so_and_others_do_not():
    limited = problem(errors.ModelRateLimited("slow down", status=429, retry_after_s=7.1))
    assert (limited.status, dict(limited.headers)[b"retry-after"]) == (503, b"8")
    assert problem(errors.ProgramError("boom")).headers == ()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/pools/other/programs/qa/execute", "unknown_pool"),
        ("/v1/pools/default/programs/other/execute", "unknown_program"),
        ("/v1/pools/default/programs/qa/executes", "not_found"),
        ("/v1/pools/default/programs/qa/execute/", "not_found"),
        ("/v1/pools//programs/qa/execute", "not_found"),
        ("//v1/pools/default/programs/qa/execute", "not_found"),
        ("/v2", "not_found"),
        ("/%2e%2e/v1/pools", "not_found"),
    ],
)
async def test_what_is_not_there_is_a_404_problem(path, code):
    async with client_of(FakePool()) as http:
        assert_problem(await http.post(path, json={"inputs": {}}), 404, code)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
async def test_a_wrong_method_is_a_405_that_names_the_right_one(method):
    async with client_of(FakePool()) as http:
        answer = await http.request(method, QA)
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("segment", ["%ff", "%00", "a" * 201, "%0d%0ax", "%e2%80%ae"])
async def test_a_name_that_cannot_be_a_name_is_a_400(segment):
    async with client_of(FakePool()) as http:
        assert_problem(await http.get(f"/v1/pools/{segment}"), 400, "malformed_request")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"inputs": {"q": "\xff\xfe"}}',
        b'{"inputs": {"q": "\\ud800"}}',
        b'{"inputs": {"q": NaN}}',
        b'{"inputs": {"q": 99999999999999999999999999}}',
        b'{"inputs": {"q": ' + b"[" * 65 + b"]" * 65 + b"}}",
        b'{"inputs": {"q": ' + b"[" * 9_000 + b"]" * 9_000 + b"}}",
        b'{"inputs": ' + b'{"a":' * 9_000,
        b"\x00" * 100,
        '{"inputs": {}}'.encode("utf-16"),
        b'{"inputs": {}} {"inputs": {}}',
    ],
)
async def test_what_is_not_readable_json_is_a_400(body):
    pool = FakePool()
    async with client_of(pool) as http:
        assert_problem(await http.post(QA, content=body), 400, "malformed_request")
    assert pool.asked == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "inputs",
        {"inputs": []},
        {"inputs": None},
        {"input": {}},
        {"inputs": {}, "extra": 1},
        {"inputs": {}, "timeout_s": 0},
        {"inputs": {}, "timeout_s": -1},
        {"inputs": {}, "timeout_s": "3"},
        {"inputs": {}, "timeout_s": True},
    ],
)
async def test_json_of_another_shape_is_a_422(body):
    pool = FakePool()
    async with client_of(pool) as http:
        assert_problem(await http.post(QA, json=body), 422, "invalid_request")
    assert pool.asked == []


@pytest.mark.parametrize(
    "body", [b"null", b'{"inputs": {"q": 1e999}}', b'{"inputs": {"q": ' + b"9" * 5000 + b"}}"]
)
async def test_json_that_says_nothing_usable_is_a_422(body):
    async with client_of(FakePool()) as http:
        assert_problem(await http.post(QA, content=body), 422, "invalid_request")


async def test_brackets_inside_strings_and_wide_json_are_no_offence():
    inputs = {"q": "[" * 500, "wide": [{"a": 1}] * 200, "id": 2**63, "digits": "1" * 40}
    async with client_of(FakePool()) as http:
        answer = await http.post(QA, json={"inputs": inputs})
    assert answer.json()["outputs"] == inputs


async def test_of_a_repeated_key_the_last_counts():
    async with client_of(FakePool()) as http:
        answer = await http.post(QA, content=b'{"inputs": {"q": 1, "q": 2}, "inputs": {"q": 3}}')
    assert answer.json()["outputs"] == {"q": 3}


async def test_an_announced_oversize_body_is_refused_without_reading_it():
    read = 0

    async def chunks():
        nonlocal read
        while True:
            read += 1
            yield b"x" * 100

    async with client_of(FakePool(), max_body_bytes=1000) as http:
        answer = await http.post(QA, content=chunks(), headers={"content-length": "1001"})
        assert assert_problem(answer, 413, "payload_too_large")["details"] == {"limit": 1000}
        assert read == 0
        # Without a length the body is read no further than the limit.
        endless = await http.post(QA, content=chunks())
        assert_problem(endless, 413, "payload_too_large")
        assert 10 <= read <= 12


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30])
async def test_a_length_that_is_no_length_is_refused(length):
    async with client_of(FakePool()) as http:
        answer = await http.post(QA, content=b"{}", headers={"content-length": length})
        assert_problem(answer, 413, "payload_too_large")


async def test_a_body_in_pieces_is_put_together():
    async def pieces():
        for piece in (b'{"inp', b'uts": {"q"', b": 1}}"):
            yield piece

    async with client_of(FakePool()) as http:
        assert (await http.post(QA, content=pieces())).json()["outputs"] == {"q": 1}


async def test_an_error_of_the_pool_keeps_its_code_and_an_unknown_one_tells_nothing():
    pool = FakePool()
    async with client_of(pool) as http:
        pool.fail_with = QueueFull("1000 wait already", retry_after_s=2.0)
        refused = await http.post(QA, json={"inputs": {}})
        assert_problem(refused, 429, "queue_full")
        assert refused.headers["retry-after"] == "2"
        pool.fail_with = ValueError("secret inside")
        assert "secret" not in str(
            assert_problem(await http.post(QA, json={"inputs": {}}), 500, "internal_error")
        )
        pool.fail_with = InternalError("a defect")
        assert_problem(await http.post(QA, json={"inputs": {}}), 500, "internal_error")


@pytest.mark.parametrize("failure", [ValueError("secret inside"), InternalError("a defect")])
async def test_the_log_names_the_route_that_failed_and_not_the_path_that_was_asked(failure, caplog):
    pool = FakePool()
    pool.fail_with = failure
    async with client_of(pool) as http:
        await http.post("/v1/pools/default/sessions/canary-7/programs/p/execute", json={"inputs": {}})
    assert "POST /v1/pools/{pool}/sessions/{session}/programs/{program}/execute failed" in caplog.text
    assert "canary-7" not in caplog.text


async def test_a_page_of_another_site_cannot_run_operations():
    pool = FakePool()
    async with client_of(pool) as http:
        answer = await http.post(QA, json={"inputs": {}}, headers={"sec-fetch-site": "cross-site"})
    assert_problem(answer, 403, "not_allowed")
    assert pool.asked == []
