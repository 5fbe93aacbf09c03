"""The service as people run it: `dspool up` as a process of its own, real Ray, Serve, HAProxy, workers and SQLite."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from tests.waiting import ENDS_S

pytestmark = pytest.mark.serve

START_S = 300
"""What a busy machine may take to start a service."""
QA = "/v1/pools/default/programs/qa/execute"
QUESTION = {
    "context": "Ray was started at Berkeley. DSPy was started at Stanford.",
    "question": "Where was DSPy started?",
}
SPEC = {"signature": "question -> answer", "module": "Predict"}
KEPT = "/v1/pools/default/sessions/kept/programs/p"
# The operator's settings are for clusters that are joined.
FOREIGN_TOKEN = "0" * 64
JOIN = """
import asyncio, sys, ray
from dspool import Pool

async def main():
    ray.init(address=sys.argv[1], namespace="dspool", log_to_driver=False)
    pool = await Pool.connect("default")
    result = await pool.execute("qa", context="Paris is the capital of France.", question="What is the capital?")
    print(result.answer)
    await pool.close()

asyncio.run(main())
"""


class Up:
    """One `dspool up --json`, and every process that it started."""

    def __init__(
        self, state_dir: Path, *arguments: str, python: str = sys.executable, **environ: str
    ) -> None:
        self.state_dir = state_dir
        self.log = state_dir / "stderr.log"
        state_dir.mkdir(exist_ok=True)
        environ = {**os.environ, "DSPOOL_INIT_TIMEOUT_S": str(START_S), **environ}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [python, "-m", "dspool.cli", "up", "--json", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--state-dir", str(state_dir), *arguments],
            stdout=subprocess.PIPE,
            stderr=self.log.open("wb"),
            env=environ,
            text=True,
            # Its own group: a test may send what a terminal's Ctrl-C sends, to all of it.
            start_new_session=True,
        )
        self.facts = self._ready()
        self.url = self.facts["url"]
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)

    def _ready(self) -> dict:
        assert self.process.stdout is not None
        # It ends by itself when it cannot start in time.
        lines = []
        for line in self.process.stdout:
            said = json.loads(line)
            if said["event"] == "ready":
                return said
            lines.append(line)
        self.process.kill()
        said_last = "".join(lines[-10:]) + self.log.read_text()[-2000:]
        raise AssertionError(f"the service did not start: {said_last}")

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=ENDS_S, headers={"content-type": "application/json"})

    def workers(self) -> list[dict]:
        with self.client() as http:
            return http.get("/v1/pools/default").json()["workers"]

    def left(self, timeout_s: float = ENDS_S) -> list[psutil.Process]:
        """What still runs of all it ever started, once those that just end have had their time."""
        started = [process for process in self.descendants if process.pid != self.process.pid]
        _, alive = psutil.wait_procs(started, timeout=timeout_s)
        return alive

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(ENDS_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for process in self.left(5):
            process.kill()


@pytest.fixture
def up(plain):
    return plain


def dspool(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dspool.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_question_to_the_default_pool_is_answered_from_its_context(up):
    with up.client() as http:
        answer = http.post(QA, json={"inputs": QUESTION, "timeout_s": 30}, headers={"x-request-id": "r-7"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert "Stanford" in body["outputs"]["answer"]
    assert body["offline"] is True
    assert body["program_version"] == 1
    assert body["worker"] in {worker["id"] for worker in up.workers()}
    assert set(body) == {
        "outputs",
        "operation_id",
        "worker",
        "program_version",
        "timings",
        "usage",
        "offline",
    }
    assert body["timings"]["run_s"] >= 0
    assert answer.headers.get_list("x-request-id") == ["r-7"]


def test_a_session_program_lives_from_put_to_delete(up):
    base = "/v1/pools/default/sessions/ada"
    program = f"{base}/programs/answerer"
    with up.client() as http:
        created = http.put(program, json={"spec": SPEC})
        assert created.status_code == 200, created.text
        again = http.put(program, json=SPEC)
        assert again.status_code == 200, again.text
        assert http.get(program).json()["program"] == "answerer"
        answer = http.post(f"{program}/execute", json={"inputs": {"question": "Who?"}})
        assert answer.status_code == 200, answer.text
        assert "answer" in answer.json()["outputs"]
        assert http.get(base).json()["programs"] == ["answerer"]
        assert "ada" in [one["id"] for one in http.get("/v1/pools/default/sessions").json()["sessions"]]
        assert http.delete(program).status_code == 204
        assert http.get(program).json()["code"] == "unknown_program"
        assert http.delete(base).status_code == 204
        assert http.get(base).json()["code"] == "unknown_session"


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("POST", "/v1/pools/none/programs/qa/execute", {"json": {"inputs": {}}}, 404, "unknown_pool"),
        ("POST", "/v1/pools/default/programs/none/execute", {"json": {"inputs": {}}}, 404, "unknown_program"),
        ("GET", "/v1/pools/default/sessions/none/programs/p", {}, 404, "unknown_session"),
        ("GET", "/v1/pools/default/sessions/none", {}, 404, "unknown_session"),
        ("DELETE", "/v1/pools/default/sessions/none", {}, 404, "unknown_session"),
        ("POST", QA, {"json": {"inputs": {}}}, 422, "invalid_request"),
        ("POST", QA, {"json": {"inputs": {**QUESTION, "extra": 1}}}, 422, "invalid_request"),
        ("POST", QA, {"json": {"inputs": {**QUESTION, "question": 5}}}, 422, "invalid_request"),
        ("POST", QA, {"content": b"{"}, 400, "malformed_request"),
        ("POST", QA, {"content": b"x" * 1_100_000}, 413, "payload_too_large"),
        ("PUT", "/v1/pools/default/sessions/s/programs/p", {"json": {"spec": {}}}, 422, "invalid_request"),
        ("PATCH", QA, {}, 405, "method_not_allowed"),
        ("GET", "/nowhere", {}, 404, "not_found"),
    ],
)
def test_a_bad_request_is_a_problem_and_the_pool_goes_on(up, method, path, sent, status, code):
    with up.client() as http:
        answer = http.request(method, path, **sent)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert http.post(QA, json={"inputs": QUESTION}).status_code == 200


def test_an_endless_chunked_body_is_refused_at_the_limit(up):
    def chunks():
        for _ in range(100):
            yield b"x" * 65536

    with up.client() as http:
        try:
            answer = http.post(QA, content=chunks())
        except httpx.WriteError:
            return  # the server closed the connection on us: refused as well
        assert answer.status_code == 413


def test_nothing_of_the_service_listens_beyond_loopback_for_http(up):
    with up.client() as http:
        assert http.get("/readyz").status_code == 200
    port = int(up.url.rsplit(":", 1)[1])
    reachable = []
    for process in [psutil.Process(up.process.pid), *psutil.Process(up.process.pid).children(recursive=True)]:
        if process.name() == "haproxy" or "HttpIngress" in " ".join(process.cmdline()):
            reachable += [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert port in [address.port for address in reachable]
    http_ports = [address for address in reachable if address.ip not in ("127.0.0.1", "::1")]
    for address in http_ports:
        # Ray's own (authenticated) control sockets may listen elsewhere; none of them may speak HTTP to strangers.
        with socket.create_connection(("127.0.0.1", address.port), timeout=2) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            connection.settimeout(2)
            try:
                assert not connection.recv(100).startswith(b"HTTP/1.1 200")
            except (TimeoutError, ConnectionError):
                continue


def test_status_and_sessions_find_the_service(up):
    state = ["--state-dir", str(up.state_dir)]
    shown = json.loads(dspool("status", *state, "--json").stdout)
    assert shown["running"] is True
    assert shown["status"]["actual"] == 2
    assert dspool("sessions", *state).returncode == 0
    second = dspool("up", "--port", "0", *state)
    assert second.returncode == 2
    assert "already runs" in second.stderr


def test_a_worker_killed_under_load_loses_no_answer_and_is_replaced(up):
    victim = up.workers()[0]
    with up.client() as http:
        for number in range(4):
            program = f"/v1/pools/default/sessions/kept-{number}/programs/p"
            assert http.put(program, json={"spec": SPEC}).status_code == 200

    async def load() -> Counter:
        statuses: Counter = Counter()
        async with httpx.AsyncClient(base_url=up.url, timeout=ENDS_S) as http:

            async def one(number: int) -> None:
                path = (
                    QA if number % 2 else f"/v1/pools/default/sessions/kept-{number % 4}/programs/p/execute"
                )
                inputs = QUESTION if number % 2 else {"question": "Who?"}
                answer = await http.post(path, json={"inputs": inputs})
                statuses[(answer.status_code, answer.json().get("code"))] += 1

            async def caller(caller_number: int) -> None:
                for number in range(20):
                    await one(caller_number * 20 + number)

            callers = [asyncio.ensure_future(caller(number)) for number in range(16)]
            await asyncio.sleep(0.1)
            os.kill(victim["pid"], signal.SIGKILL)
            await asyncio.wait_for(asyncio.gather(*callers), 60)
        return statuses

    statuses = asyncio.run(load())
    assert sum(statuses.values()) == 320
    # What a session's worker was running when it died may not be repeated; that is the one error allowed.
    assert set(statuses) <= {(200, None), (502, "worker_lost")}, statuses
    assert statuses[(200, None)] >= 300
    with up.client() as http:
        for number in range(4):
            program = f"/v1/pools/default/sessions/kept-{number}/programs/p"
            assert http.get(program).status_code == 200
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            workers = up.workers()
            if len(workers) == 2 and all(one["state"] == "ready" for one in workers):
                break
            time.sleep(0.1)
    assert victim["pid"] not in {one["pid"] for one in workers}
    assert [one["state"] for one in workers] == ["ready", "ready"]


def test_a_service_keeps_its_token_to_itself_and_leaves_the_home_empty(up):
    shown = json.loads(dspool("status", "--state-dir", str(up.state_dir), "--json").stdout)
    token = Path(shown["ray_token_path"])
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert token.read_text() != FOREIGN_TOKEN
    # As docs/how-to/deploy.md says it to a second process.
    environ = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    command = [sys.executable, "-c", JOIN, shown["ray_address"]]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "Paris\n", done.stderr[-2000:]
    assert list(up.home.iterdir()) == []


def test_every_listener_of_a_service_is_known_and_no_other_machine_reaches_one(up):
    shown = json.loads(dspool("doctor", "--state-dir", str(up.state_dir), "--json").stdout)
    listeners = shown["listeners"]
    assert [one for one in listeners if one["reach"] == "network" or one["what"] == "unknown"] == []
    assert [one["level"] for one in shown["checks"] if one["check"] == "listener"] == ["ok"]
    what = [one["what"] for one in listeners]
    assert what.count("the service") == 1
    assert what.count("operations for this worker") == len(up.workers())
    assert {"Ray's control plane", "Ray's node", "HTTP from HAProxy", "the fork server"} <= set(what)


def test_ctrl_c_ends_the_service_without_waiting_for_its_viewers_and_leaves_nothing_behind(up):
    """Ends `up`: runs last but for what needs what it left."""
    shown = json.loads(dspool("status", "--state-dir", str(up.state_dir), "--json").stdout)
    with up.client() as http:
        assert http.put(KEPT, json={"spec": SPEC}).status_code == 200
        # What a page of the dashboard keeps open.
        with http.stream("GET", "/v1/pools/default/live?topics=overview") as viewer:
            assert next(viewer.iter_lines())
            # What a terminal's Ctrl-C sends, to the whole group.
            os.killpg(up.process.pid, signal.SIGINT)
            assert up.process.wait(ENDS_S) == 0
    # Neither of the worker that a test above has killed nor of those that end now does Ray say what we say better.
    assert "raylet" not in up.log.read_text()
    assert up.left() == []
    assert not (up.state_dir / "run.json").exists()
    assert not Path(shown["ray_token_path"]).parent.exists()
    assert list(up.home.iterdir()) == []


def test_a_session_outlives_the_service_and_one_that_is_killed_hard_takes_its_processes_along(up):
    assert up.process.poll() is not None, "the test before has ended it"
    # It needs no home.
    second = Up(up.state_dir, "--pool-size", "1", HOME="/proc", RAY_AUTH_TOKEN=FOREIGN_TOKEN)
    try:
        with second.client() as http:
            assert http.get(KEPT).status_code == 200
            assert http.post(QA, json={"inputs": QUESTION, "timeout_s": 30}).status_code == 200
        shown = json.loads(dspool("status", "--state-dir", str(up.state_dir), "--json").stdout)
        token = Path(shown["ray_token_path"])
        assert (mode(token), mode(token.parent)) == (0o600, 0o700)

        started = psutil.Process(second.process.pid).children(recursive=True)
        assert "haproxy" in {one.name() for one in started}
        # Ray's agents try for a minute to tell a GCS that is gone, and end then; see docs/how-to/deploy.md.
        agents = [one for one in started if one.name().startswith(("ray::DashboardA", "ray::RuntimeEnv"))]
        second.process.kill()
        second.process.wait(ENDS_S)
        _, alive = psutil.wait_procs([one for one in started if one not in agents], timeout=ENDS_S)
        assert [one.name() for one in alive] == []
        for one in agents:
            one.kill()
        # Its directory and its run file are cleared by whoever comes next.
        assert dspool("down", "--state-dir", str(up.state_dir)).returncode == 0
        assert not (up.state_dir / "run.json").exists()
        assert not token.parent.exists()
    finally:
        second.end()
