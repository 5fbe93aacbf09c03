"""The run file, by which the next command knows how far a service is, what is left of it, and whether it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli.run_file import RunFile, this_process
from tests.unit.service_double import DEAD

run = CliRunner().invoke


def test_the_run_file_is_for_its_owner_only_and_survives_rubbish(tmp_path):
    file = RunFile(tmp_path / "new")
    file.claim(DEAD)
    file.write(DEAD)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    file.path.write_bytes(b"\xffnot json")
    assert file.read() is None
    assert file.claim(DEAD) is None
    file.remove(DEAD.pid + 1)
    assert file.path.exists()
    file.remove(DEAD.pid)
    assert not file.path.exists()


def phases(service, monkeypatch):
    """What the run file says in each step of a service."""
    seen = []
    write = RunFile.write

    def written(self, one):
        seen.append((one.phase, one.temp_dir, one.url != ""))
        write(self, one)

    monkeypatch.setattr(RunFile, "write", written)
    return seen


def test_the_run_file_says_how_far_a_service_is_so_that_the_next_command_can_clear_it(
    service, tmp_path, monkeypatch
):
    seen = phases(service, monkeypatch)
    assert run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)]).exit_code == 0
    phases_seen = list(dict.fromkeys(seen))
    assert phases_seen == [("serving", "/tmp/dspool-fake", True), ("stopping", "/tmp/dspool-fake", True)]


def test_the_run_file_says_that_a_service_ends_as_soon_as_it_was_asked_to(service, tmp_path, monkeypatch):
    async def begin(self, report):
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append(RunFile(tmp_path).read().phase)
            self.changed()
            self.log.append(RunFile(tmp_path).read().phase)

    monkeypatch.setattr(service, "start", begin)
    assert run(app, ["up", "--port", "0", "--state-dir", str(tmp_path)]).exit_code == 0
    assert service.log == ["stopping", "stopping", "stopped"]


def test_what_is_not_cleared_yet_is_not_forgotten_by_one_that_dies_too(tmp_path):
    file = RunFile(tmp_path)
    file.claim(DEAD)
    file.claim(msgspec.structs.replace(DEAD, pid=2**22 - 2, temp_dir=None))
    file.claim(this_process("default"))
    assert [one.temp_dir for one in file.read().left] == ["/tmp/dspool-gone", None]


@pytest.fixture
def answering():
    """The URL of something that answers 200, as a service does that goes on without its `dspool up`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("changes", "goes_on"),
    [
        ({}, True),
        ({"joined": False}, False),
        ({"phase": "stopping"}, False),
        ({"phase": "starting"}, False),
        ({"url": "http://127.0.0.1:9"}, False),
    ],
)
def test_a_service_goes_on_without_its_up_only_on_anothers_cluster_and_while_it_answers(
    answering, tmp_path, changes, goes_on
):
    dead = msgspec.structs.replace(DEAD, joined=True, phase="serving", url=answering)
    RunFile(tmp_path).write(msgspec.structs.replace(dead, **changes))
    living = RunFile(tmp_path).living()
    assert (living is not None) is goes_on
