"""What a parent loads, and when workers are forked at all."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import textwrap

import pytest

from dspool.config import PoolConfig
from dspool.runtime import forkserver
from dspool.runtime.forkserver.places import HOW_VARIABLE
from dspool.supervisor.warmup import steps_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")


def test_nothing_that_is_loaded_runs_or_stays_open_and_no_telemetry_or_logging_is_set_up():
    program = textwrap.dedent(
        """
        import gc, logging, os, random
        from dspool.runtime.forkserver.preload import preload, running
        handlers = list(logging.getLogger().handlers)
        assert preload(["litellm", "no_such_module"]).variables["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
        assert running() is None
        assert gc.get_freeze_count() > 100_000
        assert logging.getLogger().handlers == handlers
        from opentelemetry import trace
        assert trace._TRACER_PROVIDER is None
        import dspy
        from dspool.programs import setup
        assert not setup._configured
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


def test_what_every_worker_loads_is_loaded_before_the_fork():
    program = textwrap.dedent(
        """
        import sys
        from types import SimpleNamespace
        from dspool.runtime.forkserver.preload import preload
        preload([])
        before = set(sys.modules)
        # When it connects to Ray, finds the pool's store by name, and meets its first client.
        from ray.util import serialization_addons
        serialization_addons.apply(
            SimpleNamespace(_register_cloudpickle_serializer=lambda *_, **__: None)
        )
        import dspool.runtime.store
        from dspool.wire.handshake import Handshake
        worker, client = Handshake(b"secret"), Handshake(b"secret")
        worker.keys(client.share, b"transcript")
        print(*sorted(set(sys.modules) - before))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "\n"), done.stdout + done.stderr


def test_what_a_worker_allocates_lies_in_no_hole_that_loading_left_and_filling_them_takes_little():
    program = textwrap.dedent(
        """
        import sys
        from dspool.runtime.forkserver import preload
        for size in (64, 160, 416):
            kept = [preload._piece(size, number) for number in range(8000)]
            holes = set(map(id, kept[::2]))
            del kept[::2]
        preload._fill_holes()
        own = [preload._piece(416, number) for number in range(200)]
        print(len(holes & set(map(id, own))), sum(map(sys.getsizeof, preload._ballast)) // 2**20)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["0", "1"], done.stdout + done.stderr


def test_children_draw_different_ids_of_ray_whatever_was_loaded(tmp_path):
    (tmp_path / "acting.py").write_text("import ray\n\n@ray.remote\nclass Acting:\n    pass\n")
    program = textwrap.dedent(
        """
        import os
        from dspool.runtime.forkserver.preload import preload
        assert not preload(["acting"], ["ray.serve._private.replica"]).failed
        from ray import ObjectRef
        for _ in range(2):
            if not (child := os.fork()):
                print(ObjectRef.from_random().hex(), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
        """
    )
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        # Else numpy starts threads.
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first != second


def test_a_module_that_exits_is_left_to_the_worker_and_does_not_end_the_parent(tmp_path):
    (tmp_path / "exits.py").write_text("import sys\nsys.exit('no licence')")
    (tmp_path / "interrupts.py").write_text("raise KeyboardInterrupt")
    program = (
        "from dspool.runtime.forkserver.preload import preload; "
        "preload(['exits', 'interrupts']); print('goes on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr
    assert "no licence" in done.stderr


SPOILERS = {
    "opens": ("kept = open('/dev/zero')", "/dev/zero"),
    "connects": ("import socket\nkept = socket.socketpair()", "socket:"),
    "threads": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "threads run",
    ),
    "torch": (
        "import types\ncuda = types.SimpleNamespace(is_initialized=lambda: True)",
        "CUDA context does not survive a fork",
    ),
}


@pytest.mark.parametrize("module", SPOILERS)
def test_a_module_that_must_not_be_loaded_before_a_fork_is_named_with_the_reason(tmp_path, module):
    code, why = SPOILERS[module]
    (tmp_path / f"{module}.py").write_text(code)
    program = (
        "from dspool.runtime.forkserver.preload import preload, Unshareable\n"
        f"try: preload(['csv', {module!r}])\nexcept Unshareable as refused: print(refused.module, refused)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith(f"{module} "), done.stderr
    assert why in done.stdout


def test_threads_that_end_with_the_import_keep_nothing_from_being_shared(tmp_path):
    (tmp_path / "builds.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as threads: index = list(threads.map(abs, range(100)))\n"
    )
    program = "from dspool.runtime.forkserver.preload import preload; print(*preload(['builds']).watched)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == str(tmp_path / "builds.py"), done.stderr


def test_a_thread_is_noticed():
    # In a process of its own: libraries that other tests have loaded keep threads.
    program = textwrap.dedent(
        """
        import threading
        from dspool.runtime.forkserver import preload
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
    assert "shim.py" in forkserver.start_method(fork, {}, platform="linux").py_executable
    assert forkserver.start_method(PoolConfig(worker_start="exec"), {}).py_executable is None
    assert forkserver.start_method(fork, {}, platform="darwin").why_not
    assert "pip" in forkserver.start_method(fork, {"pip": ["x"]}, platform="linux").why_not


def test_workers_are_forked_by_default_on_linux_and_nowhere_else():
    assert PoolConfig.default().worker_start == "fork"
    program = textwrap.dedent(
        """
        import importlib, sys
        import dspool.config.pool as pool
        for sys.platform in ("darwin", "win32", "freebsd14"):
            print(importlib.reload(pool).PoolConfig.default().worker_start)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["exec"] * 3, done.stderr


def test_the_parent_loads_what_the_configuration_imports_and_litellm_where_a_profile_needs_it():
    config = PoolConfig(
        warmup={"steps": [{"step": "import_modules", "modules": ["json", "csv"]}]},
        lm_profiles={"other": {"model": "openai/x", "engine": "litellm"}},
    )
    assert forkserver.modules_of(config) == ("json", "csv", "litellm")
    assert json.loads(shlex.split(forkserver.command({"modules": ["csv"]}))[-1]) == {"modules": ["csv"]}
    assert forkserver.to_load(PoolConfig.default()) == {}


def test_what_is_preloaded_comes_first_in_the_parent_and_in_the_steps_of_a_worker():
    steps = [{"step": "import_modules", "modules": ["json"]}]
    config = PoolConfig(preload=["shop.index", "csv"], warmup={"steps": steps})
    load = forkserver.to_load(config, ["", "/shop", "/shop", os.path.dirname(os.__file__), *sys.path])
    assert load["modules"] == ("shop.index", "csv", "json")
    assert load["path"][0] == "/shop"
    assert not any("site-packages" in entry or entry == "" for entry in load["path"])
    assert load["patient"]
    first, second, last = steps_of(config)
    assert (first.modules, second.modules, last.step) == (("shop.index", "csv"), ("json",), "load_programs")


def test_a_worker_knows_how_it_was_started():
    assert forkserver.how_started({}) == "exec"
    assert forkserver.how_started({HOW_VARIABLE: "fork"}) == "fork"
    assert forkserver.how_started({HOW_VARIABLE: "exec: why"}) == "exec: why"
