"""What stands between callers and workers is killed, and is there again soon."""

from __future__ import annotations

import signal
import time
from functools import partial

import httpx
import psutil
import pytest

from benchmarks.processes import processes_of
from tests.serve.haproxy_front import needs_haproxy
from tests.serve.test_service import START_S, Up
from tests.waiting import wait_until

pytestmark = [pytest.mark.serve, needs_haproxy]
AGAIN_S = 15.0
"""Serve by itself looks every ten seconds, three times, and then begins."""


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    started = Up(tmp_path_factory.mktemp("killed") / "state")
    yield started
    started.end()


def answers(up: Up) -> bool:
    try:
        return httpx.get(f"{up.url}/readyz", timeout=START_S).status_code == 200
    except httpx.TransportError:
        return False


def stands_alone(up: Up, role: str) -> bool:
    return answers(up) and len(processes_of(up.process.pid)[role]) == 1


@pytest.mark.alone
def test_what_stands_in_front_of_the_workers_is_there_again_soon_after_it_was_killed(up):
    # One after the other in one test: for its turn to be alone, each of several would wait.
    for role in ("haproxy", "haproxy manager", "ingress"):
        # After a reload the HAProxy before is there for a moment, too.
        wait_until(partial(stands_alone, up, role), START_S)
        (pid,) = processes_of(up.process.pid)[role]
        killed = psutil.Process(pid)
        began = time.monotonic()
        killed.send_signal(signal.SIGKILL)
        killed.wait(START_S)
        wait_until(lambda: answers(up), START_S)
        assert time.monotonic() - began < AGAIN_S, role
