"""How a service ends, by `dspool down` or a signal and at any moment, and who clears what a dead one left."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest
from typer.testing import CliRunner

from dspool.cli import app, start
from dspool.cli import output as output_module
from dspool.cli.output import Output
from dspool.cli.run_file import RunFile, ServiceRun
from tests.unit.service_double import DEAD

run = CliRunner().invoke


# --- signals ---


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


def test_a_disk_that_is_full_does_not_keep_a_service_from_ending(service, tmp_path, monkeypatch):
    write = RunFile.write

    def full(self, one):
        if one.phase == "stopping":
            raise OSError(28, "No space left on device")
        write(self, one)

    monkeypatch.setattr(RunFile, "write", full)
    assert run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)]).exit_code == 0
    assert service.log == ["stopped"]


# --- down ---


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


def test_down_leaves_a_process_alone_that_only_has_the_pid(service, tmp_path):
    RunFile(tmp_path).claim(ServiceRun(pid=os.getpid(), pid_started=1.0, pool="default"))
    ended = run(app, ["down", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 0
    assert "had ended" in ended.stdout
    assert run(app, ["down", "--state-dir", str(tmp_path)]).stdout.startswith("nothing to stop")


# --- what a dead service left ---


def test_what_a_dead_service_left_is_cleared_by_the_next_up(service, tmp_path):
    RunFile(tmp_path).claim(DEAD)
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 0
    cleared = {"pool": "default", "address": None, "temp_dir": Path("/tmp/dspool-gone"), "owns_serve": False}
    assert service.log == [("cleared", cleared), "stopped"]


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
