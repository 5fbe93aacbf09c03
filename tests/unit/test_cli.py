"""The command line without Ray: flags, refusals, exit codes, the run file, and stopping by signal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import types
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from typer.testing import CliRunner

from dspool.cli import app, start
from dspool.cli import output as output_module
from dspool.cli import service as service_module
from dspool.cli.address import checked_host, checked_port
from dspool.cli.output import Output
from dspool.cli.programs import flags_for
from dspool.cli.run_file import RunFile, ServiceRun, this_process
from dspool.config import PoolConfig
from dspool.core.lifecycle.start_steps import StepTiming
from dspool.errors import ConfigError, Conflict, NotAllowed, WorkerStartFailed
from dspool.messages import PoolStatus, SessionInfo, WorkerStatus

run = CliRunner().invoke
DEAD = ServiceRun(pid=2**22 - 1, pid_started=1.0, pool="default", temp_dir="/tmp/dspool-gone")


class FakeService:
    """Starts at once and tells itself to stop, as Ctrl-C would."""

    fail: Exception | None = None
    hang = False
    dashboard: str | None = None
    first: tuple[int, ...] = ()
    """Signals that it sends before."""
    log: list[str] = []  # noqa: RUF012

    def __init__(self, config, *, address=None, ray_dashboard=False):
        self.config = config
        self.url = self.ray_address = ""
        self.ray_dashboard_url = self.dashboard
        self.temp_dir = Path("/tmp/dspool-fake")
        self.ray_token_path = self.temp_dir / "ray_token"
        self.tls_cert = None
        self.owns_serve = self.took_over = False
        self.pools = []

    async def start(self, report):
        report("ray", "starting a local Ray")
        if self.fail is not None:
            raise self.fail
        for number in self.first:
            os.kill(os.getpid(), number)
            for _ in range(5):  # turns in which its handler would run
                await asyncio.sleep(0)
            self.log.append(number)
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        if self.hang:
            await asyncio.Event().wait()
        self.url = f"http://{self.config.service.host}:{self.config.service.port}"
        self.ray_address = "127.0.0.1:6379"

    async def stop(self, report):
        self.log.append("stopped")
        report("stopped", "stopped")

    def timings(self):
        return [StepTiming("ray", 0.0, 1.5), StepTiming("pool", 1.5, 0.5)]

    def kill(self):
        self.log.append("killed")


@pytest.fixture
def service(monkeypatch):
    kind = type("Service", (FakeService,), {"log": []})
    module = types.ModuleType("fake_service")
    module.Service = kind
    module.clear = lambda **what: kind.log.append(("cleared", what))
    monkeypatch.setitem(sys.modules, "fake_service", module)
    monkeypatch.setattr(start, "SERVICE", "fake_service")
    return kind


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_up_serves_until_it_is_told_to_stop_and_leaves_no_run_file(service, tmp_path):
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path), "--pool-size", "3"])
    assert ended.exit_code == 0, ended.output
    assert "starting a local Ray" in ended.output
    assert "/dashboard\n" in ended.output
    assert "Ray's dashboard" not in ended.output
    assert service.log == ["stopped"]
    assert not (tmp_path / "run.json").exists()


def test_up_with_json_ends_its_output_with_one_line_of_facts(service, tmp_path):
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path), "--json", "--name", "first"])
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines[0] == {"event": "progress", "step": "ray", "text": "starting a local Ray"}
    last = lines[-1]
    assert last["event"] == "ready"
    assert last["url"].startswith("http://127.0.0.1:")
    assert (last["pool"], last["pid"], last["state_dir"]) == ("first", os.getpid(), str(tmp_path))
    assert last["ray_address"] == "127.0.0.1:6379"
    assert last["ray_token_path"] == "/tmp/dspool-fake/ray_token"


def test_up_with_rays_dashboard_says_where_it_is_and_how_to_log_in(service, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(RunFile, "write", lambda self, run: written.append(run))
    service.dashboard = "127.0.0.1:8265"
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path), "--ray-dashboard"])
    said = "Ray's dashboard: http://127.0.0.1:8265 (it asks for a token, which `dspool open --ray` prints)"
    assert said in ended.output
    assert {run.ray_dashboard for run in written} == {"http://127.0.0.1:8265"}


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_when_up_begins_stays_ignored(number, service, tmp_path):
    service.first = (number,)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    finally:
        signal.signal(number, before)
    assert ended.exit_code == 0, ended.output
    assert service.log == [number, "stopped"]


def test_up_can_be_stopped_while_it_starts(service, tmp_path):
    service.hang = True
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 0
    assert service.log == ["stopped"]


def test_what_fails_while_starting_is_one_line_and_is_taken_down(service, tmp_path):
    service.fail = WorkerStartFailed("no worker became warm: out of memory")
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 1
    assert ended.stderr == "Error: no worker became warm: out of memory\n"
    assert service.log == ["stopped"]
    assert not (tmp_path / "run.json").exists()


def test_an_unexpected_error_is_one_line_unless_debug(service, tmp_path):
    service.fail = ZeroDivisionError("oops\nmore")
    arguments = ["up", "--port", "0", "--state-dir", str(tmp_path)]
    ended = run(app, arguments)
    assert (ended.exit_code, ended.stderr) == (
        1,
        "Error: ZeroDivisionError: oops (--debug shows the traceback)\n",
    )
    assert isinstance(run(app, [*arguments, "--debug"]).exception, ZeroDivisionError)


def test_a_port_in_use_is_refused_before_anything_starts(service, tmp_path, taken_port):
    ended = run(app, ["up", "--port", str(taken_port), "--state-dir", str(tmp_path)])
    assert ended.exit_code == 2
    assert f"port {taken_port} on 127.0.0.1 is in use" in ended.stderr
    assert "--port" in ended.stderr
    assert service.log == []
    as_json = run(app, ["up", "--port", str(taken_port), "--state-dir", str(tmp_path), "--json"])
    assert json.loads(as_json.stderr)["code"] == "conflict"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::"])
def test_the_network_is_kept_out_while_there_are_no_tokens(service, tmp_path, host):
    ended = run(app, ["up", "--host", host, "--port", "0", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 2
    assert "no access tokens" in ended.stderr
    assert "127.0.0.1" in ended.stderr


def test_up_shows_where_the_time_of_its_start_went(service, tmp_path):
    arguments = ["up", "--port", "0", "--state-dir", str(tmp_path)]
    assert "ray     1.50 s" in run(app, [*arguments, "--timings"]).stdout
    assert "1.50 s" not in run(app, arguments).stdout
    ready = json.loads(run(app, [*arguments, "--json"]).stdout.splitlines()[-1])
    assert ready["timings"][0] == {"step": "ray", "began_s": 0.0, "took_s": 1.5}


def test_a_second_up_in_the_same_state_directory_is_refused(service, tmp_path):
    mine = this_process("default")
    RunFile(tmp_path).claim(mine)
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 2
    assert f"pid {mine.pid}" in ended.stderr
    assert "--state-dir" in ended.stderr
    assert RunFile(tmp_path).read() == mine


def test_what_a_dead_service_left_is_cleared_by_the_next_up(service, tmp_path):
    RunFile(tmp_path).claim(DEAD)
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 0
    cleared = {"pool": "default", "address": None, "temp_dir": Path("/tmp/dspool-gone"), "owns_serve": False}
    assert service.log == [("cleared", cleared), "stopped"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pool-size", "99"],
        ["--pool-size", "x"],
        ["--port", "70000"],
        ["--config", "/nowhere.yaml"],
        ["--no-such"],
    ],
)
def test_a_bad_flag_is_refused_with_exit_code_2(service, tmp_path, arguments):
    ended = run(app, ["up", "--state-dir", str(tmp_path), *arguments])
    assert ended.exit_code == 2
    assert ended.stderr
    assert "Traceback" not in ended.output
    assert service.log == []


def test_a_state_directory_that_cannot_be_written_is_refused(service, tmp_path):
    (tmp_path / "file").write_text("")
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path / "file" / "below")])
    assert ended.exit_code == 2
    assert "--state-dir" in ended.stderr


def test_config_prints_value_and_source_of_each_key(tmp_path, monkeypatch):
    file = tmp_path / "pool.yaml"
    file.write_text("pool_size: 3\n")
    monkeypatch.setenv("DSPOOL_SLOTS_PER_WORKER", "5")
    shown = json.loads(run(app, ["config", "--json", "--config", str(file)]).stdout)
    assert shown["pool_size"] == {"value": 3, "source": f"file:{file}"}
    assert shown["slots_per_worker"] == {"value": 5, "source": "env:DSPOOL_SLOTS_PER_WORKER"}
    assert shown["service.port"]["source"] == "default"
    text = run(app, ["config", "--config", str(file)]).stdout
    assert any(line.split() == ["pool_size", "3", f"file:{file}"] for line in text.splitlines())


def test_status_says_that_nothing_runs_with_exit_code_3(tmp_path):
    ended = run(app, ["status", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 3
    assert ended.stdout == f"no service runs from {tmp_path}; start one with `dspool up`\n"
    RunFile(tmp_path).claim(DEAD)
    stale = run(app, ["status", "--state-dir", str(tmp_path), "--json"])
    assert (stale.exit_code, json.loads(stale.stdout)["stale"]) == (3, True)


def served(monkeypatch, tmp_path, answers):
    """A run file of this process, and a service that gives `answers` by path."""
    RunFile(tmp_path).claim(this_process("default"))
    RunFile(tmp_path).write(
        ServiceRun(
            pid=os.getpid(), pid_started=psutil.Process().create_time(), pool="default", url="http://s"
        )
    )

    def answer(request):
        status, body = answers[request.url.path]
        return httpx.Response(status, json=body)

    monkeypatch.setattr(service_module, "transport_of", lambda run: httpx.MockTransport(answer))


def test_status_shows_pool_and_workers(monkeypatch, tmp_path):
    worker = WorkerStatus("w0", 0, "ready", 7, "n", sessions=1, running=2)
    pool = msgspec.to_builtins(PoolStatus("default", "ready", True, 1, 1, 0, 1, (worker,), {"qa": 1}))
    pool = json.loads(json.dumps(pool))
    off = (403, {"code": "not_allowed", "detail": "enable_metrics is off"})
    alerts = (200, {"alerts": []})
    store = {"pinned": True, "place": "/var/lib/s.db", "node": "ab12cd34ef", "epoch": 3}
    answers = {"": (200, pool), "/metrics": off, "/alerts": alerts, "/store": (200, store)}
    served(monkeypatch, tmp_path, {f"/v1/pools/default{path}": answer for path, answer in answers.items()})
    ended = run(app, ["status", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 0
    assert ended.stdout.startswith("pool default: ready, 1 of 1 worker\n")
    assert "programs: qa v1" in ended.stdout
    assert "sessions: SQLite file /var/lib/s.db on node ab12cd34 only, store epoch 3\n" in ended.stdout
    assert "w0" in ended.stdout
    seen = json.loads(run(app, ["status", "--state-dir", str(tmp_path), "--json"]).stdout)
    assert (seen["status"], seen["metrics"], seen["metrics_why"]) == (pool, None, "enable_metrics is off")


def test_sessions_lists_them_and_a_problem_is_one_line(monkeypatch, tmp_path):
    one = msgspec.to_builtins(SessionInfo("a\nb", "w0", 1, 1.0, 2.0, ("p",)))
    page = {"sessions": [one], "next_cursor": None}
    answers = {"/v1/pools/default/sessions": (200, page)}
    served(monkeypatch, tmp_path, answers)
    assert "a\\nb" in run(app, ["sessions", "--state-dir", str(tmp_path)]).stdout
    answers["/v1/pools/default/sessions"] = (503, {"code": "store_failed", "detail": "the store is away"})
    ended = run(app, ["sessions", "--state-dir", str(tmp_path)])
    assert (ended.exit_code, ended.stderr) == (1, "Error: the store is away\n")
    answers["/v1/pools/default/sessions"] = (200, {"sessions": [], "next_cursor": None})
    assert "no sessions" in run(app, ["sessions", "--state-dir", str(tmp_path)]).stdout


def test_down_stops_the_process_of_the_run_file_and_only_that(tmp_path):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        process = psutil.Process(sleeper.pid)
        right = ServiceRun(pid=sleeper.pid, pid_started=process.create_time(), pool="default")
        RunFile(tmp_path).claim(right)
        ended = run(app, ["down", "--state-dir", str(tmp_path), "--json"])
        assert json.loads(ended.stdout)["stopped"] is True
        # We have not looked after it: to `down` it has ended all the same, and is not waited for.
        assert psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE
        assert sleeper.wait(60) == -signal.SIGTERM
        assert not (tmp_path / "run.json").exists()
    finally:
        with suppress(ProcessLookupError):
            sleeper.kill()


TOLD = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM", flush=True))
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def told(tmp_path):
    """A process that the run file names; it says when it gets SIGTERM, and ends with its input, or by SIGINT."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", TOLD], text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        began = psutil.Process(process.pid).create_time()
        RunFile(tmp_path).claim(ServiceRun(pid=process.pid, pid_started=began, pool="default"))
        yield process
        process.kill()


