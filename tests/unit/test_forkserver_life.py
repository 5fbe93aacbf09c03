"""The life of a parent and its children: who waits for whom, and that nothing is waited for twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dspool.runtime import forkserver
from dspool.runtime.forkserver import handover, shim
from dspool.runtime.forkserver.parent import Parent
from dspool.runtime.forkserver.places import HOW_VARIABLE, Place, Unavailable
from dspool.runtime.forkserver.shim import Gone, ask, fork_worker
from tests.unit.forked import WORKER, ended, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")


def test_a_parent_reaps_its_children(parent, place, told):
    process = parent()
    told("1")
    # A zombie would be listed.
    eventually(lambda: not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    (found,) = forkserver.report(place.directory.parent.parent)
    assert (found.pid, found.forked, found.workers, found.exec_only) == (process.pid, 1, (), None)


def test_a_parent_ends_and_takes_its_files_away_when_it_has_been_idle(parent, place):
    assert parent(idle_s=0.1).wait(120) == 0
    assert not place.directory.parent.exists()


def test_a_parent_ends_when_its_directory_is_gone(parent, place):
    process = parent()
    place.socket.unlink()
    place.directory.rmdir()
    place.directory.parent.rmdir()
    assert process.wait(120) == 0
    assert not place.directory.parent.exists()


def test_a_parent_ends_with_its_raylet(place):
    with subprocess.Popen(["sleep", "100"]) as raylet:
        parent = Parent(place, raylet=raylet.pid)
        raylet.kill()
    assert parent.serve() is None
    parent.close()
    assert not place.socket.exists()


def test_a_parent_with_a_thread_refuses(parent, place):
    parent("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()")
    with pytest.raises(Unavailable, match="threads run in the parent"):
        ask(place, handover.here(["x.py"]))


def test_one_that_connects_and_says_nothing_holds_up_no_other(parent, place, told):
    parent()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(place.socket))
        assert told("1") == 1


def test_a_hung_parent_costs_one_time_out_is_killed_and_the_next_worker_does_not_wait(parent, place):
    process = parent()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(Unavailable, match=r"did not answer in 0\.2 s"):
        ask(place, handover.here(["x.py"]), timeout_s=0.2)
    assert process.wait(120) == -signal.SIGKILL
    assert "did not answer" in place.exec_only()
    (found,) = forkserver.report(place.directory.parent.parent)
    assert "did not answer" in found.exec_only


def test_a_child_that_nobody_waits_for_any_more_does_not_run(parent, place, tmp_path):
    parent()
    script = tmp_path / "ran.py"
    script.write_text("open(__file__ + '.ran', 'w')")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place.socket))
        handover.receive(connection)
        handover.send(connection, {"fork": handover.here([str(script)])._asdict()}, (0, 1, 2))
        started, _ = handover.receive(connection)
    eventually(lambda: ended(started["started"]))
    assert not Path(f"{script}.ran").exists()


def stalled(place, request, stall, answer):
    """A parent whose child says `started`, then does `stall(connection)`; what the shim made of it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place.socket))
    listener.listen()

    def serve():
        connection, _ = listener.accept()
        with connection, listener:
            handover.send(connection, {"ready": os.getpid()})
            _, streams = handover.receive(connection, descriptors=3)
            for stream in streams:
                os.close(stream)
            handover.send(connection, {"started": answer})
            stall(connection)

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        with pytest.raises(Unavailable) as refused:
            ask(place, request)
    finally:
        serving.join()
    return str(refused.value)


def test_a_child_that_gave_up_just_before_go_arrived_leaves_the_worker_to_the_shim(place):
    # `go` is on its way when the child closes: sending it succeeds, and nobody reads it.
    unread = socket.MSG_PEEK
    why = stalled(place, handover.here(["x.py"]), lambda connection: connection.recv(1, unread), answer=1)
    assert "died over it" in why


def test_a_child_that_is_held_up_after_go_is_killed_before_the_shim_becomes_the_worker(place, monkeypatch):
    monkeypatch.setattr(shim, "GOING_S", 0.1)
    with subprocess.Popen(["sleep", "100"]) as child:
        why = stalled(place, handover.here(["x.py"]), lambda _: child.wait(120), answer=child.pid)
    assert child.returncode == -signal.SIGKILL
    assert "did not take over" in why


STAND_IN = (
    "import types; ray = sys.modules['ray._private.worker'] = types.ModuleType('ray'); ray.connect = {}"
)
"""A Ray that a worker connects to."""
NO_CONNECTION = STAND_IN.format("None")


