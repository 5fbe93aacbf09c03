"""Forked workers: how one is asked for, what it takes over, and that nothing is waited for twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from dspool import forkserver
from dspool.config import PoolConfig
from dspool.forkserver import handover, shim
from dspool.forkserver.parent import Parent
from dspool.forkserver.places import HOW_VARIABLE, Place, Unavailable
from dspool.forkserver.shim import Gone, ask, fork_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")

WORKER = ["/ray/default_worker.py", "--temp-dir=/t", "--session-name=s", "--node-id", "n"]
RAY = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "1"}


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path / "forkserver" / "key")
    place.make()
    return place


@pytest.fixture
def parent(place):
    """A parent in a process of its own that has loaded nothing but `sys.argv[2]` says; forks whatever asks."""
    running = []

    def start(before: str = "pass", idle_s: float = 30.0, variables=None) -> subprocess.Popen:
        program = textwrap.dedent(
            f"""
            import sys
            from pathlib import Path
            from dspool.forkserver import child
            from dspool.forkserver.parent import Parent
            from dspool.forkserver.places import Place
            {before}
            parent = Parent(Place(Path(sys.argv[1])), raylet=None, idle_s={idle_s}, variables={variables!r})
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
        until = time.monotonic() + 20
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


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def eventually(true, timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


# --- where a parent lives ---------------------------------------------------------------------------


def test_a_job_a_node_and_an_environment_have_a_parent_of_their_own():
    def of(worker=WORKER, environ=RAY, modules="", python="/python"):
        return Place.of(worker, environ, modules, python).directory

    places = [
        of(),
        of(environ={**RAY, "RAY_JOB_ID": "02000000"}),
        of(environ={**RAY, "PYTHONHASHSEED": "1"}),
        of([*WORKER[:-1], "other"]),
        of(modules="litellm"),
        of(python="/other"),
    ]
    assert len(set(places)) == len(places)
    assert of(environ={**RAY, "PWD": "/elsewhere", HOW_VARIABLE: "fork"}) == places[0]


def test_a_worker_that_ray_says_too_little_about_is_not_forked():
    with pytest.raises(Unavailable, match="RAY_JOB_ID"):
        Place.of(WORKER, {}, "", "/python")
    with pytest.raises(Unavailable, match="too long"):
        Place.of([*WORKER, "--temp-dir=/" + "x" * 100], RAY, "", "/python")


def test_only_this_user_may_enter_the_directory_and_use_the_socket(place, parent):
    parent()
    assert stat.S_IMODE(place.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.socket.stat().st_mode) == 0o600
    place.directory.chmod(0o755)
    with pytest.raises(Unavailable, match="only this user"):
        place.make()


def test_whoever_is_another_user_gets_no_worker_and_no_worker_comes_from_another_user(place, monkeypatch):
    parent = Parent(place, raylet=None)
    other = (1, os.geteuid() + 1)
    monkeypatch.setattr(handover, "peer", lambda connection: other)
    with pytest.raises(Unavailable, match=f"belongs to user {other[1]}"):
        ask(place, handover.here(["x.py"]))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(place.socket))
        # The shim's connection from above, and this one.
        assert parent._answer() is None
        assert parent._answer() is None
        assert stranger.recv(100) == b""
    assert parent._facts()["forked"] == 0
    parent.close()


def test_the_kernel_says_who_the_other_end_is():
    here, there = socket.socketpair()
    with here, there:
        assert handover.peer(here) == (os.getpid(), os.geteuid())


def test_a_link_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "forkserver").symlink_to(tmp_path / "mine")
    with pytest.raises(Unavailable):
        Place(tmp_path / "forkserver" / "key").make()


def test_the_lock_is_held_by_one_at_a_time_and_removing_takes_all_away(place):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.socket))
        inode = place.socket.stat().st_ino
        with place.locked(0.0) as mine:
            assert mine
            with place.locked(0.0) as other:
                assert not other
            place.remove(inode)
            assert place.socket.exists()
        place.remove(inode + 1)
        assert place.socket.exists()
        place.remove(inode)
        assert not place.directory.parent.exists()


def test_a_parent_that_takes_its_directory_away_keeps_no_shim_waiting(place):
    # The shim has made the directory, found a socket that nobody serves any more, and now wants to start a parent.
    place.directory.rmdir()
    place.directory.parent.rmdir()
    began = time.monotonic()
    with place.locked(5.0) as mine:
        assert mine
        assert place.directory.exists()
    assert time.monotonic() - began < 1.0


def test_a_directory_that_is_taken_away_while_it_is_made_is_made_again(place, monkeypatch):
    mkdir, taken = os.mkdir, []

    def taking(path, mode):
        mkdir(path, mode)
        if not taken and path == place.directory.parent:
            taken.append(path)
            os.rmdir(path)

    place.directory.rmdir()
    place.directory.parent.rmdir()
    monkeypatch.setattr(os, "mkdir", taking)
    place.make()
    assert taken
    assert place.directory.exists()


# --- the hand-over ----------------------------------------------------------------------------------


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


# --- life -------------------------------------------------------------------------------------------


