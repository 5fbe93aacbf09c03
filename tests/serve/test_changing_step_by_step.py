"""A running service changed step by step, under load: it goes through, or back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.serve.http_load import HttpLoad
from tests.serve.test_service import ENDS_S, START_S, Up, dspool

pytestmark = pytest.mark.serve

ORDERS = "/v1/pools/default/programs/orders/execute"
SHOP = """
import dspy

class Orders(dspy.Module):
    def __init__(self, mood):
        super().__init__()
        self.mood = mood

    def forward(self, order: str) -> dspy.Prediction:
        if self.mood == "ill":
            raise ValueError("no order can be read")
        return dspy.Prediction(answer=self.mood)
"""


def document(mood: str, **more) -> dict:
    return {
        "pool_size": 2,
        "max_pool_size": 4,
        "health_check_interval_s": 1.0,
        "health_check_timeout_s": 1.0,
        "allowed_imports": ["gradual_shop"],
        "programs": {"orders": {"import_path": "gradual_shop:Orders", "kwargs": {"mood": mood}}},
        **more,
    }


class Load(HttpLoad):
    """Far fewer requests than the workers can do."""

    tasks = 4

    async def ask(self, http: httpx.AsyncClient, number: int) -> None:
        while not self.ended.is_set():
            answer = await http.post(ORDERS, json={"inputs": {"order": "1"}})
            said = answer.json()
            self.answers[said["outputs"]["answer"] if answer.status_code == 200 else said["code"]] += 1
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("gradual")
    (found / "gradual_shop.py").write_text(SHOP)
    return found


@pytest.fixture(scope="module")
def shop(home: Path):
    written(home, document("well"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(home), prepend=os.pathsep)
        running = Up(home / "state", "--config", str(home / "pool.yaml"))
        yield running
        running.end()


def written(home: Path, content: dict) -> str:
    (home / "pool.yaml").write_text(yaml.safe_dump(content))
    return str(home / "pool.yaml")


def arguments(home: Path, content: dict, *more: str) -> list[str]:
    return ["apply", "-f", written(home, content), "--state-dir", str(home / "state"), "--json", *more]


IMPATIENT = """
from dspool import cli
from dspool_serve.ingress import gradual
gradual.BEFORE_S = 0.5
cli.main()
"""
"""A `dspool` that looks shorter for what is wrong already."""


def applied(home: Path, content: dict, *more: str, code: int = 0) -> dict:
    command = [sys.executable, "-c", IMPATIENT, *arguments(home, content, *more)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return json.loads((ended.stdout if code == 0 else ended.stderr).splitlines()[-1])


def standing(home: Path) -> dict | None:
    shown = dspool("status", "--state-dir", str(home / "state"), "--json")
    return json.loads(shown.stdout)["status"]["gradual"]


def marks(shop: Up) -> set[str]:
    return {one["settings"] for one in shop.workers() if one["state"] == "ready"}


def held(home: Path, content: dict) -> subprocess.Popen:
    """An apply that holds at 10 %, and will for a long time."""
    command = [sys.executable, "-c", IMPATIENT, *arguments(home, content, "--gradual", "--hold-s", "3600")]
    applying = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert applying.stdout is not None
    for line in applying.stdout:
        if "holding for" in line:
            return applying
    raise AssertionError(applying.communicate())


def test_a_change_that_makes_operations_fail_goes_back_by_itself_and_the_old_workers_serve(shop, home):
    before = {one["id"] for one in shop.workers()}
    with Load(shop.url) as load:
        said = applied(home, document("ill"), "--gradual", "--hold-s", "8", code=1)
    assert said["code"] == "change_went_back"
    gradual = said["details"]["gradual"]
    assert (gradual["went_back"], gradual["percent"]) == (True, 10)
    assert "10 %" in said["message"]
    [step] = gradual["steps"]
    assert step["errors_new"] > 0
    print(f"{dict(load.answers)}, {step}")
    assert set(load.answers) == {"well", "program_error"}
    assert load.answers["program_error"] <= 0.1 * load.answers.total() + 1
    assert {one["id"] for one in shop.workers() if one["state"] == "ready"} == before
    assert standing(home) is None


def test_a_change_that_does_well_goes_through_all_its_steps(shop, home):
    before = marks(shop)
    with Load(shop.url) as load:
        facts = applied(home, document("better"), "--gradual", "--steps", "20,50,100", "--hold-s", "2")
    steps = facts["gradual"]["steps"]
    assert [(one["percent"], one["workers_new"], one["workers_old"]) for one in steps] == [
        (20, 1, 2),
        (50, 1, 1),
        (100, 2, 0),
    ]
    assert steps[0]["operations_new"] < steps[0]["operations_old"]
    assert facts["gradual"]["went_back"] is False
    assert set(load.answers) == {"well", "better"}, "no request failed"
    assert not marks(shop) & before


def test_ctrl_c_in_a_hold_goes_back(shop, home):
    before = marks(shop)
    applying = held(home, document("interrupted"))
    assert standing(home)["percent"] == 10
    applying.send_signal(signal.SIGINT)
    _, errors = applying.communicate(timeout=ENDS_S)
    assert applying.returncode == 1, errors
    said = json.loads(errors.splitlines()[-1])
    assert said["details"]["gradual"]["reason"] == "it was interrupted"
    assert standing(home) is None
    assert marks(shop) == before


def test_one_that_was_killed_stands_where_it_was_until_the_next_apply_finishes_it(shop, home):
    before = marks(shop)
    killed = held(home, document("best"))
    killed.kill()
    killed.communicate(timeout=ENDS_S)
    now = standing(home)
    assert (now["percent"], now["workers_new"], now["workers_old"]) == (10, 1, 2)
    shown = dspool("status", "--state-dir", str(home / "state"))
    assert "a change of settings stands at 10 %" in shown.stdout
    refused = applied(home, document("another"), "--gradual", code=2)
    assert "stands half-way" in refused["message"]
    applied(home, document("best"))
    assert standing(home) is None
    assert not marks(shop) & before
    with shop.client() as http:
        answer = http.post(ORDERS, json={"inputs": {"order": "1"}}).json()
    assert answer["outputs"]["answer"] == "best"


def test_steps_that_are_none_are_refused_and_nothing_is_changed(shop, home):
    before = [one["id"] for one in shop.workers()]
    for more, value in (
        (("--gradual", "--steps", "50,10,100"), "50,10"),
        (("--gradual", "--hold-s", "0"), "got 0"),
        (("--steps", "10,100"), "--steps is for --gradual"),
    ):
        assert value in applied(home, document("another"), *more, code=2)["message"]
    assert [one["id"] for one in shop.workers()] == before


def test_what_needs_no_new_workers_is_applied_at_once_and_it_says_so(shop, home):
    facts = applied(home, document("best", pool_size=3), "--gradual", "--hold-s", "3600")
    assert facts["gradual"]["steps"] == []
    assert "nothing of it needed steps" in facts["message"]
    assert len(shop.workers()) == 3


def test_what_is_sent_to_its_whole_process_group_ends_a_service_in_order(shop):
    """As `timeout` and systemd do, and a terminal that is closed. Ends `shop`: runs last."""
    os.killpg(shop.process.pid, signal.SIGTERM)
    assert shop.process.wait(ENDS_S) == 0
    assert shop.left() == []
    assert not (shop.state_dir / "run.json").exists()
