"""With `capture_content`, prompts and answers are shown to admins and to whose operation it was, and to nobody else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import calling_programs
import httpx
import pytest

from dspool.config import PoolConfig
from dspool.messages import CreateProgram, Deployment, ExecuteProgram, StreamProgram
from dspool.programs.sessions.host import SessionHost
from dspool.telemetry import trace_names as names
from dspool.telemetry.pseudonyms import principal_hash
from dspool.testing.host import LoopbackPool
from dspool.worker.worker import Worker
from dspool_console.dashboard import DASHBOARD
from dspool_serve.api import ROUTES
from tests.dashboard_demo import application, tokens_for
from tests.simulated_pool import SimulatedPool

API = "/v1/pools/default"
SPEC = {"signature": "context, question -> answer"}
SECRETS = {"eve": "Zanzibar", "ada": "Timbuktu", None: "Samarkand"}
WHO = {"eve": "caller", "ada": "caller", "rita": "reader", "root": "admin"}


def asked(who: str | None) -> dict[str, str]:
    return {"context": f"{SECRETS[who]} is the capital.", "question": "What is the capital?"}


class Pool(LoopbackPool):
    """A loopback pool whose worker runs DSPy."""

    async def start_worker(self, worker_id: str | None = None) -> Worker:
        self.host = SessionHost(self.config)
        self.host.deploy(Deployment("ask", 1, spec=SPEC))
        agent = {**SPEC, "module": "ReAct", "settings": {"tools": ["sample_programs:lookup"]}}
        self.host.deploy(Deployment("agent", 1, spec=agent))
        worker = Worker("w0", 0, self.config, self.secret, self.store, session_host=self.host)
        self.workers["w0"] = worker
        self._members["w0"] = await worker.describe()
        self.publish()
        return worker


@pytest.fixture
async def state_dir(tmp_path: Path) -> Path:
    """Spans of operations of eve, of ada, and of nobody. Ada put hers into the trace of eve's."""
    config = PoolConfig(
        name="default",
        state_dir=tmp_path,
        allowed_imports=("sample_programs",),
        allowed_callables={"tools": ["sample_programs:lookup"]},
        telemetry={"sampling": 1.0, "max_traces_per_s": None, "capture_content": True},
    )
    async with Pool(config) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(ExecuteProgram("ask", asked("eve")), principal="eve", operation_id="eve-1")
        await client.run(ExecuteProgram("agent", asked("eve")), principal="eve", operation_id="eve-2")
        created = CreateProgram("mine", spec=SPEC)
        await client.run(created, session="eve/s", principal="eve")
        mine = ExecuteProgram("mine", asked("eve"))
        await client.run(mine, session="eve/s", principal="eve", operation_id="eve-3")
        streamed = client.stream(StreamProgram("ask", asked("eve")), principal="eve", operation_id="eve-4")
        async for _ in streamed:
            pass
        client.tracing.flush()
        worker._tracing.flush()
        (trace,) = re.findall(r'"trace_id": "(\w+)".*"name": "operation.*eve-1"', text_of(tmp_path))
        parent = f"00-{trace}-{1:016x}-01"
        await client.run(
            ExecuteProgram("ask", asked("ada")), principal="ada", operation_id="ada-1", traceparent=parent
        )
        await client.run(ExecuteProgram("ask", asked(None)), operation_id="nobody-1")
        client.tracing.flush()
        worker._tracing.flush()
    return tmp_path


def text_of(state_dir: Path) -> str:
    return "".join(file.read_text() for file in (state_dir / "traces").glob("*.jsonl"))


OWNERS = {"eve-1": "eve", "eve-2": "eve", "eve-3": "eve", "eve-4": "eve", "ada-1": "ada", "nobody-1": None}


def served(state_dir: Path, *, captured: bool = True, tokens: Any = None) -> httpx.AsyncClient:
    pool = SimulatedPool(workers=2, history_s=60, state_dir=state_dir)
    telemetry = pool.config.telemetry.model_copy(update={"capture_content": captured})
    pool.config = pool.config.model_copy(update={"telemetry": telemetry})
    app = application(pool, tokens=tokens)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def log_in(http: httpx.AsyncClient, text: str) -> None:
    answer = await http.post("/dashboard/login", json={"token": text}, headers={"x-dspool-csrf": "login"})
    assert answer.status_code == 200, answer.text