def test_a_parent_reaps_its_children(parent, place, told):
    process = parent()
    told("1")
    # A zombie would be listed.
    eventually(lambda: not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    (found,) = forkserver.report(place.directory.parent.parent)
    assert (found.pid, found.forked, found.workers, found.exec_only) == (process.pid, 1, (), None)


def test_a_parent_ends_and_takes_its_files_away_when_it_has_been_idle(parent, place):
    assert parent(idle_s=0.1).wait(10) == 0
    assert not place.directory.parent.exists()


def test_a_parent_ends_when_its_directory_is_gone(parent, place):
    process = parent()
    place.socket.unlink()
    place.directory.rmdir()
    place.directory.parent.rmdir()
    assert process.wait(10) == 0
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
    assert process.wait(10) == -signal.SIGKILL
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
        why = stalled(place, handover.here(["x.py"]), lambda _: child.wait(10), answer=child.pid)
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
    pid = ask(place, handover.here([str(script)]), registered_s=20.0)
    assert (tmp_path / "connected").exists()
    assert not ended(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_child_that_dies_before_ray_knows_it_is_replaced_by_the_shim_at_once(parent, place, tmp_path):
    parent(NO_CONNECTION)
    script = tmp_path / "dies.py"
    script.write_text("import os; os._exit(9)")
    began = time.monotonic()
    with pytest.raises(Unavailable, match="died before Ray knew it"):
        ask(place, handover.here([str(script)]), registered_s=20.0)
    assert time.monotonic() - began < 10


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


def test_a_parent_that_cannot_load_says_why_and_the_shim_becomes_the_worker(short_path):
    """The shim as Ray runs it, with a worker program that says how it came to be."""
    worker = short_path / "default_worker.py"
    worker.write_text(f"import os; print(os.environ[{HOW_VARIABLE!r}])")
    (short_path / "session").mkdir()
    arguments = [f"--temp-dir={short_path}", "--session-name=session", "--node-id=n"]
    shim = Path(forkserver.__file__).with_name("shim.py")
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(shim), "", str(worker), *arguments],
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


# --- preloading -------------------------------------------------------------------------------------


def test_nothing_that_is_loaded_runs_or_stays_open_and_no_telemetry_or_logging_is_set_up():
    program = textwrap.dedent(
        """
        import gc, logging, os, random
        from dspool.forkserver.preload import preload, running
        handlers = list(logging.getLogger().handlers)
        assert preload(["litellm", "no_such_module"])["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
        assert running() is None
        assert gc.get_freeze_count() > 100_000
        assert logging.getLogger().handlers == handlers
        from opentelemetry import trace
        assert trace._TRACER_PROVIDER is None
        import dspy
        from dspool.programs import dspy_setup
        assert not dspy_setup._done
        assert dspy.settings.lm is None
        assert not dspy.clients.base_lm.GLOBAL_HISTORY
        # No pool of connections: they would be shared.
        gc.unfreeze()
        pools = {"_ConnectionPool", "_AsyncConnectionPool"}  # those of lm15
        assert not [held for held in gc.get_objects() if type(held).__name__ in pools]
        assert not [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
                    and os.readlink(f"/proc/self/fd/{fd}").startswith("socket")]
        """
    )
    # Without what modules loaded in this process have set.
    environ = {name: value for name, value in os.environ.items() if name != "LITELLM_LOCAL_MODEL_COST_MAP"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
    assert "no_such_module" in done.stderr


def test_what_opens_files_or_starts_threads_while_loading_keeps_workers_from_being_forked(tmp_path):
    (tmp_path / "opens.py").write_text("kept = open('/dev/zero')")
    (tmp_path / "threads.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    for module, why in (("opens", "/dev/zero"), ("threads", "threads run")):
        program = f"from dspool.forkserver.preload import preload; preload([{module!r}])"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Unavailable" in done.stderr
        assert why in done.stderr


def test_a_thread_is_noticed():
    # In a process of its own: libraries that other tests have loaded keep threads.
    program = textwrap.dedent(
        """
        import threading
        from dspool.forkserver import preload
        assert preload.running() is None
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        assert "threads run" in preload.running()
        stop.set()
        thread.join()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the choice -------------------------------------------------------------------------------------


def test_workers_are_forked_only_where_that_is_known_to_work():
    fork = PoolConfig(worker_start="fork")
    assert "shim.py" in forkserver.forking(fork, {}, platform="linux").py_executable
    assert forkserver.forking(PoolConfig(worker_start="exec"), {}).py_executable is None
    assert forkserver.forking(fork, {}, platform="darwin").why_not
    assert "pip" in forkserver.forking(fork, {"pip": ["x"]}, platform="linux").why_not


def test_the_parent_loads_what_the_configuration_imports_and_litellm_where_a_profile_needs_it():
    config = PoolConfig(
        warmup={"steps": [{"step": "import_modules", "modules": ["json", "csv"]}]},
        lm_profiles={"other": {"model": "openai/x", "engine": "litellm"}},
    )
    assert forkserver.modules_of(config) == ("json", "csv", "litellm")
    assert forkserver.command(("json", "csv")).endswith(" json,csv")


def test_a_worker_knows_how_it_was_started():
    assert forkserver.how_started({}) == "exec"
    with contextlib.suppress(KeyError):
        assert forkserver.how_started({HOW_VARIABLE: "exec: why"}) == "exec: why"
