"""What a forked worker takes over, and that it has nothing of its parent that it should not have."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dspool.runtime.forkserver import handover
from dspool.runtime.forkserver.places import HOW_VARIABLE, Unavailable
from dspool.runtime.forkserver.shim import ask
from tests.unit.forked import ended, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")


def test_a_message_and_its_descriptors_arrive_whole():
    here, there = socket.socketpair()
    with here, there:
        reading, writing = os.pipe()
        message = {"text": "x" * 300_000, "undecodable": "\udcff"}
        sender = threading.Thread(target=handover.send, args=(here, message, (writing,)))
        sender.start()
        heard, (received,) = handover.receive(there, descriptors=3)
        sender.join()
        assert heard == message
        os.write(received, b"!")
        assert os.read(reading, 1) == b"!"
        assert not os.get_inheritable(received)
        for descriptor in (reading, writing, received):
            os.close(descriptor)


def test_what_is_no_message_is_refused_and_its_descriptors_are_closed():
    here, there = socket.socketpair()
    with here, there:
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(here, [b"\xff\xff\xff\xff"], (0, 1, 2))
        with pytest.raises(ValueError, match="too long"):
            handover.receive(there, descriptors=3)
        assert len(os.listdir("/proc/self/fd")) == before
        here.close()
        with pytest.raises(EOFError):
            handover.receive(there)


# --- what a child is --------------------------------------------------------------------------------


def test_a_child_has_the_arguments_environment_and_directory_of_who_asked(parent, told, tmp_path):
    parent()
    os.mkdir(tmp_path / "cwd")
    found = told(
        "[sys.argv[0], dict(os.environ), os.getcwd(), sys.path[0], __name__, __file__]",
        cwd=str(tmp_path / "cwd"),
        environ={"ONLY": "this"},
    )
    script = str(tmp_path / "worker.py")
    environ = {"ONLY": "this", HOW_VARIABLE: "fork"}
    assert found == [script, environ, str(tmp_path / "cwd"), str(tmp_path), "__main__", script]


def test_a_child_has_the_variables_that_loading_would_have_set(parent, told):
    parent(variables={"SET_BY_LOADING": "1"})
    assert told("dict(os.environ)", environ={"ONLY": "this"}) == {
        "ONLY": "this",
        "SET_BY_LOADING": "1",
        HOW_VARIABLE: "fork",
    }


def test_a_child_says_what_it_was_to_share_and_does_not(parent, told):
    parent(failed={"shop.index": "ModuleNotFoundError: No module named 'shop'"})
    how = "fork: shop.index is not shared: ModuleNotFoundError: No module named 'shop'"
    assert told("dict(os.environ)", environ={}) == {HOW_VARIABLE: how}


def test_a_child_has_the_limits_and_signals_of_who_asked(parent, told):
    parent("import signal; signal.signal(signal.SIGUSR1, lambda *_: None)")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = told(
        "[os.umask(0), [int(s) for s in __import__('signal').pthread_sigmask(0, [])],"
        " *[int(__import__('signal').getsignal(s)) for s in (10, 15, 1)],"
        " __import__('resource').getrlimit(__import__('resource').RLIMIT_NOFILE)]",
        umask=0o027,
        blocked=[signal.SIGINT],
        ignored=[signal.SIGHUP, signal.SIGPIPE],
        limits={"RLIMIT_NOFILE": (soft - 1, hard)},
    )
    assert found[:2] == [0o027, [signal.SIGINT]]
    assert found[2:5] == [signal.SIG_DFL, signal.SIG_DFL, signal.SIG_IGN]
    assert found[5] == [soft - 1, hard]


def test_a_child_has_nothing_open_but_the_streams_of_who_asked(parent, told):
    parent("kept = open('/dev/zero')")
    opened = "sorted(int(n) for n in os.listdir('/proc/self/fd'))"
    # The last is the one that lists them.
    assert told(opened) == [0, 1, 2, 3]


def test_children_hash_as_the_environment_asks(parent, told, monkeypatch):
    # A worker with another seed has another environment, so another parent.
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    parent()
    wanted = subprocess.run(
        [sys.executable, "-c", "print(hash('word'))"], capture_output=True, text=True, check=True
    )
    assert told("hash('word')") == int(wanted.stdout)


def test_a_child_has_a_group_of_its_own_in_the_session_of_its_node(parent, told):
    parent()
    pid, group, session = told("[os.getpid(), os.getpgrp(), os.getsid(0)]")
    assert pid == group
    assert session == os.getsid(0)


def test_children_draw_different_random_numbers(parent, told, tmp_path, monkeypatch):
    # Else numpy starts threads.
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    parent("import random, numpy.random; random.seed(1); numpy.random.seed(1)")
    drawn = (
        "[__import__('random').random(), float(__import__('numpy').random.random()), "
        "__import__('secrets').token_hex(), str(__import__('uuid').uuid4()), str(__import__('uuid').uuid1())]"
    )
    first = told(drawn)
    (tmp_path / "answer").unlink()
    second = told(drawn)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert first[0] != random.Random(1).random()


def test_an_exception_in_a_child_is_its_own(parent, place, told, tmp_path):
    process = parent()
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)")
    pid = ask(place, handover.here([str(script)]))
    eventually(lambda: ended(pid))
    assert process.poll() is None
    assert told("1") == 1


def test_a_child_whose_directory_is_gone_is_refused_and_nothing_is_left(parent, place, tmp_path):
    process = parent()
    with pytest.raises(Unavailable, match="FileNotFoundError"):
        ask(place, handover.here(["x.py"])._replace(cwd=str(tmp_path / "gone")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    eventually(lambda: not children.read_text())