async def seen(http: httpx.AsyncClient, operation: str, **headers: str) -> set[str | None]:
    """Whose secrets are on the page of an operation."""
    answer = await http.get(f"{API}/operations/{operation}", headers=headers)
    assert answer.status_code == 200, answer.text
    assert any(span["name"].startswith("chat ") for span in answer.json()["spans"])
    return {who for who, secret in SECRETS.items() if secret in answer.text}


async def test_an_admin_sees_all_content_and_others_that_of_their_own_operations(state_dir: Path):
    files = text_of(state_dir)
    assert all(secret in files for secret in SECRETS.values())
    assert all(attribute in files for attribute in names.CONTENT)
    texts, tokens = tokens_for(**WHO)
    async with served(state_dir, tokens=tokens) as http:
        for who, text in texts.items():
            bearer = {"authorization": f"Bearer {text}"}
            await log_in(http, text)
            for operation, owner in OWNERS.items():
                # Ada's operation is in the trace of eve's first one.
                whole = {"eve", "ada"} if operation in ("eve-1", "ada-1") else {owner}
                expected = whole if who == "root" else whole & {who}
                assert await seen(http, operation) == expected, (who, operation)
                assert await seen(http, operation, **bearer) == expected, (who, operation)


async def test_without_tokens_everybody_on_the_machine_sees_all_content(state_dir: Path):
    async with served(state_dir) as http:
        assert await seen(http, "eve-1") == {"eve", "ada"}
        assert await seen(http, "nobody-1") == {None}


async def test_while_content_is_not_captured_what_files_still_have_is_shown_to_nobody(state_dir: Path):
    texts, tokens = tokens_for(**WHO)
    async with served(state_dir, captured=False, tokens=tokens) as http:
        for text in texts.values():
            await log_in(http, text)
            assert [await seen(http, operation) for operation in OWNERS] == [set()] * len(OWNERS)


async def test_nothing_else_that_a_reader_can_get_holds_content_or_tells_whose_it_is(state_dir: Path):
    hashes = [principal_hash(who, "default") for who in ("eve", "ada")]
    assert all(one in text_of(state_dir) for one in hashes)
    texts, tokens = tokens_for(**WHO)
    async with served(state_dir, tokens=tokens) as http:
        await log_in(http, texts["rita"])
        got = 0
        for route in (*DASHBOARD, *ROUTES):
            if route.method != "GET" or route.path.endswith(("/live", "/stream")):
                continue
            path = route.path.replace("{pool}", "default").replace("{operation}", "eve-1")
            answer = await http.get(
                re.sub(r"\{\w+\}", "x", path), headers={"authorization": f"Bearer {texts['rita']}"}
            )
            got += answer.status_code == 200
            for secret in (*SECRETS.values(), *hashes):
                assert secret not in answer.text, path
        assert got > 15


QUOTING = """
from dspool.messages import Deployment, ExecuteProgram
from dspool.config import PoolConfig
from dspool.telemetry import logs
from dspool.programs.sessions.host import SessionHost

config = PoolConfig(allowed_imports=("calling_programs",))
logs.configure(config)
host = SessionHost(config)
host.deploy(Deployment("p", 1, import_path="calling_programs:RefusingInParallel"))
print(host.run_thread(ExecuteProgram("p", {"question": "Zanzibar?"}), None).value["outputs"]["answer"])
"""


def test_what_fails_in_a_thread_of_dspy_is_quoted_in_no_log():
    # A process of its own: DSPy's log is set up once a process.
    path = os.pathsep.join([str(Path(calling_programs.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", QUOTING], capture_output=True, text=True, timeout=120, env=environ, check=True
    )
    assert done.stdout.strip() == "done"
    assert "Zanzibar" not in done.stderr
