"""Tools of an MCP server, where its package is installed; `test_nested_programs` has async tools without it."""

from __future__ import annotations

import pytest
from tutor import KEY, server

from dspool.config import PoolConfig
from dspool.messages import Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.sessions.host import SessionHost

ASKED = {"user_request": "Book me a flight from SFO to JFK."}


async def test_an_agent_uses_the_tools_of_an_mcp_server(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("mcp")
    events: list[StreamEvent] = []

    async def emit(event: StreamEvent) -> None:
        events.append(event)

    with server() as model:
        monkeypatch.setenv("MODEL_URL", model.url)
        monkeypatch.setenv("MODEL_KEY", KEY)
        host = SessionHost(PoolConfig(allowed_imports=("with_mcp",)))
        host.deploy(Deployment("agent", 1, import_path="with_mcp.agent:Agent"))
        for command in (ExecuteProgram("agent", ASKED), StreamProgram("agent", ASKED)):
            done = await host.run_async(command, None, emit)
            outputs = done.value["outputs"]
            assert outputs["process_result"] == "Booked, abc123"
            assert "DA123 flies from SFO to JFK" in str(outputs["trajectory"])
            assert done.usage["openai/gpt-4o-mini"]["total_tokens"] > 0
    assert "calling book_flight" in [event.value for event in events if event.kind == "status"]
