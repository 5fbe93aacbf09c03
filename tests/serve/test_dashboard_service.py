"""The dashboard's data from a running service: real Ray, Serve, HAProxy and workers."""

from __future__ import annotations

import json
import threading
import time

import httpx
import pytest

from tests.serve.test_service import QUESTION
from tests.waiting import ENDS_S, wait_until

pytestmark = pytest.mark.serve

PAGE = "/dashboard"
POOL = "/v1/pools/default"
QA = "/v1/pools/default/programs/qa/execute"


@pytest.fixture
def up(guarded):
    return guarded


@pytest.fixture
def page(up):
    with httpx.Client(base_url=up.url, timeout=ENDS_S, verify=up.trust) as http:
        answer = http.post(
            f"{PAGE}/login", json={"token": up.tokens["root"]}, headers={"x-dspool-csrf": "login"}
        )
        assert answer.status_code == 200, answer.text
        http.headers["x-dspool-csrf"] = answer.json()["csrf"]
        yield http


def run_some(up, number=30):
    headers = {"authorization": f"Bearer {up.tokens['root']}"}
    with httpx.Client(base_url=up.url, headers=headers, timeout=ENDS_S, verify=up.trust) as http:
        for _ in range(number):
            assert http.post(QA, json={"inputs": QUESTION}).status_code == 200


def test_a_session_counts_in_every_ingress_process(page):
    for _ in range(12):
        # A new connection each time, so that both take part.
        page.headers["connection"] = "close"
        assert page.get(f"{PAGE}/me").json()["principal"] == "root"


def test_every_question_is_answered_by_a_real_pool(up, page):
    run_some(up)
    worker = page.get(f"{POOL}/workers").json()["workers"][0]["id"]
    for path in (
        "overview", "metrics/table?range=60", "metrics/table?slot=0&range=60", "markers", f"running?workers={worker}",
        f"workers/{worker}", f"workers/{worker}/log", "pool_sessions", "operations", "decisions", "warmup", "programs",
        "rollouts", "events", "alerts", "report?range=60", "metrics/table?format=csv",
    ):  # fmt: skip
        answer = page.get(f"{POOL}/{path}")
        assert answer.status_code == 200, (path, answer.text)
    assert page.get("/dashboard").headers["content-security-policy"]
    assert page.get("/v1/audit").json()["file"]


def test_what_ran_is_in_the_figures_the_traces_and_the_log(up, page):
    run_some(up)
    columns = wait_until(
        lambda: (
            (found := page.get(f"{POOL}/metrics/table?range=60").json()["columns"])
            and sum(found["operations"]) >= 30
            and found
        )
    )
    assert any(columns["p99_s"])
    recent = wait_until(lambda: page.get(f"{POOL}/operations").json()["recent"])
    tree = page.get(f"{POOL}/operations/{recent[0]['id']}").json()
    assert tree["spans"][0]["depth"] == 0
    assert {"queue"} < {span["name"] for span in tree["spans"]}
    worker = recent[0]["worker"]
    detail = page.get(f"{POOL}/workers/{worker}").json()
    assert [run["error"] for run in detail["warmup"]] == [""] * len(detail["warmup"])
    assert detail["warmup"]
    assert detail["memory"]["uss_mb"] <= detail["memory"]["pss_mb"] <= detail["memory"]["rss_mb"]
    assert detail["checked_at"] is None or detail["checked_at"] > time.time() - 60
    log = page.get(f"{POOL}/workers/{worker}/log").json()
    assert log["filtered"]
    assert "Stanford" not in json.dumps([tree, detail, log])


def test_what_is_resized_is_told_live_within_two_seconds(up, page):
    heard = {}
    ready, done = threading.Event(), threading.Event()

    def listen():
        with page.stream("GET", f"{POOL}/live?topics=overview,events,workers", timeout=ENDS_S) as stream:
            name = ""
            for line in stream.iter_lines():
                if done.is_set():
                    return
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                    ready.set()
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    if name == "event" and data["event"] == "pool.resize":
                        heard.setdefault("event", time.monotonic())
                    if name == "tick" and data.get("pool", {}).get("desired") == size:
                        heard.setdefault("tick", time.monotonic())

    listener = threading.Thread(target=listen, daemon=True)
    size = 0
    listener.start()
    assert ready.wait(ENDS_S)
    taken = []
    # The promise is about the service; a machine that is busy with something else may miss it, not every time.
    for size in (3, 2, 3, 2, 3, 2):
        heard.clear()
        began = time.monotonic()
        assert page.post(f"{POOL}/resize", json={"size": size}).json() == {"desired": size}
        wait_until(lambda: {"event", "tick"} <= heard.keys())
        taken.append((heard["event"] - began, heard["tick"] - began))
        if taken[-1][0] < 2.5 and taken[-1][1] < 3.5:
            break
    else:
        raise AssertionError(f"always late: {taken}")
    done.set()
    page.post(f"{POOL}/resize", json={"size": 2})
    listener.join(ENDS_S)


def test_actions_of_the_page_do_what_they_say_and_are_written_down(up, page):
    assert page.post(f"{POOL}/pause").json() == {"paused": True}
    wait_until(lambda: page.get(f"{POOL}/overview").json()["pool"]["paused"])
    assert page.post(f"{POOL}/resume").json() == {"paused": False}
    assert page.post(f"{POOL}/warm", timeout=60).status_code == 200
    wait_until(lambda: page.get(f"{POOL}/warmup").json()["progress"][-1:] and True)
    worker = page.get(f"{POOL}/workers").json()["workers"][0]["id"]
    assert page.post(f"{POOL}/workers/{worker}/restart", json={"wait_s": 2}).json()["worker"] == worker
    wait_until(lambda: worker not in [one["id"] for one in page.get(f"{POOL}/workers").json()["workers"]])
    done = [one["path"].rpartition("/")[2] for one in page.get("/v1/audit").json()["records"]]
    assert {"pause", "resume", "warm", "restart"} <= set(done)
    refused = page.post(f"{POOL}/pause", headers={"x-dspool-csrf": "no"})
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf")
