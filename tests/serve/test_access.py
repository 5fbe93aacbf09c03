"""The service with tokens, TLS and two ingress processes, as people run it: real Ray, Serve, HAProxy and workers."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from dspool.errors import DeadlineExceeded, NotAllowed, Unauthenticated, UnknownSession
from dspool.remote import BlockingRemotePool
from tests.serve.test_service import ENDS_S, QUESTION, dspool

pytestmark = pytest.mark.serve


@pytest.fixture
def up(guarded):
    return guarded


def pool_of(up, who=None):
    return BlockingRemotePool(up.url, token=up.tokens.get(who), ca_file=up.cert)


def test_callers_get_answers_and_their_own_sessions_and_nobody_elses(up):
    assert up.url.startswith("https://")
    with pool_of(up, "ada") as ada, pool_of(up, "bob") as bob, pool_of(up) as nobody:
        assert "Stanford" in ada.execute("qa", **QUESTION).answer
        with pytest.raises(Unauthenticated):
            nobody.execute("qa", **QUESTION)
        ada.session("s").set_variable("canary", "ada's")
        # Both ingress processes take part: whichever answers, the session is the same.
        for _ in range(8):
            assert ada.session("s").get_variable("canary")["value"] == "ada's"
            for id in ("s", "ada/s"):
                with pytest.raises(UnknownSession):
                    bob.session(id).get_variable("canary")
        streamed = list(ada.session("s").stream("qa", **QUESTION))
        assert "Stanford" in streamed[-1].answer


def test_a_deadline_in_the_header_is_a_problem_through_haproxy(up):
    headers = {"authorization": f"Bearer {up.tokens['ada']}", "x-request-timeout-seconds": "0.000001"}
    with httpx.Client(base_url=up.url, verify=up.trust, headers=headers, trust_env=False) as http:
        answer = http.post("/v1/pools/default/programs/qa/execute", json={"inputs": QUESTION})
    assert (answer.status_code, answer.json()["code"]) == (504, DeadlineExceeded.code)
    assert answer.headers["strict-transport-security"]


def test_what_admins_do_and_others_try_is_in_the_audit_log(up):
    with pool_of(up, "bob") as bob, pool_of(up, "root") as root:
        with pytest.raises(NotAllowed):
            bob.pause()
        root.resume()
    log = up.state_dir / "audit.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["event"], one["principal"]) for one in records][-2:] == [("denied", "bob"), ("done", "root")]
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_command_line_presents_its_token(up, monkeypatch):
    state = ["--state-dir", str(up.state_dir), "--json"]
    monkeypatch.setenv("DSPOOL_TOKEN", up.tokens["root"])
    assert json.loads(dspool("status", *state).stdout)["status"]["actual"] == 2
    listed = json.loads(dspool("sessions", *state).stdout)["sessions"]
    assert "ada/s" in [one["id"] for one in listed]
    monkeypatch.delenv("DSPOOL_TOKEN")
    assert json.loads(dspool("status", *state).stdout)["status"] is None
    assert os.environ.get("DSPOOL_TOKEN") is None


def test_whoever_asks_twice_to_stop_does_not_wait_for_what_runs(up, guarded_lm):
    """Ends `guarded`: runs last, by the place of this file."""
    guarded_lm.latency_s = 600.0
    before = guarded_lm.requests
    with ThreadPoolExecutor(1) as threads, pool_of(up, "ada") as ada:
        running = threads.submit(ada.execute, "ask", **QUESTION)
        while guarded_lm.requests == before:
            time.sleep(0.01)
        up.process.send_signal(signal.SIGINT)
        time.sleep(0.3)  # two signals at one moment would arrive as one
        up.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        up.process.wait(ENDS_S)
        # So long before the end of what runs that a slow machine shows no other picture.
        assert time.monotonic() - began < 20.0
        assert running.exception() is not None
    assert up.left() == []
    assert not (up.state_dir / "run.json").exists()