def test_down_only_waits_for_a_service_that_is_ending_already(told, tmp_path):
    file = RunFile(tmp_path)
    file.write(msgspec.structs.replace(file.read(), phase="stopping"))
    command = [sys.executable, "-m", "dspool.cli", "down", "--state-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as down:
        assert "is ending already; running operations finish" in down.stdout.readline()
        told.stdin.close()
        assert down.stdout.readline() == f"stopped pool default (pid {told.pid})\n"
    assert (down.returncode, told.wait(60), told.stdout.read()) == (0, 0, "")


def test_down_insists_when_its_time_is_over(told, tmp_path):
    ended = run(app, ["down", "--timeout", "0", "--state-dir", str(tmp_path)])
    assert (ended.exit_code, told.wait(60)) == (0, 7)


def test_of_two_downs_one_removes_what_a_dead_service_left(service, tmp_path, monkeypatch):
    file, clearing, waits = RunFile(tmp_path), threading.Event(), threading.Event()
    file.claim(DEAD)
    lock = fcntl.flock

    def clear(**what):
        service.log.append(what)
        clearing.set()
        waits.wait(20)

    def flock(*arguments):
        if clearing.is_set():
            waits.set()
        lock(*arguments)

    monkeypatch.setattr(sys.modules["fake_service"], "clear", clear)
    monkeypatch.setattr(fcntl, "flock", flock)
    said = []
    downs = [threading.Thread(target=lambda: said.append(start.run_down(file, 1.0, Output()))) for _ in "12"]
    downs[0].start()
    assert clearing.wait(60)
    downs[1].start()
    for one in downs:
        one.join()
    assert len(service.log) == 1
    assert sorted("removed already" in one["message"] for one in said) == [False, True]


def test_down_leaves_a_process_alone_that_only_has_the_pid(service, tmp_path):
    RunFile(tmp_path).claim(ServiceRun(pid=os.getpid(), pid_started=1.0, pool="default"))
    ended = run(app, ["down", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 0
    assert "had ended" in ended.stdout
    assert run(app, ["down", "--state-dir", str(tmp_path)]).stdout.startswith("nothing to stop")


def test_the_run_file_is_for_its_owner_only_and_survives_rubbish(tmp_path):
    file = RunFile(tmp_path / "new")
    file.claim(DEAD)
    file.write(DEAD)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    file.path.write_bytes(b"\xffnot json")
    assert file.read() is None
    assert file.claim(DEAD) is None
    file.remove(DEAD.pid + 1)
    assert file.path.exists()
    file.remove(DEAD.pid)
    assert not file.path.exists()


def test_hosts_and_ports_are_checked(taken_port):
    assert checked_host("localhost") == checked_host("127.0.0.1") == "127.0.0.1"
    assert PoolConfig(service={"host": "[::1]"}).service.host == "[::1]"
    assert checked_host("::1") == checked_host("[::1]") == checked_host("0:0:0:0:0:0:0:1") == "::1"
    assert checked_host("::ffff:127.0.0.1") == "127.0.0.1"
    assert checked_host("::", tokens=True) == "::"
    refused = (
        ("example.org", ConfigError),
        ("10.0.0.1", NotAllowed),
        ("::", NotAllowed),
        ("fd00::1", NotAllowed),
        ("fe80::1%lo", ConfigError),
        ("[::1]:8000", ConfigError),
    )
    for host, error in refused:
        with pytest.raises(error):
            checked_host(host)
    assert checked_port("127.0.0.1", 0) > 0
    assert checked_port("::1", 0) > 0
    with pytest.raises(Conflict):
        checked_port("127.0.0.1", taken_port)


def test_a_port_of_ipv6_that_is_taken_is_said():
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        with pytest.raises(Conflict):
            checked_port("::1", other.getsockname()[1])


def test_a_path_that_the_locale_cannot_say_is_read_as_it_is(tmp_path):
    directory = tmp_path / "mÿ dir"
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "dspool.cli", "config", "--json", "--state-dir", str(directory)]
    done = subprocess.run(command, env=environ, capture_output=True, encoding="utf-8", check=True)
    assert json.loads(done.stdout)["state_dir"]["value"] == str(directory)


def test_every_command_explains_itself_and_version_prints_versions():
    assert "dspool 0." in run(app, ["version"]).stdout
    for name in ("up", "down", "status", "sessions", "config", "version"):
        assert run(app, [name, "--help"]).exit_code == 0


def test_the_command_line_imports_neither_ray_nor_dspy_nor_the_service_nor_a_database():
    slow = ("ray", "dspy", "dspool_serve", "sqlalchemy")
    code = f"import sys, dspool.cli; print([m for m in {slow} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


SHOP = """
import os
import dspy

class TicketTriage(dspy.Module):
    pass

class Ranked(dspy.Module):
    def __init__(self, model, top=3, *, index, cold=False):
        pass

program = TicketTriage()
LIMIT = 3
NAMES = ["a"]
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A directory with a program file, as the current one."""
    (tmp_path / "shop_here.py").write_text(SHOP)
    (tmp_path / "shop_broken.py").write_text("import dspy\ndef broken(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_programs_named_on_the_command_line_are_served_besides_those_of_the_file(service, shop, monkeypatch):
    file = shop / "pool.yaml"
    (shop / "other.py").write_text("import dspy\nclass B(dspy.Module): pass\n")
    file.write_text("allowed_imports: [other]\nprograms: {b: {import_path: 'other:B'}}\n")
    seen = []

    def init(self, config, **options):
        seen.append(config)
        FakeService.__init__(self, config, **options)

    monkeypatch.setattr(service, "__init__", init)
    named = ["shop_here:TicketTriage", "mine=shop_here:program"]
    result = run(app, ["up", *named, "--config", str(file), "--port", "0", "--state-dir", str(shop / "s")])
    assert result.exit_code == 0, result.output
    (config,) = seen
    paths = {name: program.import_path for name, program in config.programs.items()}
    assert paths == {"ticket_triage": "shop_here:TicketTriage", "mine": "shop_here:program", "b": "other:B"}
    assert config.allowed_imports == ("other", "shop_here")
    assert os.environ["PYTHONPATH"] == f"{shop}{os.pathsep}/elsewhere"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["nowhere.answers:A"], "there is no module 'nowhere'"),
        (["shop_here"], "names no program"),
        (["=shop_here:A"], "names no program"),
        (["shop_here:program", "program=shop_here:TicketTriage"], "two programs would be named 'program'"),
        (["shop_here:a b"], "shop_here has no a b"),
        (["shop_her:program"], "did you mean shop_here?"),
        (["shop_here:TicketTriag"], "did you mean TicketTriage?"),
        (["shop_here:tickettriage"], "did you mean TicketTriage?"),
        (["shop_here:Ranked"], "Ranked needs model, index to be made"),
        (["shop_here:LIMIT"], "LIMIT is a int, which is no program"),
        (["shop_here:NAMES"], "NAMES is a list, which is no program"),
        (["shop_here.inner:A"], "there is no module 'shop_here.inner', in shop_here"),
        (["shop_broken:A"], "shop_broken.py, line 2: "),
        (["a/b=shop_here:program"], "a/b"),
    ],
)
def test_a_program_that_cannot_be_meant_is_refused_before_anything_starts(service, shop, named, said):
    result = run(app, ["up", *named, "--port", "0", "--state-dir", str(shop / "s")])
    assert result.exit_code == 2
    assert said in result.output
    assert service.log == []


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("Answer", "answer"),
        ("TicketTriage", "ticket_triage"),
        ("RAGProgram", "rag_program"),
        ("make_agent", "make_agent"),
        ("Qa2", "qa2"),
    ],
)
def test_a_program_is_named_after_its_class(shop, attribute, name):
    (shop / "shop_here.py").write_text(f"from shop import {attribute}\n")
    assert list(flags_for([f"shop_here:{attribute}"], None, {})["programs"]) == [name]


