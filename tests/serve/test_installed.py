"""The wheel by itself, where a careful container runs it: an environment of its own in a path with a space and a letter
beyond ASCII, a read-only root, 64 MB of shared memory, HOME=/, a user whom nobody knows, process 1, `python -O`.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin

import httpx
import psutil
import pytest

from benchmarks import confined
from benchmarks.installed import UNUSED, build_wheel, install
from benchmarks.shipping import QUESTION, serving

pytestmark = [
    pytest.mark.serve,
    pytest.mark.long,
    pytest.mark.skipif(confined.flags() is None, reason="the system allows no namespaces"),
]
ROOT = "/dsp"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mÿ dir")
    python = install(build_wheel(directory / "wheel"), directory / "an environment", without=UNUSED)
    with serving(python, directory, "--root-path", ROOT, confine=True) as service:
        yield service
    # Its end was clean, or leaving the block had raised; and what it said is JSON to the last line.
    assert service.said[-1]["step"] == "stopped"


@pytest.fixture
def http(running):
    with httpx.Client(base_url=running.url, timeout=60, trust_env=False) as client:
        yield client


def test_it_answers_with_what_is_in_the_wheel_alone(running, http):
    answer = http.post("/v1/pools/default/programs/qa/execute", json={"inputs": QUESTION})
    assert answer.json()["outputs"]["answer"] == "Berkeley", answer.text
    environ = running.process.environ()
    assert "PYTHONPATH" not in environ
    assert environ["HOME"] == "/"


def test_its_pages_are_whole_below_the_path_of_a_proxy_that_leaves_it_on(http):
    for page in ("/dashboard", "/docs"):
        text = http.get(ROOT + page).text
        named = [
            link for link in re.findall(r'(?:src|href)="([^"#]+)"', text) if not link.startswith("data:")
        ]
        assert named
        for link in named:
            assert http.get(urljoin(f"{ROOT}{page}", link)).status_code == 200, link
    assert http.get(f"{ROOT}/openapi.json").json()["servers"] == [{"url": ROOT}]


def test_as_process_1_it_leaves_no_zombies_behind(running):
    assert not running.process.parent().name().startswith("python")
    (service,) = (process for process in running.process.children() if "up" in process.cmdline())
    assert service.status() != psutil.STATUS_ZOMBIE
    orphans = [process for process in running.process.children() if process != service]
    ended, _ = psutil.wait_procs(
        [process for process in orphans if process.status() == psutil.STATUS_ZOMBIE], timeout=60
    )
    assert all(process.status() != psutil.STATUS_ZOMBIE for process in orphans if process not in ended)
