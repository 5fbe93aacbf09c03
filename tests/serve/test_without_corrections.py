"""The service serves with `DSPOOL_CORRECTIONS=none`: with DSPy, uvicorn, Serve and HAProxy as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from test_http_full import ASK, POOL, body, connection, events
from test_service import SPEC, Up, dspool

from dspool.corrections import TABLE, VARIABLE
from dspool.testing.lm_server import LMServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.serve, pytest.mark.long]


@pytest.fixture(scope="module")
def lm() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, lm: LMServer) -> Iterator[Up]:
    directory = tmp_path_factory.mktemp("plain")
    file = directory / "pool.yaml"
    config = {
        "pool_size": 1,
        "slots_per_worker": 1,
        "lm_profiles": {"test": {"model": "openai/test", "endpoint": lm.url, "engine": "lm15"}},
        "programs": {"ask": {"spec": {**SPEC, "lm": "test"}}},
    }
    file.write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "none")
        service = Up(directory, "--config", str(file))
        try:
            yield service
        finally:
            service.end()


def test_no_correction_is_made(up):
    haproxies = [process for process in up.descendants if process.name() == "haproxy"]
    # Serve's own: not started by our script, with its pages on all interfaces.
    assert haproxies
    assert not any(os.path.exists(os.path.join(path, "haproxy.pids")) for path in _directories(haproxies))
    checks = {check["check"]: check for check in json.loads(dspool("doctor", "--json").stdout)["checks"]}
    for correction in TABLE:
        found = checks[f"correction {correction.name}"]
        assert found["level"] == "warn"
        assert found["found"] == f"off: {VARIABLE} leaves it out"


def _directories(processes) -> set[str]:
    return {
        os.path.dirname(part)
        for process in processes
        for part in process.cmdline()
        if part.endswith("haproxy.cfg")
    }


def test_an_operation_is_answered(up):
    with up.client() as http:
        answer = http.post(f"{ASK}/execute", json=body("Who?"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"]["answer"]


def test_a_stream_ends_with_its_result(up):
    with up.client() as http, http.stream("POST", f"{ASK}/stream", json=body("How are you?")) as answer:
        assert answer.status_code == 200
        names = [name for name, _ in events(answer.iter_lines())]
    assert "token" in names
    assert names[-1] == "final"


@pytest.mark.parametrize("how", ["execute", "stream"])
def test_a_client_that_goes_away_frees_its_slot(up, lm, how):
    before, lm.latency_s = lm.requests, 25.0
    leaver = connection(up, f"{ASK}/{how}", body("Are you there?"))
    wait_until(lambda: lm.requests > before)
    lm.latency_s = 0.0
    leaver.close()
    # The pool has one slot: this is answered when it is free again.
    with up.client() as http:
        answer = http.post(f"{ASK}/execute", json=body("Next?"), timeout=15.0)
    assert answer.status_code == 200, answer.text


def test_what_is_wrong_is_a_problem(up):
    with up.client() as http:
        for path, sent, status in (
            (f"{POOL}/programs/nobody/execute", b'{"inputs": {}}', 404),
            (f"{ASK}/execute", b"no json", 400),
        ):
            answer = http.post(path, content=sent)
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == status
