"""A running service is changed while it is used: no request fails, and nothing that was acknowledged is missing."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import yaml

from tests.serve.http_load import HttpLoad
from tests.serve.test_service import ENDS_S, QA, QUESTION, SPEC, Up, dspool

pytestmark = pytest.mark.serve

SMALL = {"pool_size": 2, "max_pool_size": 4, "health_check_interval_s": 0.5, "health_check_timeout_s": 0.5}


class Load(HttpLoad):
    """Requests of which some change a session and read it again."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.lost = 0

    @property
    def failed(self) -> int:
        return sum(count for said, count in self.answers.items() if said != "200")

    async def ask(self, http: httpx.AsyncClient, number: int) -> None:
        base, count = f"/v1/pools/default/sessions/load{number}", 0
        await self._said(http.put(f"{base}/programs/p", json={"spec": SPEC}))
        while not self.ended.is_set():
            count += 1
            await self._said(http.post(QA, json={"inputs": QUESTION, "timeout_s": 30}))
            await self._said(http.put(f"{base}/variables/n", json={"value": count}))
            await self._said(http.post(f"{base}/programs/p/execute", json={"inputs": {"question": "Who?"}}))
            read = await self._said(http.get(f"{base}/variables/n"))
            self.lost += read is not None and read.json()["value"] != count

    async def _said(self, asked) -> httpx.Response | None:
        try:
            answer = await asked
        except httpx.TransportError as failed:
            self.answers[type(failed).__name__] += 1
            return None
        said = str(answer.status_code)
        self.answers[said if said == "200" else f"{said} {answer.text[:80]}"] += 1
        return answer if said == "200" else None


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changing")


@pytest.fixture(scope="module")
def changing(home: Path):
    written(home, SMALL)
    running = Up(home / "state", "--config", str(home / "pool.yaml"))
    yield running
    running.end()


def written(home: Path, document: dict) -> str:
    (home / "pool.yaml").write_text(yaml.safe_dump(document))
    return str(home / "pool.yaml")


def applied(home: Path, document: dict, *more: str, code: int = 0) -> dict:
    file = written(home, document)
    ended = dspool("apply", "-f", file, "--state-dir", str(home / "state"), "--json", *more)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return json.loads((ended.stdout if code == 0 else ended.stderr).splitlines()[-1])


def hows(facts: dict) -> dict[str, str]:
    return {one["setting"]: one["how"] for pool in facts["changes"] for one in pool["settings"]}


def test_a_dry_run_shows_what_differs_and_changes_nothing(changing, home):
    facts = applied(home, {**SMALL, "pool_size": 3, "slots_per_worker": 4}, "--dry-run")
    assert hows(facts) == {"pool_size": "in place", "slots_per_worker": "new workers"}
    assert (facts["applied"], len(changing.workers())) == (False, 2)
    assert applied(home, SMALL)["message"] == "nothing to change"


def test_what_cannot_change_is_refused_with_its_reason_and_nothing_is_changed(changing, home):
    before = changing.workers()
    said = applied(home, {**SMALL, "pool_size": 3, "store_url": "sqlite:////tmp/elsewhere.db"}, code=2)
    assert said["details"]["refused"] == ["store_url"]
    assert "nothing was changed" in said["message"]
    assert [one["id"] for one in changing.workers()] == [one["id"] for one in before]


@pytest.mark.long
def test_no_request_fails_while_a_service_is_changed_in_all_ways(changing, home):
    pids = {one["pid"] for one in changing.workers()}
    with Load(changing.url) as load:
        in_place = applied(home, {**SMALL, "pool_size": 3, "telemetry": {"log_level": "debug"}})
        assert hows(in_place) == {"pool_size": "in place", "telemetry.log_level": "in place"}
        assert pids < {one["pid"] for one in changing.workers()}

        several = {
            **SMALL,
            "pool_size": 3,
            "telemetry": {"log_level": "debug"},
            "pools": {"default": {"slots_per_worker": 4, "max_queue": 500}, "second": {"pool_size": 1}},
        }
        facts = applied(home, several)
        assert [(one["pool"], one["deed"]) for one in facts["changes"]] == [
            ("default", "change"),
            ("second", "add"),
        ]
        now = changing.workers()
        assert {one["slots"] for one in now} == {4}
        assert not pids & {one["pid"] for one in now}
        with changing.client() as http:
            asked = http.post(QA.replace("default", "second"), json={"inputs": QUESTION, "timeout_s": 30})
            assert asked.status_code == 200, asked.text
            assert [one["name"] for one in http.get("/v1/pools").json()["pools"]] == ["default", "second"]
        shown = dspool("status", "--pool", "second", "--state-dir", str(home / "state"), "--json")
        assert json.loads(shown.stdout)["status"]["name"] == "second"

        rolled = dspool("restart", "--rolling", "--state-dir", str(home / "state"), "--json")
        assert rolled.returncode == 0, rolled.stdout + rolled.stderr
        assert json.loads(rolled.stdout.splitlines()[-1])["restarted"] == {"default": 3, "second": 1}
        assert not {one["pid"] for one in now} & {one["pid"] for one in changing.workers()}

        del several["pools"]["second"]
        facts = applied(home, several)
        assert [(one["pool"], one["deed"]) for one in facts["changes"]] == [
            ("default", "keep"),
            ("second", "remove"),
        ]
        with changing.client() as http:
            assert http.get("/v1/pools/second").json()["code"] == "unknown_pool"
    print(
        f"{sum(load.answers.values())} requests, {load.failed} failed: {dict(load.answers)}; lost {load.lost}"
    )
    assert (load.failed, load.lost) == (0, 0), load.answers
    assert load.answers["200"] > 500


def test_the_service_ends_with_all_its_pools(changing, home):
    stopped = dspool("down", "--state-dir", str(home / "state"))
    assert stopped.returncode == 0, stopped.stderr
    assert changing.process.wait(ENDS_S) == 0
    assert changing.left() == []