@pytest.mark.parametrize(
    "source",
    [
        "from elsewhere import *",
        "def __getattr__(name): ...",
        "globals().update(A=1)",
        "if True:\n    A = make()",
    ],
)
def test_a_name_that_only_running_the_module_would_show_is_left_to_the_workers(shop, source):
    (shop / "shop_open.py").write_text(f"{source}\n")
    assert flags_for(["shop_open:A"], None, {})["programs"] == {"a": {"import_path": "shop_open:A"}}


def test_a_configuration_finds_its_programs_in_the_current_directory(service, shop, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(shop)])
    file = shop / "pool.yaml"
    file.write_text("allowed_imports: [shop_here]\nprograms: {b: {import_path: 'shop_here:program'}}\n")
    result = run(app, ["up", "--config", str(file), "--port", "0", "--state-dir", str(shop / "s")])
    assert result.exit_code == 0, result.output
    assert os.environ["PYTHONPATH"] == f"{shop}{os.pathsep}/elsewhere"


def phases(service, monkeypatch):
    """What the run file says in each step of a service."""
    seen = []
    write = RunFile.write

    def written(self, one):
        seen.append((one.phase, one.temp_dir, one.url != ""))
        write(self, one)

    monkeypatch.setattr(RunFile, "write", written)
    return seen


