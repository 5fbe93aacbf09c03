"""The parent of a node of our own: before Ray, for all its workers, and gone with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspool.config import PoolConfig
from dspool.runtime import forkserver
from dspool.runtime.forkserver.node_parent import NODE_VARIABLE, NodeParent, node_load, node_settings
from dspool.runtime.forkserver.places import HOW_VARIABLE, Place
from dspool.runtime.node import lean_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")

WORKER = f"import os, sys; print(os.environ[{HOW_VARIABLE!r}], os.getppid(), *sys.argv[1:])\n"
REGISTERED = "from dspool.runtime.forkserver.child import registered; registered()\n"


@pytest.fixture
def parent(short_path):
    found = NodeParent(short_path, {})
    found.start(os.environ)
    yield found
    found.stop()


def said_by(parent, short_path, *arguments, job="01000000", worker=REGISTERED + WORKER):
    """What a worker prints that is started as the raylet starts it."""
    program = short_path / "default_worker.py"
    program.write_text(worker)
    setup = short_path / "setup_worker.py"
    setup.write_text("import sys; print('set up', *sys.argv[1:])")
    with (short_path / "out").open("w+") as out:
        subprocess.run(
            [*parent.command().split(), str(setup), str(program), *arguments],
            env={**os.environ, "RAY_JOB_ID": job},
            stdout=out,
            timeout=120,
            check=True,
        )
        out.seek(0)
        return out.read()


def test_workers_wait_for_the_parent_that_still_loads_and_are_forked_from_it(parent, short_path):
    # Asked at once: it has not loaded yet.
    how, ppid, *arguments = said_by(parent, short_path, "--language=PYTHON", "--node-id=n").split()
    assert how == "fork"
    assert (short_path / "forkserver" / "node" / "s").is_socket()
    assert int(ppid) != os.getpid()
    # `--language` was for Ray's program that sets up environments.
    assert arguments == ["--node-id=n"]


def test_a_worker_with_an_environment_of_its_own_is_set_up_by_ray(parent, short_path):
    context = '--serialized-runtime-env-context={"env_vars": {"A": "1"}}'
    assert said_by(parent, short_path, context).startswith("set up")
    assert said_by(parent, short_path, "--serialized-runtime-env-context={}").startswith("fork")


def test_workers_of_another_job_get_a_parent_of_their_own(parent, short_path):
    said = said_by(parent, short_path, job="02000000")
    # Ray named no session here, so there is none to be had.
    assert said.startswith("exec: Ray gave no temp-dir")


def test_the_parent_ends_with_the_raylet_that_it_was_started_for(short_path):
    parent = NodeParent(short_path, {})
    parent.start(os.environ)
    forks = parent._processes[1]
    raylet = parent.become_raylet(["/bin/sleep", "300"], os.environ)
    try:
        # It is the process whose id the parent has known from the start, and it has loaded meanwhile.
        assert said_by(parent, short_path).startswith("fork")
        raylet.kill()
        assert forks.wait(60) == 0
    finally:
        raylet.kill()
        raylet.wait()
        parent.stop()
    assert not Place(short_path / "forkserver" / "node").socket.exists()


def test_stop_ends_both_processes_also_before_there_is_a_raylet(parent):
    processes = list(parent._processes)
    parent.stop()
    assert [process.poll() is not None for process in processes] == [True, True]


def test_a_pool_needs_no_environment_where_the_node_has_loaded_what_it_needs(short_path):
    parent = NodeParent(short_path, {}, also=["dspool_console"])
    Place(parent.directory).make()
    (parent.directory / "load").write_text(json.dumps({"also": ["dspool_console"]}))
    environ = {NODE_VARIABLE: str(parent.directory)}
    plain, with_module = PoolConfig.default(), PoolConfig.default().override(preload=("json",))
    assert node_load(environ) == {}
    assert forkserver.start_method(plain, {}, environ=environ).by_node
    assert not forkserver.start_method(plain, {}, environ={}).by_node
    assert not forkserver.start_method(with_module, {}, environ=environ).by_node
    assert not forkserver.start_method(plain, {"env_vars": {"A": "1"}}, environ=environ).by_node


def test_a_process_that_was_forked_for_a_pool_forks_for_it_wherever_it_looks_for_modules():
    config = PoolConfig(preload=("json",))
    elsewhere = forkserver.command(forkserver.to_load(config, ["/somewhere", "/else"]))
    assert elsewhere != forkserver.command(forkserver.to_load(config))
    how = forkserver.start_method(config, {"py_executable": elsewhere}, environ={})
    assert (how.why_not, how.py_executable) == ("", forkserver.command(forkserver.to_load(config)))
    assert forkserver.start_method(config, {"py_executable": "/usr/bin/python3"}, environ={}).why_not


def test_the_raylet_is_told_of_the_shim_and_of_no_workers_before_their_time(short_path):
    parent = NodeParent(Path("/t"), {})
    command = [
        "raylet",
        f"--python_worker_command={sys.executable} /ray/setup_worker.py /ray/default_worker.py --x",
        "--num_prestart_python_workers=2",
        "--dashboard_agent_command=python agent.py --listen-port=2345",
        "--runtime_env_agent_command=python main.py",
    ]
    lean = lean_command(command, parent, nice="/bin/nice")
    assert lean == [
        "raylet",
        f"--python_worker_command={parent.command()} /ray/setup_worker.py /ray/default_worker.py --x",
        "--num_prestart_python_workers=0",
        "--dashboard_agent_command=/bin/nice -n 10 python agent.py --listen-port=2345",
        "--runtime_env_agent_command=/bin/nice -n 10 python main.py",
        "--dashboard_agent_listen_port=2345",
    ]
    assert lean_command(command, None, nice=None) == [*command, "--dashboard_agent_listen_port=2345"]


@pytest.mark.parametrize("name", ["RAY_enable_metrics_collection", "RAY_task_events_report_interval_ms"])
def test_what_only_rays_dashboard_shows_is_collected_with_that_dashboard_alone(name):
    assert node_settings({})[name] == "0"
    assert name not in node_settings({}, dashboard=True)


def test_what_the_operator_chose_for_ray_stays():
    chosen = dict.fromkeys(node_settings({}), "7")

    assert node_settings(chosen) == {}
    assert "MALLOC_ARENA_MAX" in node_settings({})
