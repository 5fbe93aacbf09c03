"""`dspool doctor`: each check says what is there, what follows from it, and what to do."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspool.cli import app, doctor, overview
from dspool.cli.doctor import listeners, machine, service
from dspool.cli.doctor.findings import Finding, fail, ok, warn
from dspool.cli.doctor.listeners import OpenSocket
from dspool.cli.run_file import RunFile, ServiceRun, this_process
from dspool.config import PoolConfig
from dspool.errors import UnknownPool, WorkerStartFailed
from dspool.runtime import cluster, store_place
from dspool.runtime.forkserver import ParentReport, StartMethod
from dspool.store.place import node_of_store
from dspool.tokens import issue

run = CliRunner().invoke
GB = 2**30
FORK_SERVER, PROGRAMS = service.fork_server, service.programs


def levels(findings):
    return [found.level for found in findings]


def complete(finding):
    """Whoever reads it knows what follows and what to do."""
    assert finding.level == "ok" or (finding.meaning and finding.advice), finding
    return finding.level


@pytest.fixture
def quiet(monkeypatch):
    """All checks pass."""
    for name in ("temporary_directory", "shared_memory", "open_files", "loopback"):
        monkeypatch.setattr(machine, name, lambda name=name: ok(name, "fine"))
    monkeypatch.setattr(machine, "haproxy", lambda found, setting: ok("haproxy", "fine"))
    monkeypatch.setattr(service, "language_models", lambda config: [ok("language model", "fine")])
    monkeypatch.setattr(service, "fork_server", lambda config, load: ok("fork server", "fine"))
    monkeypatch.setattr(service, "port", lambda config, run: ok("port", "fine"))
    # It starts a pool in a process of its own, which takes two seconds for each pool of a file.
    monkeypatch.setattr(service, "programs", lambda config: ok("programs", "fine"))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


# --- the machine ------------------------------------------------------------------------------------


def test_an_old_python_fails():
    assert complete(machine.python((3, 10))) == "fail"
    assert complete(machine.python((3, 12))) == "ok"


def test_another_minor_version_of_ray_or_dspy_is_a_warning_and_none_at_all_a_failure():
    assert levels(machine.packages({"ray": "2.60.3", "dspy": "3.4.9"}.__getitem__)) == ["ok", "ok"]
    found = machine.packages({"ray": "2.61.0", "dspy": "4.4.0"}.__getitem__)
    assert [complete(one) for one in found] == ["warn", "warn"]

    def none(package):
        raise PackageNotFoundError(package)

    assert [complete(one) for one in machine.packages(none)] == ["fail", "fail"]


def test_a_correction_that_is_off_is_a_warning_that_says_why_and_what_follows():
    versions = {
        "ray": "2.60.3",
        "dspy": "3.4.9",
        "uvicorn": "0.54.0",
        "httptools": "0.6.4",
        "python": "3.12.1",
    }
    assert levels(machine.corrections({}, versions.__getitem__)) == ["ok"]
    (found,) = machine.corrections({"DSPOOL_CORRECTIONS": "-haproxy-leash"}, versions.__getitem__)
    assert complete(found) == "warn"
    assert (found.check, found.found) == ("correction haproxy-leash", "off: DSPOOL_CORRECTIONS leaves it out")
    (found, *_) = machine.corrections({}, (versions | {"uvicorn": "0.99"}).__getitem__)
    assert complete(found) == "warn"
    assert "0.99 is installed" in found.found
    assert levels(machine.corrections({"DSPOOL_CORRECTIONS": "nonsense"})) == ["fail"]


def test_switched_off_bytecode_is_a_warning():
    assert complete(machine.bytecode({"PYTHONDONTWRITEBYTECODE": "1"})) == "warn"
    assert complete(machine.bytecode({"PYTHONDONTWRITEBYTECODE": ""})) == "ok"


def test_a_temporary_directory_with_a_long_path_or_without_room_is_found(tmp_path):
    def disk(free):
        return lambda path: (100 * GB, (100 - free) * GB, free * GB)

    short = Path("/tmp")
    assert complete(machine.temporary_directory(short, disk(50))) == "ok"
    assert complete(machine.temporary_directory(short, disk(2))) == "warn"
    long = tmp_path / ("x" * 60)
    long.mkdir()
    assert complete(machine.temporary_directory(long, disk(50))) == "fail"
    assert complete(machine.temporary_directory(tmp_path / "missing", disk(50))) == "fail"


@pytest.mark.parametrize(("free", "level"), [(64 * 2**20, "warn"), (2 * GB, "ok")])
def test_little_shared_memory_is_a_warning(tmp_path, free, level):
    assert complete(machine.shared_memory(tmp_path, lambda path: (4 * GB, 0, free))) == level
    assert complete(machine.shared_memory(tmp_path / "none")) == "fail"


@pytest.mark.parametrize(
    ("limits", "level"),
    [((1024, 65536), "ok"), ((1024, 2048), "warn"), ((256, 512), "fail"), ((1024, -1), "ok")],
)
def test_what_counts_of_the_limit_of_open_files_is_how_far_it_may_be_raised(limits, level):
    assert complete(machine.open_files(limits)) == level


def test_a_sandbox_is_missed_only_where_programs_may_run_code(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert complete(machine.deno(needed=True)) == "fail"
    assert complete(machine.deno(needed=False)) == "ok"
    assert complete(machine.deno(needed=True, found="/bin/deno")) == "ok"


def test_no_haproxy_is_a_warning():
    assert complete(machine.haproxy(None)) == "warn"
    assert complete(machine.haproxy("/bin/haproxy")) == "ok"


# --- the configuration and the service --------------------------------------------------------------


def test_a_state_directory_must_be_one_that_can_be_written_to(tmp_path):
    assert complete(service.state_directory(tmp_path)) == "ok"
    assert complete(service.state_directory(tmp_path / "new" / "one")) == "ok"
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    assert complete(service.state_directory(tmp_path / "file" / "x")) == "fail"
    assert not list(tmp_path.glob(".dspool-doctor-*"))


def test_a_store_is_tried_and_a_new_one_is_not_created(tmp_path):
    config = PoolConfig(state_dir=tmp_path)
    assert complete(service.store(config)) == "ok"
    assert not (tmp_path / "sessions.db").exists()
    sqlite3.connect(tmp_path / "sessions.db").close()
    assert complete(service.store(config)) == "ok"
    (tmp_path / "sessions.db").write_bytes(b"this is no database" * 100)
    assert complete(service.store(config)) == "fail"


def test_a_sqlite_file_fails_for_a_cluster_of_several_nodes_and_is_a_warning_where_they_joined_later(
    tmp_path,
):
    config = PoolConfig(state_dir=tmp_path)
    assert complete(service.store(config, ["one"])) == "ok"
    found = service.store(config, ["one", "two"])
    assert complete(found) == "fail"
    assert "PostgreSQL" in found.advice
    assert complete(service.store(config, ["one", "two"], running=True)) == "warn"


def test_a_cluster_that_is_to_be_joined_is_looked_at(quiet, tmp_path, monkeypatch):
    def nodes_at(address):
        if address == "10.0.0.1:6379":
            return ["one", "two"]
        raise WorkerStartFailed(f"cannot join Ray at {address} (ConnectionError)")

    monkeypatch.setattr(cluster, "nodes_at", nodes_at)
    has_file: dict[str, str] = {}
    monkeypatch.setattr(
        store_place,
        "find_node_at",
        lambda address, pool, url: node_of_store(url, nodes_at(address), found=has_file),
    )

    def looked(address):
        command = ["doctor", "--state-dir", str(tmp_path), "--json", "--address", address]
        checks = json.loads(run(app, command).stdout)["checks"]
        return {one["check"]: one["level"] for one in checks if one["check"] in ("ray cluster", "store")}

    assert looked("10.0.0.1:6379") == {"ray cluster": "ok", "store": "fail"}
    assert looked("10.0.0.2:6379") == {"ray cluster": "fail", "store": "ok"}
    has_file["two"] = "an identity"
    assert looked("10.0.0.1:6379") == {"ray cluster": "ok", "store": "ok"}


def test_a_database_that_does_not_answer_fails_without_showing_its_password(tmp_path):
    # Port 1: nobody listens there.
    config = PoolConfig(state_dir=tmp_path, store_url="postgresql://user:hunter2@127.0.0.1:1/db")
    found = service.store(config)
    assert complete(found) == "fail"
    assert "hunter2" not in str(found)


def test_a_taken_port_fails_unless_the_service_itself_has_it(tmp_path):
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        number = holder.getsockname()[1]
        config = PoolConfig(state_dir=tmp_path, service={"port": number})
        assert complete(service.port(config, None)) == "fail"
        mine = ServiceRun(pid=1, pid_started=1.0, pool="p", url=f"http://127.0.0.1:{number}")
        assert complete(service.port(config, mine)) == "ok"
    assert complete(service.port(config, None)) == "ok"


def test_the_port_is_looked_for_at_the_address_that_a_start_listens_on():
    found = service.port(PoolConfig(service={"host": "[::1]", "port": 0}), None)
    assert "[" not in found.found
    assert (found.level, found.cause) in (("ok", ""), ("fail", "no_ipv6"))


@pytest.mark.parametrize("host", ["127.1", "0", "LOCALHOST", "fe80::1%lo", "[127.1]"])
def test_a_host_that_is_no_address_fails_and_tokens_are_not_what_it_lacks(host):
    config = PoolConfig(service={"host": host, "port": 0})
    for found in (service.port(config, None), service.access(config, {})):
        assert complete(found) == "fail"
        assert found.advice == "choose an IP address of this machine with --host"


def test_it_says_who_gets_in_and_what_keeps_a_start_from_letting_anybody_in(tmp_path):
    assert complete(service.access(PoolConfig(), {})) == "ok"
    network = {"host": "0.0.0.0"}
    assert complete(service.access(PoolConfig(service=network), {})) == "fail"
    tokens = tmp_path / "tokens.yaml"
    tokened = PoolConfig(service={**network, "tokens_file": str(tokens)})
    assert complete(service.access(tokened, {})) == "fail"
    issue(tokens, "me", "admin")
    assert service.access(tokened, {}).found == "1 token for 0.0.0.0"
    tokens.chmod(0o644)
    found = service.access(tokened, {})
    assert complete(found) == "fail"
    assert "chmod 600" in found.found


def test_it_takes_the_address_that_a_start_is_to_take(tmp_path):
    found = doctor.examine(None, tmp_path, host="10.1.2.3", port=0).findings
    (access,) = [one for one in found if one.check == "access"]
    assert (access.level, "10.1.2.3" in access.found) == ("fail", True)


def test_a_language_model_needs_its_key_and_its_library(monkeypatch):
    assert [complete(one) for one in service.language_models(PoolConfig())] == ["warn"]
    keyed = PoolConfig(lm_profiles={"m": {"model": "openai/x", "api_key_env": "THE_KEY"}})
    (found,) = service.language_models(keyed, {})
    assert complete(found) == "fail"
    assert "THE_KEY" in found.found
    (found,) = service.language_models(keyed, {"THE_KEY": "hunter2"})
    assert complete(found) == "ok"
    assert "hunter2" not in str(found)
    monkeypatch.setattr(service, "find_spec", lambda name: None)
    other = PoolConfig(lm_profiles={"m": {"model": "openai/x", "engine": "litellm"}})
    assert [complete(one) for one in service.language_models(other, {})] == ["fail"]


def test_the_fork_server_is_tried_and_says_why_it_cannot_be_had():
    fork = PoolConfig(worker_start="fork")
    assert complete(service.fork_server(PoolConfig(worker_start="exec"))) == "ok"
    assert complete(service.fork_server(fork, StartMethod("python shim.py"), lambda modules: "")) == "ok"
    found = service.fork_server(
        fork, StartMethod("python shim.py"), lambda modules: "threads run in the parent: x"
    )
    assert complete(found) == "warn"
    assert "threads run" in found.found
    assert complete(service.fork_server(fork, StartMethod(None, "this is darwin"))) == "warn"


@pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")
def test_what_keeps_workers_from_being_forked_is_found_by_loading_it(tmp_path, monkeypatch):
    (tmp_path / "opens_a_file.py").write_text("kept = open('/dev/zero')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    steps = [{"step": "import_modules", "modules": ["opens_a_file"]}, {"step": "load_programs"}]
    found = service.fork_server(PoolConfig(worker_start="fork", warmup={"steps": steps}))
    assert complete(found) == "warn"
    assert "/dev/zero" in found.found


def test_parents_that_hang_or_crashed_are_told_apart_from_those_that_work(tmp_path):
    found = service.parents(
        [
            ParentReport(tmp_path, 7, 3, (8, 9), None),
            ParentReport(tmp_path, None, 0, (), None),
            ParentReport(tmp_path, 7, 3, (), "the parent (process 7) did not answer in 5 s"),
        ]
    )
    assert [complete(one) for one in found] == ["ok", "warn", "warn"]
    assert "did not answer" in found[2].found


def seen(**changes):
    pool = {"ready": True, "state": "ready", "reason": "", "actual": 1, "workers": []}
    status = {**pool, **changes}
    return {"running": True, "url": "http://x", "pid": 1, "status": status, "metrics": {}}


def test_a_service_is_asked_whether_it_runs_answers_and_is_ready():
    def check(seen):
        return [complete(one) for one in service.running(seen)]

    assert check({"running": False, "stale": False}) == ["ok"]
    assert check({"running": False, "stale": True}) == ["warn"]
    assert check(seen()) == ["ok"]
    assert check(seen(ready=False, state="degraded", reason="crashes")) == ["fail"]
    assert check(seen(state="paused")) == ["warn"]
    assert check({**seen(), "metrics": None, "metrics_why": "no answer"}) == ["ok", "warn"]
    silent = {
        "running": True,
        "url": "http://x",
        "pid": 1,
        "status": None,
        "why": "no answer",
        "metrics": None,
    }
    assert check(silent) == ["fail"]


@pytest.mark.usefixtures("quiet")
def test_each_pool_of_a_running_service_is_looked_at(tmp_path, monkeypatch):
    def status(run_file, pool):
        if pool == "three":
            raise UnknownPool("there is no pool 'three'")
        return seen(ready=pool != "two", reason="crashes", workers=[{"pid": 1}])

    monkeypatch.setattr(overview, "status", status)
    monkeypatch.setattr(listeners, "report", lambda run, workers: asked.append(workers) or [])
    asked: list[list[int]] = []
    RunFile(tmp_path).claim(this_process("one"))
    file = tmp_path / "pool.yaml"
    file.write_text("pools: {one: {}, two: {}, three: {}}")
    found = [one for one in doctor.examine(file, tmp_path).findings if one.check == "service"]
    assert [(complete(one), one.found) for one in found] == [
        ("ok", "pool one: http://x is ready with 1 worker"),
        ("fail", "pool two: http://x is ready: crashes"),
        ("warn", "pool three: not there"),
    ]
    assert asked == [[1, 1]]
    found = doctor.examine(file, tmp_path, pool="one").findings
    assert [one.found for one in found if one.check == "service"] == ["http://x is ready with 1 worker"]


def test_workers_that_could_not_be_forked_are_counted_by_reason():
    starts = ["fork", "exec: it hung", "exec: it hung", "exec"]
    found = service.running(seen(workers=[{"start": start} for start in starts]))
    assert [complete(one) for one in found] == ["ok", "warn"]
    assert found[1].found == "2 workers were not forked: it hung"


# --- the command ------------------------------------------------------------------------------------


def test_all_well_is_exit_code_0_and_a_line_for_each_check(quiet, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "programs", PROGRAMS)
    done = run(app, ["doctor", "--state-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"ok"}
    assert lines[-1].split(maxsplit=2)[1:] == ["programs", "a worker loads qa"]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("level", "code"), [("warn", 0), ("fail", 1)])
def test_only_a_failure_is_exit_code_1(tmp_path, monkeypatch, level, code):
    made = {"warn": warn, "fail": fail}[level]
    monkeypatch.setattr(machine, "open_files", lambda: made("open files", "12", "few", "ulimit -n 65536"))
    done = run(app, ["doctor", "--state-dir", str(tmp_path), "--json"])
    assert done.exit_code == code
    said = json.loads(done.stdout)
    assert said["result"] == level
    assert {
        "check": "open files",
        "level": level,
        "found": "12",
        "meaning": "few",
        "advice": "ulimit -n 65536",
        "cause": "",
    } in said["checks"]
    text = run(app, ["doctor", "--state-dir", str(tmp_path)]).stdout
    assert "-> ulimit -n 65536" in text


@pytest.mark.usefixtures("quiet")
def test_a_configuration_that_is_refused_is_a_finding_and_the_machine_is_checked_all_the_same(tmp_path):
    file = tmp_path / "pool.yaml"
    file.write_text("pool_size: many")
    done = run(app, ["doctor", "--config", str(file), "--json"])
    assert done.exit_code == 1
    said = {found["check"]: found for found in json.loads(done.stdout)["checks"]}
    assert said["configuration"]["level"] == "fail"
    assert "pool_size" in said["configuration"]["found"]
    assert said["python"]["level"] == "ok"


@pytest.mark.usefixtures("quiet")
def test_each_pool_of_a_file_is_looked_at_and_the_machine_for_all_their_workers(tmp_path, monkeypatch):
    file = tmp_path / "pool.yaml"
    broken = "allowed_imports: [none_of_mine], programs: {qa: {import_path: 'none_of_mine:Answer'}}"
    file.write_text(f"pools: {{one: {{pool_size: 2}}, two: {{pool_size: 3, {broken}}}}}")
    asked = []
    for name in ("processes", "memory"):
        monkeypatch.setattr(machine, name, lambda workers, name=name: asked.append(workers) or ok(name, "x"))
    monkeypatch.setattr(service, "programs", lambda config: ok("programs", f"a worker of {config.name}"))

    def said(check):
        return [
            (one.level, one.found) for one in doctor.examine(file, tmp_path).findings if one.check == check
        ]

    first, second = said("imports")
    assert first == ("ok", "pool one: the configuration names no code")
    assert second[0] == "fail"
    assert second[1].startswith("pool two: ")
    assert asked == [5, 5]
    assert said("language model") == [("ok", "pool one: fine"), ("ok", "pool two: fine")]
    file.write_text("pools: {one: {}, two: {}}")
    assert said("programs") == [("ok", "pool one: a worker of one"), ("ok", "pool two: a worker of two")]
    file.write_text("pools: {one: {}}")
    assert said("programs") == [("ok", "a worker of one")]


@pytest.mark.usefixtures("quiet")
def test_the_store_of_each_pool_is_looked_at(tmp_path):
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 100)
    file = tmp_path / "pool.yaml"
    file.write_text(f"pools: {{one: {{}}, two: {{store_url: 'sqlite:///{tmp_path}/broken.db'}}}}")
    first, second = [one for one in doctor.examine(file, tmp_path).findings if one.check == "store"]
    assert (first.level, first.found) == (
        "ok",
        f"pool one: sqlite:///{tmp_path}/sessions.db (will be created)",
    )
    assert complete(second) == "fail"
    assert second.found.startswith(f"pool two: the session store {tmp_path}/broken.db is no database")


@pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")
def test_the_fork_server_of_each_pool_is_looked_at_once_for_those_that_load_the_same(
    quiet, tmp_path, monkeypatch
):
    monkeypatch.setattr(service, "fork_server", FORK_SERVER)
    tried = []

    def why_not_shared(modules):
        tried.append(modules)
        return "json keeps a file open" if "json" in modules else ""

    monkeypatch.setattr(service, "why_not_shared", why_not_shared)
    file = tmp_path / "pool.yaml"
    file.write_text(
        "worker_start: fork\npools: {one: {}, two: {preload: [json]}, three: {}, four: {worker_start: exec}}"
    )
    found = [one for one in doctor.examine(file, tmp_path).findings if one.check == "fork server"]
    assert [(complete(one), one.found) for one in found] == [
        ("ok", "pool one: workers are forked"),
        ("warn", "pool two: json keeps a file open"),
        ("ok", "pool three: workers are forked"),
        ("ok", "pool four: not used: worker_start is exec"),
    ]
    assert len(tried) == 2


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A current directory with a program."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(service, "programs", lambda config: ok("programs", ", ".join(config.programs)))
    (tmp_path / "told_shop.py").write_text("class Answer: ...")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("quiet", "shop")
@pytest.mark.parametrize("told", ["arguments", "file"])
def test_programs_in_the_current_directory_are_found_as_a_start_finds_them(tmp_path, told):
    command = ["doctor", "--state-dir", str(tmp_path / "state"), "--json"]
    if told == "arguments":
        command += ["qa=told_shop:Answer"]
    else:
        program = "allowed_imports: [told_shop]\nprograms: {qa: {import_path: 'told_shop:Answer'}}"
        Path("pool.yaml").write_text(program)
        command += ["--config", "pool.yaml"]
    said = {one["check"]: one["found"] for one in json.loads(run(app, command).stdout)["checks"]}
    assert (said["imports"], said["programs"]) == ("1 of 1 import paths", "qa")


@pytest.mark.usefixtures("quiet", "shop")
def test_a_program_that_a_start_would_refuse_is_a_finding(tmp_path):
    done = run(app, ["doctor", "--state-dir", str(tmp_path / "state"), "--json", "told_shop"])
    assert done.exit_code == 1
    (found,) = [one for one in json.loads(done.stdout)["checks"] if one["check"] == "configuration"]
    assert found["found"].startswith("'told_shop' names no program")


@pytest.mark.usefixtures("quiet")
def test_a_check_that_breaks_is_a_failure_and_not_the_end(tmp_path, monkeypatch):
    def breaks(*about, **more):
        raise RuntimeError("hunter2")

    monkeypatch.setattr(service, "store", breaks)
    found = doctor.examine(None, tmp_path).findings
    (store,) = [one for one in found if one.check == "store"]
    assert store == Finding(
        "store", "fail", "could not be checked: RuntimeError", store.meaning, store.advice
    )
    assert found[-1].check != "store"


@pytest.mark.usefixtures("quiet")
def test_a_living_service_that_does_not_answer_yet_fails(tmp_path):
    RunFile(tmp_path).claim(this_process("p"))
    (found,) = [one for one in doctor.examine(None, tmp_path).findings if one.check == "service"]
    assert complete(found) == "fail"
    assert "still starting" in found.found


def test_the_table_of_listeners_fits_80_columns_and_loses_nothing(monkeypatch):
    path = "/tmp/dspool-12345678/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
    sockets = [
        OpenSocket("unix", path, None, 4_194_304, "ray::ServeReplica:dspool-default:dspool-http"),
        OpenSocket("tcp", "127.0.0.1", 65535, 4_194_304, "ray::ServeReplica:dspool-default:dspool-http"),
    ]
    monkeypatch.setenv("COLUMNS", "80")
    lines = listeners.picture(listeners.recognised(sockets, 8000)).splitlines()
    assert max(map(len, lines)) <= 80
    assert path in "".join(lines)
    assert "127.0.0.1:65535  machine, ray::ServeReplica:dspool-default:dspool-http (4194304)" in lines
    monkeypatch.setenv("COLUMNS", "240")
    assert listeners.picture(listeners.recognised(sockets, 8000)).startswith("listens on")