def test_the_run_file_says_how_far_a_service_is_so_that_the_next_command_can_clear_it(
    service, tmp_path, monkeypatch
):
    seen = phases(service, monkeypatch)
    assert run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)]).exit_code == 0
    phases_seen = list(dict.fromkeys(seen))
    assert phases_seen == [("serving", "/tmp/dspool-fake", True), ("stopping", "/tmp/dspool-fake", True)]


def test_the_run_file_says_that_a_service_ends_as_soon_as_it_was_asked_to(service, tmp_path, monkeypatch):
    async def begin(self, report):
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append(RunFile(tmp_path).read().phase)
            self.changed()
            self.log.append(RunFile(tmp_path).read().phase)

    monkeypatch.setattr(service, "start", begin)
    assert run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)]).exit_code == 0
    assert service.log == ["stopping", "stopping", "stopped"]


def test_a_disk_that_is_full_does_not_keep_a_service_from_ending(service, tmp_path, monkeypatch):
    write = RunFile.write

    def full(self, one):
        if one.phase == "stopping":
            raise OSError(28, "No space left on device")
        write(self, one)

    monkeypatch.setattr(RunFile, "write", full)
    assert run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)]).exit_code == 0
    assert service.log == ["stopped"]


def test_a_second_ctrl_c_ends_a_service_at_once(service, tmp_path, monkeypatch):
    async def stop(self, report):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(5):  # turns in which its handler would run
            await asyncio.sleep(0)

    monkeypatch.setattr(service, "stop", stop)
    monkeypatch.setattr(os, "_exit", service.log.append)
    run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert service.log == ["killed", 130]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_hangs_up_twice_or_a_second_down_does_not_cut_the_end_off(
    number, service, tmp_path, monkeypatch
):
    async def stop(self, report):
        for _ in range(2):
            os.kill(os.getpid(), number)
            for _ in range(5):  # turns in which its handler would run
                await asyncio.sleep(0)
        report("stopped", "stopped")
        self.log.append("stopped")

    monkeypatch.setattr(service, "stop", stop)
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert (ended.exit_code, service.log) == (0, ["stopped"])


