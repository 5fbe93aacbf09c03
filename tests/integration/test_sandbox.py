"""Python in the real sandbox: Deno and Pyodide. The first start on a machine fetches Pyodide."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from dspool.config import PoolConfig
from dspool.errors import Cancelled, ProgramError, SandboxUnavailable
from dspool.messages import Change, ExecuteSandboxed, SetVariable
from dspool.programs.sessions.host import Session, SessionHost
from dspool.programs.sessions.sandbox import _RUNNER, deno

pytestmark = [
    pytest.mark.skipif(deno.find() is None, reason="Deno is not installed"),
]


@pytest.fixture(scope="module")
def host():
    try:
        deno.command(_RUNNER, memory_bytes=2**30, cpu_s=60)
    except SandboxUnavailable:
        pytest.skip("Deno cannot fetch Pyodide here")
    return SessionHost(PoolConfig(service={"execute_code": True}))


def run(host, code, session=None, stop=None):
    session = session or Session(host, "s")
    return host.run_thread(ExecuteSandboxed(code), session, stop=stop)


def test_code_gives_what_it_prints_and_its_last_value_and_stores_variables(host):
    session = Session(host, "s")
    host.run_inline(SetVariable("x", {"a": [1, None, "ü"]}), session)
    done = run(
        host, "done = 1\nprint('hi')\nvariables['y'] = variables['x']['a'][0] + 1\nvariables['x']", session
    )
    assert done.value == {"stdout": "hi\n", "result": {"a": [1, None, "ü"]}}
    assert done.changes == (Change("variable", "y", {"value": 2}),)
    assert session.variables["y"] == 2
    # Nothing but variables outlives an operation, not even a name.
    with pytest.raises(ProgramError) as error:
        run(host, "x = 1\nprint(variables['y'])\ndone", session)
    assert error.value.details == {"exception": "NameError", "line": 3}


@pytest.fixture
def listener():
    """A door beside the sandbox: whoever gets out can knock on it."""
    knocks = []

    class Door(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            knocks.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, knocks
    server.shutdown()


ESCAPES = {
    "a file": "open('{file}').read()",
    "a file through JavaScript": "import js\njs.Deno.readTextFileSync('{file}')",
    "the worker's variables": "import js\njs.Deno.readTextFileSync('/proc/self/environ')",
    "the parent's variables": "import js\njs.Deno.readTextFileSync('/proc/{parent}/environ')",
    "variables of ours": "import os\nassert 'canary' in str(os.environ)",
    "Deno's variables": "import js\njs.Deno.env.get('DSPOOL_CANARY')",
    "a file to write": "import js\njs.Deno.writeTextFileSync('{file}', 'x')",
    "the network": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}/').read()",
    "a socket": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)",
    "the network through JavaScript": "import js\nstr((await js.fetch('http://127.0.0.1:{port}/')).status)",
    "the network through Deno": "import js\nawait js.Deno.connect(js.Object.fromEntries([['port', {port}]]))",
    "a program": "import js\njs.Deno.Command.new('/bin/true').outputSync()",
    "a program through Python": "import subprocess\nsubprocess.run(['/bin/true'])",
    "the parent, by signal": "import js\njs.Deno.kill({parent}, 'SIGTERM')",
    "more rights": "import js\nassert (await js.Deno.permissions.request(js.Object.fromEntries("
    "[['name', 'net']]))).state == 'granted'",
    "a library that is loaded": "import js\njs.Deno.dlopen('libc.so.6', js.Object.new())",
}


TRY = """
import traceback
outcome = {}
for what, code in ATTEMPTS.items():
    try:
        value = eval(compile(ast.parse(code), what, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), {})
        if value is not None:
            await value
        outcome[what] = "escaped"
    except BaseException as held:
        outcome[what] = type(held).__name__
outcome
"""


def test_nothing_outside_the_sandbox_is_reached(host, tmp_path, listener, monkeypatch):
    port, knocks = listener
    monkeypatch.setenv("DSPOOL_CANARY", "canary")
    file = tmp_path / "secret.txt"
    file.write_text("canary")
    attempts = {what: code.format(file=file, port=port, parent=os.getpid()) for what, code in ESCAPES.items()}
    outcome = run(host, f"import ast\nATTEMPTS = {attempts!r}\n{TRY}").value["result"]
    assert set(outcome) == set(ESCAPES)
    assert "escaped" not in outcome.values(), outcome
    assert knocks == []
    assert file.read_text() == "canary"


HOGS = {
    "memory": "b = []\nwhile True:\n    b.append(bytearray(10_000_000))",
    "one endless word": "import js\n"
    "js.Deno.stdout.writeSync(js.Uint8Array.new(100_000_000).fill(120))\n"
    "js.Deno.stdout.writeSync(js.Uint8Array.new(100_000_000).fill(120))",
}


@pytest.mark.parametrize("what", HOGS)
def test_what_takes_too_much_ends_and_costs_the_worker_little(host, what):
    before = psutil.Process().memory_info().rss
    with pytest.raises(ProgramError):
        run(host, HOGS[what])
    assert psutil.Process().memory_info().rss - before < 300e6


def test_a_stopped_operation_ends_its_sandbox_at_once(host):
    stop = threading.Event()
    stopped = []

    def end_it():
        # The busy loop has begun: nothing before it takes that much processor time.
        wait_until(lambda: any(sum(one.cpu_times()[:2]) > 4.0 for one in sandboxes(os.getpid())))
        stopped.append(time.monotonic())
        stop.set()

    threading.Thread(target=end_it, daemon=True).start()
    with pytest.raises(Cancelled):
        run(host, "while True: pass", stop=stop)
    # Its own limit would have ended it much later.
    assert time.monotonic() - stopped[0] < 20.0
    assert sandboxes(os.getpid()) == []


def test_a_worker_that_is_killed_takes_its_sandbox_along():
    program = (
        "from dspool.config import PoolConfig\n"
        "from dspool.messages import ExecuteSandboxed\n"
        "from dspool.programs.sessions.host import Session, SessionHost\n"
        "host = SessionHost(PoolConfig(service={'execute_code': True}))\n"
        "host.run_thread(ExecuteSandboxed('import asyncio\\nawait asyncio.sleep(1000)'), Session(host, 's'))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until(lambda: sandboxes(worker.pid))
        started = sandboxes(worker.pid)
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []


def sandboxes(pid):
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "runner.js" in str(one.cmdline()):
                found.append(one)
    return found


def wait_until(condition):
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
