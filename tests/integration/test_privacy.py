"""What users send and get appears in nothing that the pool writes down about itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import ray
from harness import full, kill, pids, until

from dspool.errors import ModelError, PoolError
from dspool.messages import ExecuteProgram, StreamProgram
from dspool.telemetry import events as telemetry
from dspool.telemetry.event_log import EventLog
from dspool.telemetry.exposition import expose
from dspool.telemetry.observation import checkpoint_file
from dspool.telemetry.pseudonyms import session_hash
from dspool.testing.lm_server import LMServer, Reply
from dspool_console import Console
from dspool_serve.access.security import Security
from dspool_serve.api.application import Application
from tests.unit.http_doubles import FixedPools

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]

CANARY = "Zanzibar4471"
SPEC = {"signature": "context, question -> answer", "lm": "test"}
ASKED = {"context": f"{CANARY} is the capital of France.", "question": "What is the capital of France?"}
PRINCIPAL, SESSION = f"tenant-{CANARY}", f"ada-{CANARY}"


async def use(pool: Any, server: LMServer, key: str) -> int:
    """Send the canary wherever a user can; how many operations failed."""
    failed = 0

    async def run(work: Any) -> None:
        nonlocal failed
        try:
            await work
        except PoolError:
            failed += 1

    assert CANARY in (await pool.execute("ask", **ASKED)).answer
    session = pool.session(SESSION, principal=PRINCIPAL)
    await session.set_variable("secret", {"value": CANARY})
    assert (await session.get_variable("secret"))["value"] == {"value": CANARY}
    await session.create_program("mine", {**SPEC, "module": "ChainOfThought"})
    await session.execute("mine", **ASKED)
    await session.history()
    async for _ in session.stream("mine", **ASKED):
        pass
    async for _ in pool.stream(StreamProgram("ask", ASKED)):
        pass
    # Answers that cannot be read, refusals that quote, connections that break.
    server.script(Reply(text=f"{CANARY} is no field"), Reply(text=CANARY))
    await run(pool.execute("ask", **ASKED))
    for reply in (
        Reply(status=400, body=json.dumps({"error": {"message": CANARY, "type": CANARY}}).encode()),
        Reply(status=401, body=json.dumps({"error": {"message": f"bad key {key}"}}).encode()),
        Reply(status=500, body=CANARY.encode()),
        Reply(body=f"<html>{CANARY}</html>".encode()),
        Reply(drop=True),
    ):
        server.script(reply)
        await run(pool.execute("ask", **ASKED))
    await run(pool.execute("failing", text=CANARY))
    await run(pool.execute("failing_later", text=CANARY))
    await run(pool.execute("ask", context=CANARY, wrong=CANARY))
    await run(pool.execute("ask", context={"not": CANARY}, question=5))
    await run(pool.execute("ask", **ASKED, timeout_s=0.001))
    await run(session.create_program("bad", {"signature": f"{CANARY} -> ???"}))
    await run(session.execute_code(f"print({CANARY!r})"))
    # Somebody cancels, and a worker dies with the canary in its memory.
    server.script(*[Reply(latency_s=30.0)] * 2)
    running = [asyncio.ensure_future(run(pool.execute("ask", **ASKED))) for _ in range(2)]
    await until(lambda: server.running == 2)
    running[0].cancel()
    worker, pid = next(iter(pids(pool).items()))
    kill(pid)
    await until(lambda: worker not in pids(pool))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return failed


async def frames(pool: Any) -> bytes:
    """What Ray's dashboard shows of the pool."""
    pools, security = FixedPools(pool), Security()
    through = httpx.ASGITransport(Application(pools, None, security, Console(pools, security)))
    async with httpx.AsyncClient(transport=through, base_url="http://127.0.0.1") as http:
        answer = await http.get("/grafana/d/dspool/", params={"from": "now-1h"})
    assert answer.status_code == 200
    assert pool.name in answer.text
    return answer.content


def files_with(canaries: tuple[str, ...], *directories: Path) -> dict[str, int]:
    """Files below the directories that hold a canary; and how many were looked at, as ""."""
    found, looked = {}, 0
    for directory in directories:
        for file in directory.rglob("*"):
            if not file.is_file() or file.is_symlink():
                continue
            with contextlib.suppress(OSError):
                data = file.read_bytes()
                looked += 1
                count = sum(data.count(canary.encode()) for canary in canaries)
                if count:
                    found[str(file)] = count
    return {**found, "": looked}


@pytest.mark.parametrize(
    ("worker_start", "capture"),
    [("fork", False), ("exec", False), ("fork", True)],
    ids=["fork-off", "exec-off", "captured"],
    indirect=["worker_start"],
)
async def test_a_canary_is_in_nothing_that_the_pool_writes_down(start_pool, notes, tmp_path, caplog, capture):
    caplog.set_level("DEBUG")
    key = notes.name + "-key"
    here = telemetry.attach(EventLog("", 10_000))
    try:
        with LMServer(api_key=key) as server:
            pool = await start_pool(
                pool_size=2,
                programs={
                    "ask": {"spec": SPEC, "idempotent": True},
                    "failing": {"import_path": "telling:Failing", "idempotent": True},
                    "failing_later": {"import_path": "telling:FailingLater", "idempotent": True},
                },
                allowed_imports=("telling",),
                lm_profiles={
                    "test": {"model": "openai/test", "endpoint": server.url, "api_key_env": "NOTED_KEY"}
                },
                warmup={"steps": [{"step": "custom_code", "import_path": "telling:with_key"}]},
                telemetry={
                    "sampling": 1.0,
                    "max_traces_per_s": None,
                    "log_level": "debug",
                    "capture_content": capture,
                },
                metrics_flush_interval_s=0.1,
            )
            await full(pool)
            failed = await use(pool, server, key)
            assert failed >= 9
            assert server.requests > 10
            with contextlib.suppress(ModelError):
                await pool.run(ExecuteProgram("ask", ASKED))
            await asyncio.sleep(1.5)
            events = await pool.events(0, 1000)
            snapshot, history = await pool.metrics_snapshot(), await pool.metrics_history(3600)
            exposed = await pool.snapshot()
            await pool.metrics.checkpoint.remote()
            status = await pool.status()
            shown = await frames(pool)
        told = {
            "events": msgspec.json.encode([events, here.after()]),
            "metrics": msgspec.json.encode([snapshot, history]),
            "exposition": expose({pool.name: exposed}),
            "status": msgspec.json.encode(status),
            "checkpoint": checkpoint_file(pool.client.config).read_bytes(),
            "dashboard frames": shown,
            "our own log": caplog.text.encode(),
        }
        await pool.close()
    finally:
        telemetry.detach(here)
    spans = list((tmp_path / "traces").glob("*.jsonl"))
    assert len(spans) >= 2
    ray_logs = Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[attr-defined]
    found = files_with((CANARY, key), tmp_path / "traces", ray_logs)
    assert found.pop("") > 10
    if capture:
        # The proof that this test would see it: captured, it is there.
        assert any(CANARY in span.read_text() for span in spans)
        assert not any(key in span.read_text() for span in spans)
        return
    assert found == {}
    assert [name for name, data in told.items() if CANARY.encode() in data or key.encode() in data] == []
    # What it does say is about the canary's operations all the same.
    assert session_hash(SESSION, pool.name).encode() in told["events"]
    assert any(session_hash(SESSION, pool.name) in span.read_text() for span in spans)
