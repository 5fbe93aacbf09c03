"""`dspool up --detach` without Ray: what is seen of the service in the background, most of all when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dspool.cli import detached
from dspool.cli.output import Output
from dspool.cli.run_file import RunFile

ERROR = {"event": "error", "code": "config_error", "message": "no such program", "details": {}}


def detach(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dspool.cli", "up", "--detach", "--port", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


class Child:
    """A service that has said `said` and ends only after somebody looked `looks` times."""

    pid = -1

    def __init__(self, path: Path, said: str, *, code: int = 1, looks: int = 2) -> None:
        path.write_text(said)
        self.code, self.looks = code, looks

    def poll(self) -> int | None:
        self.looks -= 1
        return self.code if self.looks < 0 else None


def followed(tmp_path: Path, said: str, *, as_json: bool = False, code: int = 1) -> int:
    log = tmp_path / "up.log"
    child = Child(log, said, code=code)
    with log.open() as written:
        return detached._follow(child, written, RunFile(tmp_path), log, Output(as_json))


def test_an_error_that_is_read_before_the_service_has_ended_is_shown_with_its_log(tmp_path, capsys):
    assert followed(tmp_path, json.dumps(ERROR) + "\n", code=2) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"Error: no such program (its output is in {tmp_path}/up.log)"


def test_with_json_the_error_is_one_line_on_stderr(tmp_path, capsys):
    followed(tmp_path, f"stray\n{json.dumps(ERROR)}\n", as_json=True)
    said = capsys.readouterr()
    assert (said.out, json.loads(said.err)) == ("", {**ERROR, "log": str(tmp_path / "up.log")})


def test_with_json_a_service_that_ends_without_a_word_is_an_error_too(tmp_path, capsys):
    assert followed(tmp_path, "Segmentation fault\n", as_json=True, code=-signal.SIGSEGV) == 1
    assert "ended before it served (SIGSEGV)" in json.loads(capsys.readouterr().err)["message"]


def test_the_error_in_a_json_log_is_shown(tmp_path, capsys):
    line = {"level": "ERROR", "text": "no such program", "step": "error", "error": {"message": "as it is"}}
    followed(tmp_path, json.dumps(line), as_json=True)
    assert json.loads(capsys.readouterr().err)["message"] == "as it is"


def test_the_last_hundred_lines_of_plain_text_are_shown(tmp_path, capsys):
    followed(tmp_path, "".join(f"line {number}\n" for number in range(150)) + "\nwithout an end")
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["line 52", "line 53"]
    assert said[98:100] == ["", "without an end"]
    assert said[100].startswith("Error: the service ended before it served (exit code 1)")


def test_a_line_that_is_still_being_written_is_read_as_one(tmp_path):
    path = tmp_path / "up.log"
    with path.open("w") as service, path.open() as written:
        service.write('whole\n{"event": ')
        service.flush()
        assert list(detached._lines(written, to_the_end=False)) == ["whole"]
        service.write('"error"}\n')
        service.flush()
        assert list(detached._lines(written, to_the_end=False)) == ['{"event": "error"}']


def test_a_start_that_is_refused_says_why(tmp_path):
    ended = detach("--state-dir", str(tmp_path), "--json", "--pool-size", "99")
    assert (ended.returncode, ended.stdout) == (2, "")
    error = json.loads(ended.stderr)
    assert "max_pool_size" in error["message"]
    assert Path(error["log"]).name == "up.log"


@pytest.mark.parametrize("as_text", [(), ("--log-format", "text")])
def test_the_service_in_the_background_is_asked_for_json_whatever_the_terminal_gets(
    as_text, tmp_path, monkeypatch, capsys
):
    started = []
    real = subprocess.Popen

    def popen(command, **options):
        started.append(command)
        return real([sys.executable, "-c", ""], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    detached.run_detached(["up", "--detach", *as_text], RunFile(tmp_path), Output())
    assert started[0][1:] == ["-P", "-m", "dspool.cli", "up", *as_text, "--json"]


def test_a_program_in_the_current_directory_is_found_as_without_detach(tmp_path):
    """Each process of the service is told where, not only the first one, which `-m` shows the current directory."""
    (tmp_path / "shop_of_here.py").write_text("import os\nraise RuntimeError(os.environ['PYTHONPATH'])\n")
    config = {
        "programs": {"shop": {"import_path": "shop_of_here:Answer"}},
        "allowed_imports": ["shop_of_here"],
    }
    (tmp_path / "pool.yaml").write_text(json.dumps(config))
    ended = detach("--config", "pool.yaml", "--state-dir", "state", "--json", cwd=tmp_path)
    assert ended.returncode != 0
    message = json.loads(ended.stderr)["message"]
    assert f"{tmp_path}{os.pathsep}" in message, message
