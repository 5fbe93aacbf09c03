"""What tries the user's code in a process of its own leaves nothing of it, whatever that code starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dspool.cli.contained import contained
from dspool.cli.doctor import service
from dspool.cli.trial_import import try_imports
from dspool.config import PoolConfig
from tests.unit.test_start_causes import read

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans to a process")

DAEMON = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
alive = os.open(os.environ["DAEMON_ALIVE"], os.O_WRONLY)
os.write(alive, b"began")
first = os.fork()
if first == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        while True:
            time.sleep(3600)
    os._exit(0)
os.waitpid(first, 0)
os.close(alive)
"""
"""A module whose import leaves a process that nobody is the parent of, in a session of its own, with the standard
streams of who imported it."""


@pytest.fixture
def alive(tmp_path, monkeypatch):
    """What the daemon holds open as long as it lives."""
    (tmp_path / "daemon_shop.py").write_text(DAEMON)
    os.mkfifo(tmp_path / "alive")
    monkeypatch.setenv("DAEMON_ALIVE", str(tmp_path / "alive"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    held = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    yield held
    os.close(held)


def test_a_daemon_that_an_import_leaves_ends_with_the_trial_of_the_imports(alive):
    assert try_imports(PoolConfig(preload=("daemon_shop",))) == []
    assert (read(alive), read(alive)) == (b"began", b"")


def test_a_daemon_that_an_import_leaves_ends_with_the_trial_of_the_fork_server(alive):
    service.fork_server(PoolConfig(worker_start="fork", preload=("daemon_shop",)))
    assert (read(alive), read(alive)) == (b"began", b"")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 0),
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.killpg(0, 9)", 137),
    ],
)
def test_it_ends_as_what_it_ran_after_all_that_this_started(alive, tmp_path, text, code):
    removed = tmp_path / "removed"
    removed.mkdir()
    with contained([sys.executable, "-c", f"import daemon_shop; {text}"], removes=removed) as process:
        assert process.communicate()[0] == b""
        assert process.returncode == code
        assert (read(alive), read(alive)) == (b"began", b"")
        assert not removed.exists()


ENDLESS = [sys.executable, "-c", "import daemon_shop, time; time.sleep(3600)"]


def test_it_ends_when_it_is_told_to(alive):
    with contained(ENDLESS) as process:
        assert read(alive) == b"began"
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
        assert read(alive) == b""


def test_it_ends_with_the_block(alive):
    with contained(ENDLESS):
        assert read(alive) == b"began"
    assert read(alive) == b""


ASK = """
import sys
from dspool.cli.contained import contained
with contained([sys.executable, "-c", "import daemon_shop, time; time.sleep(3600)"]) as process:
    process.wait()
"""


def test_it_ends_with_who_asked_when_this_one_is_killed(alive):
    with subprocess.Popen([sys.executable, "-c", ASK]) as command:
        assert read(alive) == b"began"
        command.kill()
    assert read(alive) == b""
