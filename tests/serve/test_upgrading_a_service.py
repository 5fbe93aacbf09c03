"""A running service becomes one of the next version while it is used: no request fails, nothing is missing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

import dspool
from dspool.cli.overview import status_text
from tests.installations import Installed
from tests.serve.test_changing_a_service import SMALL, Load
from tests.serve.test_service import ENDS_S, QA, QUESTION, Up

pytestmark = [pytest.mark.serve, pytest.mark.long]

NEXT = "99.0.0"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upgrading")


@pytest.fixture(scope="module")
def old(home: Path) -> Installed:
    return Installed(home / "old")


@pytest.fixture(scope="module")
def new(home: Path) -> Installed:
    return Installed(home / "new", NEXT)


@pytest.fixture(scope="module")
def served(home: Path, old: Installed):
    (home / "pool.yaml").write_text(yaml.safe_dump(SMALL))
    file = str(home / "pool.yaml")
    running = Up(home / "state", "--config", file, python=str(old.python), PYTHONPATH="")
    yield running
    running.end()


def said(installed: Installed, home: Path, *words: str, code: int = 0) -> dict:
    ended = installed.dspool(*words, "--state-dir", str(home / "state"), "--json")
    assert ended.returncode == code, ended.stdout + ended.stderr
    return json.loads((ended.stdout if code == 0 else ended.stderr).splitlines()[-1])


def versions(served: Up) -> set[str]:
    """What every part of the service says that it is."""
    with served.client() as http:
        pool = http.get("/v1/pools/default").json()
        # Several times: another process may answer.
        ingress = {http.get("/healthz").json()["version"] for _ in range(10)}
    return {pool["version"], *(worker["version"] for worker in pool["workers"]), *ingress}


def cut_off(installed: Installed, home: Path, step: str) -> None:
    """An upgrade whose process is killed as it says that it comes to `step`."""
    command = [str(installed.python), "-m", "dspool.cli", "upgrade", "--state-dir", str(home / "state")]
    with subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, text=True, env=installed.environ
    ) as process:
        assert process.stdout is not None
        reached = any(json.loads(line).get("step") == step for line in process.stdout)
        process.kill()
    assert reached


def test_an_upgrade_that_was_cut_off_is_finished_or_taken_back_and_no_request_fails(served, home, old, new):
    with Load(served.url) as load:
        cut_off(new, home, "workers")
        seen = said(old, home, "status")
        assert (seen["http_version"], seen["status"]["version"]) == (dspool.__version__, NEXT)
        assert "an upgrade is under way, or was cut off" in status_text(seen)
        refused = said(old, home, "apply", "-f", str(home / "pool.yaml"), code=2)
        assert "was cut off" in refused["message"]
        back = said(old, home, "upgrade")
        assert (back["upgraded"], back["after"]["dspool"]) == (True, dspool.__version__)
    print(
        f"{sum(load.answers.values())} requests, {load.failed} failed: {dict(load.answers)}; lost {load.lost}"
    )
    assert (load.failed, load.lost) == (0, 0), load.answers
    assert versions(served) == {dspool.__version__}


def test_no_request_fails_and_no_change_is_lost_while_a_service_becomes_one_of_the_next_version(
    served, home, old, new
):
    assert versions(served) == {dspool.__version__}
    assert said(old, home, "upgrade")["message"].startswith("nothing to upgrade")
    before = {one["pid"] for one in served.workers()}
    with Load(served.url) as load:
        planned = said(new, home, "upgrade", "--dry-run")
        assert (planned["upgraded"], planned["after"]["dspool"]) == (False, NEXT)
        assert versions(served) == {dspool.__version__}
        upgraded = said(new, home, "upgrade")
        assert (upgraded["upgraded"], upgraded["before"]["dspool"]) == (True, dspool.__version__)
        asked = sum(load.answers.values())
    print(f"{asked} requests, {load.failed} failed: {dict(load.answers)}; lost {load.lost}; {upgraded}")
    assert (load.failed, load.lost) == (0, 0), load.answers
    assert load.answers["200"] > 200
    assert versions(served) == {NEXT}
    assert not before & {one["pid"] for one in served.workers()}


def test_the_upgraded_service_is_changed_by_the_new_version_alone_and_heals_with_it(served, home, old, new):
    file = str(home / "pool.yaml")
    (home / "pool.yaml").write_text(yaml.safe_dump({**SMALL, "slots_per_worker": 4}))
    refused = said(old, home, "apply", "-f", file, code=2)
    assert NEXT in refused["message"]
    assert said(old, home, "upgrade", code=2)["message"].endswith("nothing was changed")
    assert said(new, home, "apply", "-f", file)["applied"] is True
    with served.client() as http:
        assert {one["slots"] for one in served.workers()} == {4}
        assert http.post(QA, json={"inputs": QUESTION, "timeout_s": 30}).status_code == 200
    assert versions(served) == {NEXT}


def test_the_process_that_started_it_still_ends_all_of_it(served, home, new):
    stopped = new.dspool("down", "--state-dir", str(home / "state"))
    assert stopped.returncode == 0, stopped.stderr
    assert served.process.wait(ENDS_S) == 0
    assert served.left() == []
