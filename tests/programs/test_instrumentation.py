"""MLflow's autolog and OpenInference's instrumentor, where they are installed: in a process that ends with the test.

What they rest on, callbacks and `dspy.configure`, is tested without them in `tests/unit/test_program_settings.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import asyncio, importlib, json, sys
from dspool.config import PoolConfig
from dspool.messages import Deployment, ExecuteProgram, StreamProgram
from dspool.programs.sessions.host import SessionHost

async def main():
    host = SessionHost(PoolConfig(allowed_imports=("instrumented",)))
    host.deploy(Deployment("plain", 1, spec={"signature": "question -> answer"}))
    asked = {"question": "Which city?"}
    for name in ("Answers", "Later", "InParallel"):
        host.deploy(Deployment(name, 1, import_path=f"instrumented.{sys.argv[1]}:{name}"))
        for command in (ExecuteProgram(name, asked), StreamProgram(name, asked)):
            if host.plan(command, None) in ("async", "apart"):
                async def ignore(event): ...
                done = await host.run_async(command, None, ignore)
            else:
                done = await asyncio.to_thread(host.run_thread, command, None, lambda event: None)
            assert done.value["outputs"]["answer"] == "Rome", done
    host.run_inline(ExecuteProgram("plain", asked), None)

asyncio.run(main())
print("TRACES", json.dumps(importlib.import_module(f"instrumented.{sys.argv[1]}").traces()))
"""


def traces_of(module: str, tmp_path: Path) -> list[list[str]]:
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", RUN, module],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
            "TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
            "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TRACES ")]
    found: list[list[str]] = json.loads(line.removeprefix("TRACES "))
    return found


def test_mlflow_traces_what_its_program_does_and_no_other(tmp_path: Path):
    pytest.importorskip("mlflow.dspy")
    traces = traces_of("with_mlflow", tmp_path)
    roots = sorted(trace[0] for trace in traces)
    assert roots == [f"{name}.forward" for name in ("Answers",) * 2 + ("InParallel",) * 2 + ("Later",) * 2]
    for trace in traces:
        calls = 2 if trace[0] == "InParallel.forward" else 1
        assert trace.count("ChainOfThought.forward") == calls
        assert sum(name.startswith("DummyLM") for name in trace) == calls


def test_openinference_traces_each_operation_as_one(tmp_path: Path):
    pytest.importorskip("openinference.instrumentation.dspy")
    traces = traces_of("with_openinference", tmp_path)
    roots = [trace[0] for trace in traces]
    for name in ("Answers.forward", "InParallel.forward", "Later.aforward"):
        assert roots.count(name) == 2, "executed and streamed"
    for trace in traces:
        calls = 2 if trace[0] == "InParallel.forward" else 1
        assert sum("LM." in name for name in trace) == calls, trace
