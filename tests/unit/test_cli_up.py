"""`dspool up` without Ray: what it prints, what it refuses before anything starts, and what fails while it starts."""

from __future__ import annotations

import json
import os
import socket

import pytest
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli.address import checked_host, checked_port
from dspool.cli.run_file import RunFile, this_process
from dspool.config import PoolConfig
from dspool.errors import ConfigError, Conflict, NotAllowed, WorkerStartFailed

run = CliRunner().invoke


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_up_serves_until_it_is_told_to_stop_and_leaves_no_run_file(service, tmp_path):
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path), "--pool-size", "3"])
    assert ended.exit_code == 0, ended.output
    assert "starting a local Ray" in ended.output
    assert "/dashboard\n" in ended.output
    assert "Ray's dashboard" not in ended.output
    assert service.log == ["stopped"]
    assert not (tmp_path / "run.json").exists()


def test_up_with_json_ends_its_output_with_one_line_of_facts(service, tmp_path):
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path), "--json", "--name", "first"])
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines[0] == {"event": "progress", "step": "ray", "text": "starting a local Ray"}
    last = lines[-1]
    assert last["event"] == "ready"
    assert last["url"].startswith("http://127.0.0.1:")
    assert (last["pool"], last["pid"], last["state_dir"]) == ("first", os.getpid(), str(tmp_path))
    assert last["ray_address"] == "127.0.0.1:6379"
    assert last["ray_token_path"] == "/tmp/dspool-fake/ray_token"


def test_up_with_rays_dashboard_says_where_it_is_and_how_to_log_in(service, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(RunFile, "write", lambda self, run: written.append(run))
    service.dashboard = "127.0.0.1:8265"
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path), "--ray-dashboard"])
    said = "Ray's dashboard: http://127.0.0.1:8265 (it asks for a token, which `dspool open --ray` prints)"
    assert said in ended.output
    assert {run.ray_dashboard for run in written} == {"http://127.0.0.1:8265"}


def test_what_fails_while_starting_is_one_line_and_is_taken_down(service, tmp_path):
    service.fail = WorkerStartFailed("no worker became warm: out of memory")
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 1
    assert ended.stderr == "Error: no worker became warm: out of memory\n"
    assert service.log == ["stopped"]
    assert not (tmp_path / "run.json").exists()


def test_an_unexpected_error_is_one_line_unless_debug(service, tmp_path):
    service.fail = ZeroDivisionError("oops\nmore")
    arguments = ["up", "--port", "0", "--state-dir", str(tmp_path)]
    ended = run(app, arguments)
    assert (ended.exit_code, ended.stderr) == (
        1,
        "Error: ZeroDivisionError: oops (--debug shows the traceback)\n",
    )
    assert isinstance(run(app, [*arguments, "--debug"]).exception, ZeroDivisionError)


def test_a_port_in_use_is_refused_before_anything_starts(service, tmp_path, taken_port):
    ended = run(app, ["up", "--port", str(taken_port), "--state-dir", str(tmp_path)])
    assert ended.exit_code == 2
    assert f"port {taken_port} on 127.0.0.1 is in use" in ended.stderr
    assert "--port" in ended.stderr
    assert service.log == []
    as_json = run(app, ["up", "--port", str(taken_port), "--state-dir", str(tmp_path), "--json"])
    assert json.loads(as_json.stderr)["code"] == "conflict"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::"])
def test_the_network_is_kept_out_while_there_are_no_tokens(service, tmp_path, host):
    ended = run(app, ["up", "--host", host, "--port", "0", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 2
    assert "no access tokens" in ended.stderr
    assert "127.0.0.1" in ended.stderr


def test_up_shows_where_the_time_of_its_start_went(service, tmp_path):
    arguments = ["up", "--port", "0", "--state-dir", str(tmp_path)]
    assert "ray     1.50 s" in run(app, [*arguments, "--timings"]).stdout
    assert "1.50 s" not in run(app, arguments).stdout
    ready = json.loads(run(app, [*arguments, "--json"]).stdout.splitlines()[-1])
    assert ready["timings"][0] == {"step": "ray", "began_s": 0.0, "took_s": 1.5}


def test_a_second_up_in_the_same_state_directory_is_refused(service, tmp_path):
    mine = this_process("default")
    RunFile(tmp_path).claim(mine)
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 2
    assert f"pid {mine.pid}" in ended.stderr
    assert "--state-dir" in ended.stderr
    assert RunFile(tmp_path).read() == mine


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pool-size", "99"],
        ["--pool-size", "x"],
        ["--port", "70000"],
        ["--config", "/nowhere.yaml"],
        ["--no-such"],
    ],
)
def test_a_bad_flag_is_refused_with_exit_code_2(service, tmp_path, arguments):
    ended = run(app, ["up", "--state-dir", str(tmp_path), *arguments])
    assert ended.exit_code == 2
    assert ended.stderr
    assert "Traceback" not in ended.output
    assert service.log == []


def test_a_state_directory_that_cannot_be_written_is_refused(service, tmp_path):
    (tmp_path / "file").write_text("")
    ended = run(app, ["up", "--port", "0", "--state-dir", str(tmp_path / "file" / "below")])
    assert ended.exit_code == 2
    assert "--state-dir" in ended.stderr


def test_hosts_and_ports_are_checked(taken_port):
    assert checked_host("localhost") == checked_host("127.0.0.1") == "127.0.0.1"
    assert PoolConfig(service={"host": "[::1]"}).service.host == "[::1]"
    assert checked_host("::1") == checked_host("[::1]") == checked_host("0:0:0:0:0:0:0:1") == "::1"
    assert checked_host("::ffff:127.0.0.1") == "127.0.0.1"
    assert checked_host("::", tokens=True) == "::"
    refused = (
        ("example.org", ConfigError),
        ("10.0.0.1", NotAllowed),
        ("::", NotAllowed),
        ("fd00::1", NotAllowed),
        ("fe80::1%lo", ConfigError),
        ("[::1]:8000", ConfigError),
    )
    for host, error in refused:
        with pytest.raises(error):
            checked_host(host)
    assert checked_port("127.0.0.1", 0) > 0
    assert checked_port("::1", 0) > 0
    with pytest.raises(Conflict):
        checked_port("127.0.0.1", taken_port)


def test_a_port_of_ipv6_that_is_taken_is_said():
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        with pytest.raises(Conflict):
            checked_port("::1", other.getsockname()[1])