def test_the_shim_stays_until_ray_knows_the_child(parent, place, tmp_path):
    parent(STAND_IN.format(f"lambda: open({str(tmp_path / 'connected')!r}, 'w').close()"))
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, time\ntime.sleep(0.3)\nsys.modules['ray._private.worker'].connect()\ntime.sleep(60)"
    )
    pid = ask(place, handover.here([str(script)]), registered_s=120.0)
    assert (tmp_path / "connected").exists()
    assert not ended(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_child_that_dies_before_ray_knows_it_is_replaced_by_the_shim_at_once(parent, place, tmp_path):
    parent(NO_CONNECTION)
    script = tmp_path / "dies.py"
    script.write_text("import os; os._exit(9)")
    began = time.monotonic()
    with pytest.raises(Unavailable, match="died before Ray knew it"):
        ask(place, handover.here([str(script)]), registered_s=300.0)
    assert time.monotonic() - began < 100


def test_a_child_that_is_slow_to_register_is_left_alone(parent, place, tmp_path):
    parent(NO_CONNECTION)
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(60)")
    pid = ask(place, handover.here([str(script)]), registered_s=0.2)
    assert not ended(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_dead_parent_is_as_good_as_none(parent, place):
    process = parent()
    process.kill()
    process.wait()
    assert place.socket.exists()
    with pytest.raises(Gone):
        ask(place, handover.here(["x.py"]))


def test_the_note_that_forking_is_off_holds_for_a_while(place):
    assert place.exec_only() is None
    place.give_up("it hung")
    assert place.exec_only() == "it hung"
    os.utime(place.directory / "exec-only", (0, 0))
    assert place.exec_only() is None


def test_a_parent_forks_nothing_from_source_that_has_changed_and_ends(parent, place, told, tmp_path):
    source = tmp_path / "index.py"
    source.write_text("old")
    process = parent(watched={str(source): source.stat().st_mtime_ns})
    assert told("1") == 1
    source.write_text("newer")
    with pytest.raises(Gone):
        ask(place, handover.here(["x.py"]))
    assert process.wait(120) == 0
    assert place.directory.exists()  # the next parent's


def test_a_parent_does_without_what_it_cannot_share_and_shares_the_rest(short_path):
    """The shim as Ray runs it, twice; the second time the source is another one."""
    worker = short_path / "default_worker.py"
    worker.write_text(
        "import os, sys; from dspool.runtime.forkserver.child import registered; registered(); "
        f"print(os.environ[{HOW_VARIABLE!r}]); "
        "print(*(name for name in ('index', 'threads', 'opens', 'gone') if name in sys.modules), "
        "sys.modules['index'].CONTENT)"
    )
    (short_path / "index.py").write_text("CONTENT = 'first'")
    (short_path / "opens.py").write_text("kept = open('/dev/zero')")
    (short_path / "threads.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    (short_path / "session").mkdir()
    arguments = [f"--temp-dir={short_path}", "--session-name=session", "--node-id=n"]
    load = json.dumps(
        {"modules": ["threads", "index", "gone", "opens"], "path": [str(short_path)], "patient": True}
    )
    shim = Path(forkserver.__file__).with_name("shim.py")
    with subprocess.Popen(["sleep", "300"]) as raylet:

        def worker_says():
            out = short_path / "out"
            with out.open("w") as to:
                subprocess.run(
                    [sys.executable, "-S", "-E", str(shim), load, str(worker), *arguments],
                    env={**os.environ, "RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": str(raylet.pid)},
                    stdout=to,
                    timeout=120,
                    check=True,
                )
            # The shim may leave before the forked worker has written.
            eventually(lambda: out.read_text().count("\n") == 2, timeout_s=60)
            return out.read_text().splitlines()

        try:
            how, loaded = worker_says()
            assert how.startswith("fork: ")
            for module, why in {"threads": "threads run", "opens": "/dev/zero", "gone": "No module"}.items():
                assert f"{module} is not shared: " in how
                assert why in how
            assert loaded == "index first"
            (short_path / "index.py").write_text("CONTENT = 'second'")
            assert worker_says()[1] == "index second"
        finally:
            raylet.kill()


def test_a_parent_that_cannot_load_says_why_and_the_shim_becomes_the_worker(short_path):
    """The shim as Ray runs it, with a worker program that says how it came to be."""
    worker = short_path / "default_worker.py"
    worker.write_text(f"import os; print(os.environ[{HOW_VARIABLE!r}])")
    (short_path / "session").mkdir()
    arguments = [f"--temp-dir={short_path}", "--session-name=session", "--node-id=n"]
    shim = Path(forkserver.__file__).with_name("shim.py")
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(shim), "{}", str(worker), *arguments],
        env={**os.environ, "RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "none"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("exec: the parent cannot fork: ValueError")
    # The next does not try.
    found = next((short_path / "session" / "forkserver").iterdir())
    assert "cannot fork" in Place(found).exec_only()


def test_with_resource_isolation_workers_are_not_forked():
    with pytest.raises(Unavailable, match="isolation"):
        fork_worker("", [*WORKER, "--enable-resource-isolation=true"])
