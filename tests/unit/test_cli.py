"""What every command keeps to, and what `dspool config`, `status` and `sessions` print."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import httpx
import msgspec
import psutil
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli import service as service_module
from dspool.cli.run_file import RunFile, ServiceRun, this_process
from dspool.messages import PoolStatus, SessionInfo, WorkerStatus
from tests.unit.service_double import DEAD

run = CliRunner().invoke


def test_config_prints_value_and_source_of_each_key(tmp_path, monkeypatch):
    file = tmp_path / "pool.yaml"
    file.write_text("pool_size: 3\n")
    monkeypatch.setenv("DSPOOL_SLOTS_PER_WORKER", "5")
    shown = json.loads(run(app, ["config", "--json", "--config", str(file)]).stdout)
    assert shown["pool_size"] == {"value": 3, "source": f"file:{file}"}
    assert shown["slots_per_worker"] == {"value": 5, "source": "env:DSPOOL_SLOTS_PER_WORKER"}
    assert shown["service.port"]["source"] == "default"
    text = run(app, ["config", "--config", str(file)]).stdout
    assert any(line.split() == ["pool_size", "3", f"file:{file}"] for line in text.splitlines())


def test_status_says_that_nothing_runs_with_exit_code_3(tmp_path):
    ended = run(app, ["status", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 3
    assert ended.stdout == f"no service runs from {tmp_path}; start one with `dspool up`\n"
    RunFile(tmp_path).claim(DEAD)
    stale = run(app, ["status", "--state-dir", str(tmp_path), "--json"])
    assert (stale.exit_code, json.loads(stale.stdout)["stale"]) == (3, True)


def served(monkeypatch, tmp_path, answers):
    """A run file of this process, and a service that gives `answers` by path."""
    RunFile(tmp_path).claim(this_process("default"))
    RunFile(tmp_path).write(
        ServiceRun(
            pid=os.getpid(), pid_started=psutil.Process().create_time(), pool="default", url="http://s"
        )
    )

    def answer(request):
        status, body = answers[request.url.path]
        return httpx.Response(status, json=body)

    monkeypatch.setattr(service_module, "transport_of", lambda run: httpx.MockTransport(answer))


def test_status_shows_pool_and_workers(monkeypatch, tmp_path):
    worker = WorkerStatus("w0", 0, "ready", 7, "n", sessions=1, running=2)
    pool = msgspec.to_builtins(PoolStatus("default", "ready", True, 1, 1, 0, 1, (worker,), {"qa": 1}))
    pool = json.loads(json.dumps(pool))
    off = (403, {"code": "not_allowed", "detail": "enable_metrics is off"})
    alerts = (200, {"alerts": []})
    store = {"pinned": True, "place": "/var/lib/s.db", "node": "ab12cd34ef", "epoch": 3}
    answers = {"": (200, pool), "/metrics": off, "/alerts": alerts, "/store": (200, store)}
    served(monkeypatch, tmp_path, {f"/v1/pools/default{path}": answer for path, answer in answers.items()})
    ended = run(app, ["status", "--state-dir", str(tmp_path)])
    assert ended.exit_code == 0
    assert ended.stdout.startswith("pool default: ready, 1 of 1 worker\n")
    assert "programs: qa v1" in ended.stdout
    assert "sessions: SQLite file /var/lib/s.db on node ab12cd34 only, store epoch 3\n" in ended.stdout
    assert "w0" in ended.stdout
    seen = json.loads(run(app, ["status", "--state-dir", str(tmp_path), "--json"]).stdout)
    assert (seen["status"], seen["metrics"], seen["metrics_why"]) == (pool, None, "enable_metrics is off")


def test_sessions_lists_them_and_a_problem_is_one_line(monkeypatch, tmp_path):
    one = msgspec.to_builtins(SessionInfo("a\nb", "w0", 1, 1.0, 2.0, ("p",)))
    page = {"sessions": [one], "next_cursor": None}
    answers = {"/v1/pools/default/sessions": (200, page)}
    served(monkeypatch, tmp_path, answers)
    assert "a\\nb" in run(app, ["sessions", "--state-dir", str(tmp_path)]).stdout
    answers["/v1/pools/default/sessions"] = (503, {"code": "store_failed", "detail": "the store is away"})
    ended = run(app, ["sessions", "--state-dir", str(tmp_path)])
    assert (ended.exit_code, ended.stderr) == (1, "Error: the store is away\n")
    answers["/v1/pools/default/sessions"] = (200, {"sessions": [], "next_cursor": None})
    assert "no sessions" in run(app, ["sessions", "--state-dir", str(tmp_path)]).stdout


def test_a_path_that_the_locale_cannot_say_is_read_as_it_is(tmp_path):
    directory = tmp_path / "mÿ dir"
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "dspool.cli", "config", "--json", "--state-dir", str(directory)]
    done = subprocess.run(command, env=environ, capture_output=True, encoding="utf-8", check=True)
    assert json.loads(done.stdout)["state_dir"]["value"] == str(directory)


def test_every_command_explains_itself_and_version_prints_versions():
    assert "dspool 0." in run(app, ["version"]).stdout
    for name in ("up", "down", "status", "sessions", "config", "version"):
        assert run(app, [name, "--help"]).exit_code == 0


def test_the_command_line_imports_neither_ray_nor_dspy_nor_the_service_nor_a_database():
    slow = ("ray", "dspy", "dspool_serve", "sqlalchemy")
    code = f"import sys, dspool.cli; print([m for m in {slow} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
