"""A parent that forks real processes, and the service that `dspool up` runs, both without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
import types

import pytest

from dspool.cli import start
from dspool.runtime.forkserver import handover
from dspool.runtime.forkserver.places import Place
from dspool.runtime.forkserver.shim import ask
from tests.unit.service_double import FakeService


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path / "forkserver" / "key")
    place.make()
    return place


@pytest.fixture
def parent(place):
    """A parent in a process of its own that has loaded nothing but `sys.argv[2]` says; forks whatever asks."""
    running = []

    def start(
        before: str = "pass", idle_s: float = 30.0, variables=None, failed=None, watched=None
    ) -> subprocess.Popen:
        program = textwrap.dedent(
            f"""
            import sys
            from pathlib import Path
            from dspool.runtime.forkserver import child
            from dspool.runtime.forkserver.parent import Parent
            from dspool.runtime.forkserver.places import Place
            from dspool.runtime.forkserver.preload import Preloaded
            {before}
            loaded = Preloaded({variables or {}!r}, {failed or {}!r}, {watched or {}!r})
            parent = Parent(Place(Path(sys.argv[1])), raylet=None, idle_s={idle_s}, loaded=loaded)
            print("ready", flush=True)
            request = parent.serve()
            if request is None:
                parent.close()
            else:
                child.run(request.argv)
            """
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(place.directory)], stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def told(tmp_path, place):
    """Runs a program in a forked child and gives what it wrote down, as JSON."""

    def run(program: str, **changes):
        script, answer = tmp_path / "worker.py", tmp_path / "answer"
        script.write_text(f"import json, os, sys\nanswer = {program}\n" + SAY)
        request = handover.here([str(script), str(answer)])._replace(**changes)
        ask(place, request)
        until = time.monotonic() + 120
        while not answer.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        return json.loads(answer.read_text())

    return run


SAY = """
with open(sys.argv[1] + "~", "w") as file:
    json.dump(answer, file)
os.rename(sys.argv[1] + "~", sys.argv[1])
"""


@pytest.fixture
def service(monkeypatch):
    """The class that `dspool up` runs instead of the real service, with a log of its own."""
    kind = type("Service", (FakeService,), {"log": []})
    module = types.ModuleType("fake_service")
    module.Service = kind
    module.clear = lambda **what: kind.log.append(("cleared", what))
    monkeypatch.setitem(sys.modules, "fake_service", module)
    monkeypatch.setattr(start, "SERVICE", "fake_service")
    return kind
