"""Why a start fails: it says what `dspool doctor` finds, in the same words, for each row of the table of causes."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pickle
import select
import signal
import socket
import string
import subprocess
import sys
import tempfile
import textwrap
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from dspool import preflight
from dspool.causes import CAUSES, met
from dspool.cli import trial_pool, trial_process
from dspool.cli.address import checked_port
from dspool.cli.doctor import machine, service
from dspool.cli.doctor.findings import ok
from dspool.cli.run_file import RunFile, this_process
from dspool.cli.trial_import import refuse_what_cannot_be_imported
from dspool.config import PoolConfig
from dspool.errors import ConfigError, Conflict, PoolError, StoreFailed, WorkerStartFailed, from_wire
from dspool_serve.ingress import haproxy
from tests.small_disk import fill, small_disk


def same_words(failed: PoolError, finding, cause: str, level: str = "fail") -> None:
    assert (finding.cause, finding.level) == (cause, level), finding
    assert failed.details["cause"] == cause
    assert failed.message == f"{finding.found}; {finding.advice}"


def refused(config: PoolConfig) -> PoolError:
    with pytest.raises(PoolError) as failed:
        preflight.refuse_obstacles(config)
    return failed.value


def raised(call, *args, **kwargs) -> PoolError:
    with pytest.raises(PoolError) as failed:
        call(*args, **kwargs)
    return failed.value


# --- the table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_says_what_follows_and_what_to_do(name):
    cause = CAUSES[name]
    assert cause.found
    assert cause.meaning
    assert cause.remedy
    assert not cause.remedy.endswith((".", ";"))
    assert not next(iter(string.Formatter().parse(cause.remedy)))[1], "remedies have no facts"


def test_facts_are_in_the_errors_details_and_nothing_else_is():
    error = met("port_in_use", host="127.0.0.1", port=8000).error()
    assert isinstance(error, Conflict)
    assert error.details == {"host": "127.0.0.1", "port": 8000, "cause": "port_in_use"}
    assert type(met("no_space", path="/x").error(StoreFailed)) is StoreFailed


# --- where it listens ---------------------------------------------------------------------------------


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        config = PoolConfig(state_dir=tmp_path, service={"port": port})
        same_words(raised(checked_port, "127.0.0.1", port), service.port(config, None), "port_in_use")


def bound(monkeypatch, number: int) -> None:
    def refuse(self, address):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse)


@pytest.mark.parametrize(
    ("host", "number", "cause"),
    [
        ("127.0.0.1", errno.EACCES, "port_not_allowed"),
        ("192.0.2.1", errno.EADDRNOTAVAIL, "no_such_address"),
    ],
)
def test_a_port_or_an_address_that_cannot_be_had(tmp_path, monkeypatch, host, number, cause):
    bound(monkeypatch, number)
    config = PoolConfig(state_dir=tmp_path, service={"host": host, "port": 80})
    same_words(raised(checked_port, host, 80), service.port(config, None), cause)


def alone(flags: list[str], program: str) -> str:
    """What a program prints in namespaces of its own."""
    done = subprocess.run(
        ["unshare", *flags, sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip("the system allows no namespaces")
    assert done.returncode == 0, done.stderr
    return done.stdout


NETWORK = ["--user", "--map-root-user", "--net"] if os.geteuid() else ["--net"]


def test_a_loopback_interface_that_is_down_is_met_by_the_start_and_by_doctor():
    said = alone(NETWORK, """
        import json
        from dspool import preflight
        from dspool.cli.doctor import machine
        found = machine.loopback()
        print(json.dumps([found.cause, f"{found.found}; {found.advice}", preflight.loopback().error().message]))
    """)  # fmt: skip
    cause, doctors, starts = json.loads(said)
    assert (cause, doctors) == ("loopback_down", starts)


def test_no_port_left_for_processes(monkeypatch):
    bound(monkeypatch, errno.EADDRINUSE)
    found = preflight.loopback()
    assert found is not None
    same_words(found.error(), machine.loopback(), "no_local_ports")


def test_a_machine_without_ipv6():
    said = alone(NETWORK, """
        import json, pathlib
        for name in ("all", "lo"):
            pathlib.Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        from dspool.cli.address import checked_port
        from dspool.cli.doctor import service
        from dspool.config import PoolConfig
        config = PoolConfig(service={"host": "::1", "port": 0}, state_dir="/tmp/none")
        found = service.port(config, None)
        try: checked_port("::1", 0)
        except Exception as failed: print(json.dumps([found.cause, f"{found.found}; {found.advice}", failed.message]))
    """)  # fmt: skip
    cause, doctors, starts = json.loads(said)
    assert (cause, doctors) == ("no_ipv6", starts)


def test_a_kernel_without_ipv6(monkeypatch):
    def none(*about):
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", none)
    monkeypatch.setattr("dspool.cli.address._has_ipv6", lambda: False)
    assert raised(checked_port, "::1", 8000).details["cause"] == "no_ipv6"


# --- where it writes ----------------------------------------------------------------------------------


def test_a_full_state_directory(tmp_path):
    with small_disk(tmp_path) as disk:
        fill(disk)
        same_words(refused(PoolConfig(state_dir=disk)), service.state_directory(disk), "no_space")
        new = disk / "new"
        same_words(refused(PoolConfig(state_dir=new)), service.state_directory(new), "no_space")
        assert "reads on" in service.state_directory(disk).meaning


def test_a_read_only_state_directory(tmp_path):
    with small_disk(tmp_path, options=",ro") as disk:
        same_words(refused(PoolConfig(state_dir=disk)), service.state_directory(disk), "read_only")


def test_a_state_directory_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(**about):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(preflight.tempfile, "TemporaryFile", refuse)
    same_words(refused(PoolConfig(state_dir=tmp_path)), service.state_directory(tmp_path), "not_writable")


def test_a_disk_quota_that_is_used_up(tmp_path, monkeypatch):
    def refuse(**about):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(preflight.tempfile, "TemporaryFile", refuse)
    same_words(refused(PoolConfig(state_dir=tmp_path)), service.state_directory(tmp_path), "no_quota")


def test_a_state_directory_that_others_share():
    same_words(
        refused(PoolConfig(state_dir=Path("/tmp"))), service.state_directory(Path("/tmp")), "not_private"
    )


def test_a_file_in_the_place_of_the_state_directory(tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "state"
    same_words(refused(PoolConfig(state_dir=place)), service.state_directory(place), "state_taken")


def test_a_service_that_runs_from_the_state_directory_already(tmp_path):
    RunFile(tmp_path).claim(this_process("p"))
    error = raised(RunFile(tmp_path).claim, this_process("q"))
    assert (error.details["cause"], error.details["pid"]) == ("already_running", os.getpid())


def test_a_run_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with small_disk(tmp_path) as disk:
        fill(disk)
        assert raised(RunFile(disk).claim, this_process("p")).details["cause"] == "no_space"
        assert not (disk / "run.json").exists()


def test_a_temporary_directory_without_room_or_with_a_long_path(tmp_path, monkeypatch):
    config = PoolConfig(state_dir=tmp_path)
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(preflight, "chosen_temporary_directory", lambda: long)
    same_words(refused(config), machine.temporary_directory(), "temporary_too_long")
    gone = Path("/tmp/none-of-dspool")
    monkeypatch.setattr(preflight, "chosen_temporary_directory", lambda: gone)
    same_words(refused(config), machine.temporary_directory(), "temporary_not_writable")
    monkeypatch.setattr(preflight, "_SESSION", "")
    with small_disk(tmp_path, 1) as disk:
        fill(disk)
        monkeypatch.setattr(preflight, "chosen_temporary_directory", lambda: disk)
        same_words(refused(config), machine.temporary_directory(), "no_space")


def test_a_temporary_directory_from_which_no_program_may_be_run(tmp_path, monkeypatch):
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,size=1m", "tmpfs", directory], check=True)
    except (OSError, subprocess.CalledProcessError):
        directory.rmdir()
        pytest.skip("mounting takes root")
    try:
        monkeypatch.setattr(preflight, "chosen_temporary_directory", lambda: directory)
        config = PoolConfig(state_dir=tmp_path)
        preflight.refuse_obstacles(config)  # a pool without HTTP starts no program from there
        error = raised(partial(preflight.refuse_obstacles, serves=True), config)
        same_words(error, machine.temporary_directory(), "temporary_without_programs")
    finally:
        subprocess.run(["umount", directory], check=True)
        directory.rmdir()


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    config = PoolConfig(state_dir=tmp_path)
    same_words(refused(config), machine.working_directory(), "no_working_directory")


# --- what the machine has -----------------------------------------------------------------------------


def test_an_old_python():
    found = preflight.python((3, 10))
    assert found is not None
    same_words(found.error(), machine.python((3, 10)), "old_python")


def test_a_package_that_is_not_installed():
    def version_of(package):
        raise PackageNotFoundError(package)

    found = preflight.package_missing("ray", version_of)
    assert found is not None
    same_words(found.error(), machine.packages(version_of)[0], "package_missing")


def test_tls_without_haproxy(tmp_path, monkeypatch):
    monkeypatch.setattr(haproxy, "binary", lambda: None)
    error = raised(haproxy.environment, tmp_path, tls=(tmp_path / "cert", tmp_path / "key"))
    same_words(error, machine.haproxy(None, "service.tls_cert"), "no_haproxy")


def test_an_haproxy_that_may_not_be_run_is_none(tmp_path, monkeypatch):
    file = tmp_path / "haproxy"
    file.write_text("")
    monkeypatch.setattr(
        haproxy, "import_module", lambda name: SimpleNamespace(get_haproxy_binary=lambda: file)
    )
    assert haproxy.binary() is None


def test_too_few_open_files():
    program = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
        from dspool import preflight
        from dspool.cli.doctor import machine
        found = machine.open_files()
        assert preflight.open_files().error().message == f"{found.found}; {found.advice}"
        print(found.cause)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["few_open_files"]


def test_too_few_processes(monkeypatch):
    monkeypatch.setattr(preflight, "_process_limits", lambda: [("pids.max of the control group", 100, 20)])
    found = preflight.processes(4)
    assert found is not None
    assert found.facts["number"] == 100
    same_words(found.error(), machine.processes(4), "few_processes", "warn")
    monkeypatch.setattr(preflight, "_process_limits", lambda: [("ulimit -u", 10_000, 20)])
    assert machine.processes(4).level == "ok"


def test_a_memory_limit_below_what_the_pool_takes(monkeypatch):
    monkeypatch.setattr(preflight, "memory_limit", lambda: 256 * 2**20)
    found = preflight.memory(4)
    assert found is not None
    assert (found.facts["limit_mb"], found.facts["workers"]) == (256, 4)
    same_words(found.error(), machine.memory(4), "little_memory", "warn")
    monkeypatch.setattr(preflight, "memory_limit", lambda: None)
    assert machine.memory(400).level == "ok"


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/a/b", {"a/memory.max": "1000", "a/b/memory.max": "max"}),
        ("0::/of/the/host", {"memory.max": "1000"}),
        (
            "4:memory:/a\n0::/",
            {"memory/a/memory.limit_in_bytes": "1000", "memory/memory.limit_in_bytes": f"{2**63}"},
        ),
    ],
)
def test_limits_of_control_groups_are_found_in_both_versions_and_within_containers(
    tmp_path, monkeypatch, groups, files
):
    own = tmp_path / "cgroup"
    own.write_text(groups)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(preflight, "_CGROUPS", tmp_path)
    monkeypatch.setattr(preflight, "_OWN_GROUPS", own)
    assert preflight.memory_limit() == 1000


def test_shared_memory_that_is_missing(tmp_path, monkeypatch):
    place = tmp_path / "none"
    found = preflight.shared_memory(place)
    assert found is not None
    same_words(found.error(), machine.shared_memory(place), "no_shared_memory")


def test_a_home_that_cannot_be_written_to_and_a_poor_locale_are_nothing(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/none")
    assert machine.home().level == "ok"
    assert "nothing is written there" in machine.home().found
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert machine.locale().level == "ok"


# --- what it is told ----------------------------------------------------------------------------------


def test_a_program_that_cannot_be_imported(tmp_path):
    config = PoolConfig(
        state_dir=tmp_path,
        programs={"a": {"import_path": "no.such.module:Name"}},
        allowed_imports=["no.such"],
    )
    (finding,) = service.imports(config)
    same_words(raised(refuse_what_cannot_be_imported, config), finding, "not_importable")


SHOP = """
import dspy
class Answer(dspy.Module):
    def __init__(self, size: int): ...
    def forward(self, question): ...
