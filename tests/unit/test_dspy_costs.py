"""The two corrections of DSPy's native engine, on DSPy as it is installed."""

from __future__ import annotations

import os
import subprocess
import sys

from dspy.clients import capabilities, costs, model_metadata

from dspool.models.dspy_costs import remembering
from dspool.testing.lm_server import LMServer


def test_a_model_is_looked_up_once_and_each_caller_has_its_own_answer():
    asked = []

    def look_up(provider, model, *, namespaces=None):
        asked.append((provider, model, namespaces))
        return {"price": 1}

    model_info = remembering(look_up)
    first = model_info("openai", "mine")
    first["price"] = 2
    assert model_info("openai", "mine") == {"price": 1}
    assert model_info("openai", "mine", namespaces=["a"]) == {"price": 1}
    assert asked == [("openai", "mine", None), ("openai", "mine", ("a",))]


def test_dspy_asks_the_one_that_remembers_and_hears_the_same():
    import dspool.models.lm  # noqa: F401 - changes it when imported

    for asker in (costs, capabilities):
        assert asker.model_info.__wrapped__ is model_metadata.model_info
    for model in ("gpt-4o-mini", "no-such-model"):
        assert costs.model_info("openai", model) == model_metadata.model_info("openai", model)


ALL_AT_ONCE = """
import asyncio
from dspool.commands import Deployment, ExecuteProgram
from dspool.config import PoolConfig
from dspool.sessions.session import SessionHost
import sys

async def main():
    host = SessionHost(PoolConfig(
        slots_per_worker=130, lm_profiles={"m": {"model": "openai/m", "endpoint": sys.argv[1], "engine": "lm15"}}))
    host.deploy(Deployment("p", 1, spec={"signature": "question -> answer"}))
    await asyncio.gather(*(host.run_async(ExecuteProgram("p", {"question": "?"}), None) for _ in range(130)))

asyncio.run(main())
"""


def test_as_many_calls_run_at_once_as_there_are_slots():
    # A process of its own: the bound is one for all LMs of a process, and only ever raised.
    with LMServer(latency_s=3.0) as server:
        process = subprocess.Popen([sys.executable, "-c", ALL_AT_ONCE, server.url], env=os.environ)
        most = 0
        while process.poll() is None:
            most = max(most, server.running)
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
    assert process.returncode == 0
    assert most == 130
