"""What callers send over HTTP, and who they prove to be, appears in nothing that the service writes down or shows."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from dspool.testing.lm_server import LMServer, Reply
from dspool_console.dashboard import DASHBOARD
from dspool_serve.api import ROUTES
from tests.serve.conftest import MODEL_KEY
from tests.serve.test_service import ENDS_S, Up, dspool

pytestmark = pytest.mark.serve

CANARY = "Zanzibar4471"
POOL = "/v1/pools/default"
SPEC = {"signature": "context, question -> answer", "lm": "test"}
INPUTS = {"context": f"{CANARY} is the capital of France.", "question": "What is the capital of France?"}
# What a service keeps on purpose: sessions with their variables, and the tokens as the operator wrote them down.
STORED = re.compile(r"sessions\.db(-wal|-shm)?$")


@pytest.fixture
def up(guarded: Up) -> Up:
    return guarded


@pytest.fixture
def lm(guarded_lm: LMServer) -> LMServer:
    return guarded_lm


def client(up: Up, token: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=up.url, headers=headers, timeout=ENDS_S, trust_env=False, verify=up.trust)


def use(up: Up, lm: LMServer) -> list[int]:
    """Send the canary wherever a caller can; the statuses of all answers."""
    statuses = []
    ask, asked = f"{POOL}/programs/ask", {"inputs": INPUTS, "timeout_s": 30}
    session = f"{POOL}/sessions/{CANARY}-session"
    with client(up, up.tokens["ada"]) as http:

        def send(method: str, path: str, content: Any = None, **more: Any) -> httpx.Response:
            answer = http.request(method, path, **({"json": content} if content else {}), **more)
            statuses.append(answer.status_code)
            return answer

        assert CANARY in send("POST", f"{ask}/execute", asked).text
        once = {"idempotency-key": f"key-{CANARY}"}
        assert send("POST", f"{ask}/execute", asked, headers=once).status_code == 200
        send("POST", f"{ask}/execute", {"inputs": {**INPUTS, "question": "Else?"}}, headers=once)
        send("POST", f"{ask}/batch", {"inputs": [INPUTS, {CANARY: CANARY}]})
        for path in (f"{ask}/stream", f"{session}/programs/{CANARY}/stream"):
            if path.startswith(session):
                assert send("PUT", f"{session}/programs/{CANARY}", {"spec": SPEC}).status_code == 200
            assert CANARY in send("POST", path, asked).text
        variable = f"{session}/variables/{CANARY}"
        assert send("PUT", variable, {"value": {CANARY: CANARY}}).status_code == 200
        assert CANARY in send("GET", variable).text
        assert CANARY in send("GET", f"{session}/history").text
        # Mistakes, refusals and failures: of the caller, the program and the model.
        send("POST", f"{ask}/execute", {"inputs": {**INPUTS, CANARY: CANARY}})
        send("POST", f"{ask}/execute", headers={"content-type": "text/plain"}, data={CANARY: CANARY})
        send("POST", f"{ask}/execute", asked, params={CANARY: CANARY})
        send("GET", f"/{CANARY}")
        send("GET", f"/v1/pools/{CANARY}/stats")
        # Names of pool programs are shown, also one that nobody deployed: they are no content.
        send("POST", f"{POOL}/programs/unknown/execute", asked)
        send("GET", f"{session}/programs/un{CANARY}")
        send("PUT", f"{session}/programs/bad", {"spec": {"signature": f"{CANARY} -> ???"}})
        send("POST", f"{POOL}/resize", {"size": CANARY})
        for program in ("failing", "failing_later"):
            send("POST", f"{POOL}/programs/{program}/execute", {"inputs": {"text": CANARY}})
        for reply in (
            Reply(text=f"{CANARY} is no field"),
            Reply(status=400, body=json.dumps({"error": {"message": CANARY, "type": CANARY}}).encode()),
            Reply(status=401, body=json.dumps({"error": {"message": f"bad key {MODEL_KEY}"}}).encode()),
            Reply(status=500, body=CANARY.encode()),
            Reply(drop=True),
        ):
            lm.script(*[reply] * 2)
            send("POST", f"{ask}/execute", asked)
            lm._script.clear()
        # Somebody hangs up while the model thinks.
        lm.latency_s = 20.0
        with pytest.raises(httpx.ReadTimeout):
            http.post(f"{ask}/execute", json=asked, timeout=0.5)
        lm.latency_s = 0.0
    # Tokens that are wrong, and right ones in the wrong place.
    for token in (f"dsp_{CANARY}", f"{up.tokens['ada']}{CANARY}", CANARY):
        with client(up, token) as http:
            statuses.append(http.get(f"{POOL}/stats").status_code)
    with client(up, "") as http:
        statuses.append(http.get(f"{POOL}/stats", params={"token": up.tokens["ada"]}).status_code)
        statuses.append(http.get(f"{POOL}/stats", headers={"cookie": f"token={CANARY}"}).status_code)
    return statuses


def look(http: httpx.Client, path: str) -> tuple[int, bytes]:
    """Status and body; of a stream what comes in its first second."""
    until, data = time.monotonic() + 1.0, b""
    with http.stream("GET", path, follow_redirects=True) as answer:
        endless = answer.headers["content-type"].startswith("text/event-stream")
        for chunk in answer.iter_bytes():
            data += chunk
            if endless and time.monotonic() > until:
                break
        return answer.status_code, data


QUERIES = {"/v1/pools/{pool}/programs/{program}/compare": "?old=1&new=1"}
"""What a route must be asked with."""


def shown(up: Up, operation: str) -> dict[str, bytes]:
    """What everything shows that can be looked at and is not a session's own content."""
    found: dict[str, bytes] = {}
    with client(up, up.tokens["root"]) as http:
        worker = http.get(f"{POOL}/workers").json()["workers"][0]["id"]
    known = {"{pool}": "default", "{program}": "ask", "{worker}": worker, "{operation}": operation}
    # Who administers a pool may see the names of sessions; they are hidden from all others.
    named = (f"{{pool}}/{part}" for part in ("pool_sessions", "running", "operations", "workers/{worker}"))
    with_names = {f"/v1/pools/{one}" for one in named}
    for who in ("root", "eve"):
        asked: dict[str, Any] = {}
        for route in (*ROUTES, *DASHBOARD):
            path = route.path
            if route.method != "GET" or "/sessions" in path or (who == "root" and path in with_names):
                continue
            for name, value in known.items():
                path = path.replace(name, value)
            if "/static/" in path:
                continue
            assert "{" not in path, f"say above what {path} is to be asked with"
            asked[path + QUERIES.get(route.path, "")] = route
        # Some at once, as each stream takes its second.
        with client(up, up.tokens[who]) as http, ThreadPoolExecutor(4) as threads:
            looks = threads.map(partial(look, http), asked)
            for (path, route), (status, data) in zip(asked.items(), looks, strict=True):
                found[f"{who} {path}"] = data
                admins = route.role == "admin" and who != "root"
                # What too little was measured for yet is refused too.
                fits = status == (403 if admins else 200) or (status == 422 and path.endswith("/whatif"))
                assert fits, (path, status, found[f"{who} {path}"][:200])
    for needed in ("overview", "live", "events", "operations", "workers", "pool_sessions"):
        assert b'"detail"' not in found[f"eve {POOL}/{needed}"][:100], needed
    with client(up, up.tokens["root"]) as http:
        for path in (
            f"{POOL}/metrics/history?duration_s=3600",
            f"{POOL}/events?limit=1000",
            "/v1/audit?limit=1000",
        ):
            status, found[path] = look(http, path)
            assert status == 200, (path, found[path])
    state = ["--state-dir", str(up.state_dir)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSPOOL_TOKEN", up.tokens["root"])
        for command in (["top", "--once"], ["top", "--json"], ["events", "--json"], ["status", "--json"]):
            said = dspool(*command, *state)
            assert said.returncode == 0, said.stderr
            found[f"dspool {' '.join(command)}"] = (said.stdout + said.stderr).encode()
    return found


def files_with(canaries: list[bytes], *directories: Path) -> tuple[dict[str, int], list[str]]:
    """Files below the directories that hold a canary, and all that were looked at."""
    found, looked = {}, []
    for directory in directories:
        for file in directory.rglob("*"):
            if file.is_symlink() or not file.is_file() or STORED.search(file.name):
                continue
            looked.append(str(file))
            data = file.read_bytes()
            count = sum(data.count(canary) for canary in canaries)
            if count:
                found[str(file)] = count
    return found, looked


def test_a_canary_is_in_nothing_that_the_service_writes_down_or_shows(up, lm):
    run = json.loads((up.state_dir / "run.json").read_text())
    temp = Path(run["temp_dir"])
    secrets = [CANARY, *(text[-20:] for text in up.tokens.values())]
    canaries = [secret.encode() for secret in secrets]
    statuses = use(up, lm)
    assert lm.requests > 10
    assert CANARY in json.dumps(list(lm.seen))
    assert {200, 400, 401, 403, 404, 422} <= set(statuses), statuses
    assert sum(status >= 500 for status in statuses) >= 4, statuses
    with client(up, up.tokens["ada"]) as http:
        operation = http.post(f"{POOL}/programs/ask/execute", json={"inputs": INPUTS}).json()["operation_id"]
    time.sleep(1.5)  # spans, deltas and events are on their way
    told = shown(up, operation)
    assert [name for name, data in told.items() if any(canary in data for canary in canaries)] == []
    with client(up, up.tokens["root"]) as http:
        assert http.post(f"{POOL}/pause").status_code == 200
    # A checkpoint is written every 30 s.
    until = time.monotonic() + ENDS_S
    checkpoint = up.state_dir / "metrics-default.checkpoint"
    while not checkpoint.exists():
        assert time.monotonic() < until
        time.sleep(0.2)
    found, looked = files_with(canaries, up.state_dir, temp)
    wanted = ("/traces/", "audit.jsonl", "stderr.log", ".checkpoint", "/logs/serve/", "haproxy", "worker-")
    assert [part for part in wanted if not any(part in name for name in looked)] == []
    assert found == {}
    spans = "".join(file.read_text() for file in (up.state_dir / "traces").glob("*.jsonl"))
    assert "POST /v1/pools/{pool}/programs/{program}/execute" in spans
    with client(up, up.tokens["root"]) as http:
        assert http.post(f"{POOL}/resume").status_code == 200