class Keyed(Answer):
    def __init__(self): raise KeyError("SHOP_KEY")
def no_program(): ...
def set_up(): raise ValueError("no licence")
"""


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"programs": {"qa": {"spec": {"signature": "question ->"}}}}, "qa: a signature needs 1 to 64 outputs"),
        ({"programs": {"qa": {"spec": {"signature": "q -> a", "module": "Predikt"}}}}, "qa: unknown module"),
        ({"programs": {"qa": {"spec": {"signature": "q -> a"}, "adapter": "none"}}}, "qa: unknown adapter 'none'"),
        ({"programs": {"qa": {"import_path": "doctors_shop:Answer"}}}, "qa: kwargs do not fit doctors_shop:Answer"),
        ({"programs": {"qa": {"import_path": "doctors_shop:Keyed"}}}, "raised KeyError at doctors_shop:7"),
        ({"programs": {"qa": {"import_path": "doctors_shop:no_program"}}}, "doctors_shop:no_program gives no dspy.Mod"),
        ({"setup": "doctors_shop:set_up"}, "no licence"),
    ],
)  # fmt: skip
def test_what_no_worker_can_load_is_found_by_one_that_tries(tmp_path, monkeypatch, told, why):
    (tmp_path / "doctors_shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    config = PoolConfig(name="shop", state_dir=tmp_path / "state", allowed_imports=["doctors_shop"], **told)
    # What a trial does in its process; one that starts and imports for each would take two seconds.
    failed = from_wire(asyncio.run(trial_process._start(config)))
    assert why in failed.message
    monkeypatch.setattr(service, "try_start", Mock(side_effect=failed))
    same_words(failed, service.programs(config), "not_loadable")
    assert not (tmp_path / "state").exists()


BUSY = """
import os, subprocess, sys, time
import dspy
class Busy(dspy.Module):
    def __init__(self):
        super().__init__()
        print("hunter2")
        print("hunter2", file=sys.stderr, flush=True)
        os.system("echo hunter2")
        alive = os.open(os.environ["BUSY_ALIVE"], os.O_WRONLY)
        subprocess.Popen(["sleep", "3600"], pass_fds=[alive])
        subprocess.Popen(["sleep", "3600"], pass_fds=[alive], start_new_session=True, env={})
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(3600)
            os._exit(0)
        os.write(alive, b"began")
        try:
            input("?")
        except EOFError:
            time.sleep(float(os.environ.get("BUSY_S", "0")))
        else:
            raise ValueError("somebody answers")
    def forward(self, question): ...
