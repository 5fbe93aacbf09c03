"""`dspool where` names every place of a service; `--log-format json` says everything in lines that programs read."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli.json_log import JsonLog, follow
from dspool.cli.run_file import this_process
from dspool.cli.where import AUDIT_LOG, places
from dspool.config import load_config
from dspool.errors import ConfigError, StoreFailed
from dspool.telemetry.log_files import LogLine, LogPage
from dspool_serve.access.audit import NAME

URL = "postgresql://dspool:Zanzibar4471@db/dspool"


def test_where_names_files_and_sources_while_nothing_runs(tmp_path):
    file = tmp_path / "mÿ pool.yaml"
    file.write_text("name: shop\nservice: {tokens_file: /run/secrets/tokens}\n")
    done = CliRunner().invoke(
        app,
        ["where", "--json", "--config", str(file), "--state-dir", str(tmp_path / "state")],
        env={"DSPOOL_STORE_URL": URL, "DSPOOL_CONFIG": ""},
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    state = tmp_path / "state"
    assert found["running"] is False
    assert found["configuration"] == str(file)
    assert found["sources"] == ["cli", "env:DSPOOL_STORE_URL", f"file:{file}"]
    assert found["store"] == "postgresql://dspool:***@db/dspool"
    assert found["tokens_file"] == "/run/secrets/tokens"
    assert found["operations"] == str(state / "operations-shop.db")
    assert found["audit_log"] == str(state / NAME)
    assert AUDIT_LOG == NAME
    assert {found[key] for key in ("pid", "url", "temp_dir", "ray_session", "logs", "sockets")} == {None}
    assert "Zanzibar" not in done.output
    assert not state.exists(), "looking makes nothing"


def test_where_names_what_a_running_service_has(tmp_path):
    loaded = load_config(cli={"state_dir": str(tmp_path)}, environ={})
    session = tmp_path / "t" / "ray" / "session_latest"
    session.mkdir(parents=True)
    run = this_process("default")
    found = places(
        loaded, None, type(run)(pid=1, pid_started=0, pool="default", temp_dir=str(tmp_path / "t"))
    )
    assert found["running"] is True
    assert found["store"] == f"sqlite:///{tmp_path / 'sessions.db'}"
    assert found["logs"] == str(session / "logs")
    assert found["sockets"] == str(session / "sockets")
    for key in ("state_dir", "run_file", "operations", "metrics", "traces", "audit_log"):
        assert Path(found[key]).is_relative_to(tmp_path), key


def test_another_log_format_is_refused():
    done = CliRunner().invoke(app, ["up", "--log-format", "xml"])
    assert done.exit_code == 2
    assert "text or json" in done.output


def test_every_line_of_a_json_log_is_an_object_with_the_same_keys(capsys):
    log = JsonLog(True)
    log.progress("ray", "starting")
    log.progress("warning", "slow\nand more")
    log.ready({"url": "http://127.0.0.1:1", "pool": "p"})
    log.progress("drain", "ending")
    log.take(LogLine(2.0, "ERROR", "shop", "p-w0-1", "op-1", "it broke\n  | Traceback"))
    log.error(ConfigError("no"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["level"] for line in lines] == ["INFO", "WARNING", "INFO", "INFO", "ERROR", "ERROR"]
    assert all({"at", "level", "logger", "text"} <= set(line) for line in lines)
    assert lines[4]["operation_id"] == "op-1"


async def test_the_pools_lines_come_once_each_also_after_it_did_not_answer():
    old, first, second = (LogLine(at, "INFO", "shop", "w", None, f"line {at}") for at in (9.0, 10.0, 10.2))
    pages = [
        LogPage([first], 9.7, True, True),
        StoreFailed("away"),
        LogPage([first, second], 10.2, False, True),
        LogPage([second], 10.2, False, True),
    ]
    asked, taken = [], []

    class Pool:
        async def logs(self, *, after: float, limit: int) -> LogPage:
            asked.append(after)
            if not pages:
                raise asyncio.CancelledError
            if isinstance(page := pages.pop(0), LogPage):
                return page
            raise page

    async def pause() -> None:
        return None

    with pytest.raises(asyncio.CancelledError):
        await follow(Pool(), taken.append, since=old.at, pause=pause)
    assert taken == [first, second]
    assert asked == [9.0, 9.7, 9.7, 10.2, 10.2]