def test_an_output_that_is_gone_does_not_cut_the_end_off(service, tmp_path, monkeypatch):
    async def stop(self, report):
        monkeypatch.setattr(output_module.Output, "progress", gone)
        report("pool", "stopping the workers")
        self.log.append("stopped")

    def gone(self, step, text):
        raise SystemExit(141)

    monkeypatch.setattr(service, "stop", stop)
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert (ended.exit_code, service.log) == (0, ["stopped"])


def test_what_is_not_cleared_yet_is_not_forgotten_by_one_that_dies_too(tmp_path):
    file = RunFile(tmp_path)
    file.claim(DEAD)
    file.claim(msgspec.structs.replace(DEAD, pid=2**22 - 2, temp_dir=None))
    file.claim(this_process("default"))
    assert [one.temp_dir for one in file.read().left] == ["/tmp/dspool-gone", None]


def test_down_clears_all_that_was_left(service, tmp_path):
    file = RunFile(tmp_path)
    file.claim(DEAD)
    file.claim(msgspec.structs.replace(DEAD, pid=2**22 - 2, temp_dir="/tmp/dspool-gone-too"))
    ended = run(app, ["down", "--state-dir", str(tmp_path), "--json"])
    assert ended.exit_code == 0
    cleared = [str(what["temp_dir"]) for _, what in service.log]
    assert cleared == ["/tmp/dspool-gone", "/tmp/dspool-gone-too"]
    assert json.loads(ended.stdout.splitlines()[-1])["stopped"] is False
    assert not file.path.exists()


@pytest.fixture
def answering():
    """The URL of something that answers 200, as a service does that goes on without its `dspool up`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("changes", "goes_on"),
    [
        ({}, True),
        ({"joined": False}, False),
        ({"phase": "stopping"}, False),
        ({"phase": "starting"}, False),
        ({"url": "http://127.0.0.1:9"}, False),
    ],
)
def test_a_service_goes_on_without_its_up_only_on_anothers_cluster_and_while_it_answers(
    answering, tmp_path, changes, goes_on
):
    dead = msgspec.structs.replace(DEAD, joined=True, phase="serving", url=answering)
    RunFile(tmp_path).write(msgspec.structs.replace(dead, **changes))
    living = RunFile(tmp_path).living()
    assert (living is not None) is goes_on