"""


@pytest.fixture
def busy(tmp_path, monkeypatch):
    """A program that prints, asks and starts processes, in a pool without a temporary file; and what its processes hold
    open as long as one of them lives."""
    (tmp_path / "busy_shop.py").write_text(BUSY)
    os.mkfifo(tmp_path / "alive")
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        for name, value in (("TMPDIR", temporary), ("BUSY_ALIVE", str(tmp_path / "alive"))):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
        config = PoolConfig(
            state_dir=tmp_path / "state",
            programs={"qa": {"import_path": "busy_shop:Busy"}},
            allowed_imports=["busy_shop"],
        )
        alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
        yield SimpleNamespace(config=config, alive=alive, temporary=Path(temporary))
        os.close(alive)


def read(alive: int) -> bytes:
    """What comes next from there; nothing when nobody who could write lives."""
    assert select.select([alive], [], [], 120)[0], "it goes on"
    return os.read(alive, 100)


def test_what_a_program_prints_and_starts_in_a_trial_is_not_seen_and_ends_with_it(busy, capfd):
    assert service.programs(busy.config) == ok("programs", "a worker loads qa")
    assert capfd.readouterr() == ("", "")
    assert read(busy.alive) == b"began"
    assert read(busy.alive) == b""
    assert list(busy.temporary.iterdir()) == []


TRY = """
import pickle, sys
from dspool.cli.trial_pool import try_start
try:
    try_start(pickle.load(sys.stdin.buffer))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_nothing_is_left_of_a_trial_whose_command_is_ended(busy, monkeypatch, number, code):
    monkeypatch.setenv("BUSY_S", "3600")
    with subprocess.Popen(
        [sys.executable, "-c", TRY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as command:
        command.stdin.write(pickle.dumps(busy.config))
        command.stdin.flush()
        assert read(busy.alive) == b"began"
        command.send_signal(number)
        assert command.communicate() == (b"", None)
    assert command.returncode == code
    assert read(busy.alive) == b""
    assert list(busy.temporary.iterdir()) == []


def hurried(config: PoolConfig) -> PoolConfig:
    return config.override(init_timeout_s=1.0, warmup={"worker_deadline_s": 1.0})


def test_a_program_that_hangs_is_named_with_its_deadline(busy, monkeypatch):
    monkeypatch.setenv("BUSY_S", "3600")
    monkeypatch.setattr(trial_pool, "_NAMED_WITHIN_S", 10.0)
    finding = service.programs(hurried(busy.config))
    assert (finding.cause, finding.level) == ("", "fail")
    assert "not done within 1 s" in finding.found


def test_a_trial_that_does_not_end_is_ended_and_said_so(busy, monkeypatch):
    monkeypatch.setattr(trial_pool, "_NAMED_WITHIN_S", 0.0)
    monkeypatch.setattr(trial_pool, "_ENDED_WITHIN_S", 0.0)
    finding = service.programs(hurried(busy.config))
    assert (finding.cause, finding.level) == ("not_loadable", "fail")
    assert "did not end within 1 s" in finding.found
    assert list(busy.temporary.iterdir()) == []


def test_a_saved_state_that_is_not_there_is_found_as_well(tmp_path):
    program = {"spec": {"signature": "q -> a"}, "state_file": str(tmp_path / "none.json")}
    finding = service.programs(PoolConfig(state_dir=tmp_path, programs={"qa": program}))
    assert (finding.level, "none.json" in finding.found) == ("fail", True)


def test_programs_that_a_worker_loads_are_named_and_no_model_is_asked(tmp_path):
    (tmp_path / "key").write_text("hunter2")
    model = {"model": "openai/x", "endpoint": "http://127.0.0.1:1/v1", "api_key_file": str(tmp_path / "key")}
    config = PoolConfig(
        state_dir=tmp_path,
        programs={"qa": {"spec": {"signature": "q -> a"}}},
        lm_profiles={"m": model},
        warmup={"steps": [{"step": "probe", "program": "qa", "inputs": {"q": "?"}, "paid": True}]},
    )
    assert service.programs(config) == ok("programs", "a worker loads qa")


def test_a_key_with_white_space_is_named_and_not_shown():
    config = PoolConfig(lm_profiles={"m": {"model": "openai/x", "api_key_env": "THE_KEY"}})
    (finding,) = service.language_models(config, {"THE_KEY": "hunter2\n"})
    assert (finding.cause, finding.level) == ("bad_key", "fail")
    assert "THE_KEY holds white space" in finding.found
    assert "hunter2" not in str(finding)


@pytest.mark.parametrize("key", ["hunter2\n", " hunter2", "hun\tter2"])
def test_a_start_with_such_a_key_is_refused_in_the_same_words(monkeypatch, tmp_path, key):
    config = PoolConfig(
        state_dir=tmp_path, lm_profiles={"m": {"model": "openai/x", "api_key_env": "THE_KEY"}}
    )
    monkeypatch.setenv("THE_KEY", key)
    (finding,) = service.language_models(config)
    same_words(raised(preflight.refuse_obstacles, config), finding, "bad_key")


def test_a_start_without_the_key_of_a_profile_is_not(monkeypatch, tmp_path):
    monkeypatch.delenv("THE_KEY", raising=False)
    profiles = {"m": {"model": "openai/x", "api_key_env": "THE_KEY"}}
    preflight.refuse_obstacles(PoolConfig(state_dir=tmp_path, lm_profiles=profiles))


def test_a_model_that_nobody_serves(monkeypatch):
    profile = {"model": "openai/x", "endpoint": "http://127.0.0.1:1/v1"}
    (finding,) = service.language_models(PoolConfig(lm_profiles={"m": profile}), {})
    assert (finding.cause, finding.level) == ("model_unreachable", "fail")
    assert "127.0.0.1:1 does not answer" in finding.found


def test_a_model_behind_a_proxy_that_does_not_answer(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://user:hunter2@127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    profile = {"model": "openai/x", "endpoint": "http://model.example/v1"}
    (finding,) = service.language_models(PoolConfig(lm_profiles={"m": profile}), {})
    assert (finding.cause, finding.level) == ("proxy_unreachable", "fail")
    assert "through the proxy 127.0.0.1:1" in finding.found
    assert "hunter2" not in str(finding)


# --- a start that failed on its way -------------------------------------------------------------------


def test_what_came_into_its_way_since_it_began_is_named_first(tmp_path):
    with small_disk(tmp_path) as disk:
        fill(disk)
        failed = WorkerStartFailed("step ray: Ray did not come up", step="ray")
        error = preflight.explained(failed, PoolConfig(state_dir=disk))
        assert error.details["cause"] == "no_space"
        assert error.message.startswith(service.state_directory(disk).found)
        assert error.message.endswith("(step ray: Ray did not come up)")
        assert error.details["step"] == "ray"


def test_little_memory_is_tried_and_named_where_the_start_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "memory_limit", lambda: 256 * 2**20)
    config = PoolConfig(state_dir=tmp_path)
    preflight.refuse_obstacles(config)
    error = preflight.explained(WorkerStartFailed("step ray: Ray did not come up"), config)
    assert error.details["cause"] == "little_memory"


def test_a_failure_that_nothing_explains_stays_as_it_is(tmp_path):
    failed = WorkerStartFailed("step ray: Ray did not come up")
    assert preflight.explained(failed, PoolConfig(state_dir=tmp_path)) is failed
    known = ConfigError("x", cause="read_only")
    assert preflight.explained(known, PoolConfig(state_dir=Path("/proc/x"))) is known
