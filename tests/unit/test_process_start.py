"""Whether a process still runs, while clocks are set and process ids are used again."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from dspool.cli.run_file import ServiceRun, this_process
from dspool.process_start import process_start, runs_since
from dspool.store.claims import this_server


@pytest.fixture
def clock_set_forward(monkeypatch):
    """By a day: psutil reckons every start by what the clock says that the machine was booted at."""
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + 86_400.0)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="only Linux says when, by no clock")
def test_a_clock_that_is_set_ends_no_service_and_no_store(request):
    service, store, start = this_process("default"), this_server("a"), process_start(os.getpid())
    request.getfixturevalue("clock_set_forward")
    assert service.alive()
    assert not store.is_gone()
    assert runs_since(os.getpid(), start)


def test_a_process_that_has_the_number_of_another_is_not_taken_for_it():
    start = process_start(os.getpid())
    assert not runs_since(os.getpid(), start - 5.0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ended:
        start = process_start(ended.pid)
        assert runs_since(ended.pid, start)
        ended.communicate(b"\n")
    assert not runs_since(ended.pid, start)


def test_one_of_another_boot_is_not_alive_though_all_else_is_the_same():
    run = this_process("default")
    again = ServiceRun(pid=run.pid, pid_started=run.pid_started, machine="another boot", pool="default")
    assert run.alive()
    assert not again.alive()


def test_what_a_version_before_wrote_is_read():
    started = psutil.Process().create_time()
    assert ServiceRun(pid=os.getpid(), pid_started=started, pool="default").alive()
    assert not ServiceRun(pid=os.getpid(), pid_started=started - 5.0, pool="default").alive()
