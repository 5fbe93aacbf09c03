"""As process 1 of a container: orphans are taken away, signals arrive, the service's exit code is the container's."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from benchmarks.confined import flags

UNSHARED = flags()
pytestmark = pytest.mark.skipif(UNSHARED is None, reason="the system allows no namespaces")

ORPHAN = """
import os, time
from dspool.cli.first_process import become_child
become_child()
assert os.getpid() != 1 and os.getppid() == 1
read, write = os.pipe()
if (between := os.fork()) == 0:
    if (orphan := os.fork()) == 0:
        os._exit(0)
    os.write(write, str(orphan).encode())
    os._exit(0)
os.waitpid(between, 0)
orphan = int(os.read(read, 20))
until = time.monotonic() + 60
while time.monotonic() < until:
    try:
        os.kill(orphan, 0)
    except ProcessLookupError:
        print("taken away")
        break
"""
WAITING = """
import os, signal, sys
from dspool.cli.first_process import become_child
become_child()
signal.signal(signal.SIGHUP, lambda *_: print("told", flush=True))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
while True:
    signal.pause()
"""


def started(script: str) -> subprocess.Popen[str]:
    assert UNSHARED is not None
    return subprocess.Popen(
        ["unshare", *UNSHARED, "--mount-proc", sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def first(unshare: subprocess.Popen[str]) -> psutil.Process:
    (process,) = psutil.Process(unshare.pid).children()
    return process


def test_an_orphan_that_has_ended_is_taken_away():
    with started(ORPHAN) as unshare:
        said, _ = unshare.communicate(timeout=120)
    assert (said, unshare.returncode) == ("taken away\n", 0)


def test_signals_reach_the_service_and_its_exit_code_is_the_containers():
    with started(WAITING) as unshare:
        assert unshare.stdout is not None
        assert unshare.stdout.readline() == "ready\n"
        first(unshare).send_signal(signal.SIGHUP)
        assert unshare.stdout.readline() == "told\n"
        first(unshare).send_signal(signal.SIGTERM)
        assert unshare.wait(60) == 7


def test_a_service_that_is_killed_ends_the_container_with_its_signal():
    with started(WAITING) as unshare:
        assert unshare.stdout is not None
        assert unshare.stdout.readline() == "ready\n"
        (service,) = first(unshare).children()
        service.kill()
        assert unshare.wait(60) == 128 + signal.SIGKILL


def test_any_other_process_goes_on_as_it_is():
    program = (
        "import os; from dspool.cli.first_process import become_child; pid = os.getpid(); become_child(); "
        "print(os.getpid() == pid)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
