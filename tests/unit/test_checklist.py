"""`dspool preflight` and `postflight`: each item of the checklist is a named check with its result."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli.checklist import after, before

run = CliRunner().invoke
POINT = {
    "p50_s": 0.01,
    "p99_s": 0.1,
    "wait_p95_s": 0.0,
    "error_rate": 0.0,
    "throughput": 5.0,
    "utilization": 0.5,
}


def seen(
    *, p99_s=0.1, error_rate=0.0, cost=0.0, rss_mb=100.0, utilization=0.5, version=1, alerts=(), ready=2
):
    worker = {"state": "ready", "rss_mb": rss_mb}
    counters = {"by_outcome": {"ok": 100}, "cost_usd": cost}
    return {
        "status": {"workers": [worker] * ready, "programs": {"qa": version}, "desired": 2},
        "metrics": {
            **POINT,
            "p99_s": p99_s,
            "error_rate": error_rate,
            "utilization": utilization,
            "counters": counters,
        },
        "alerts": list(alerts),
        "problems": [],
    }


def levels(earlier, now):
    found = after.examine(after.figures(earlier) if earlier else None, after.figures(now), now)
    assert tuple(one.check for one in found) == after.CHECKS
    return {one.check: one.level for one in found if one.level != "ok"}


FIRING = {"name": "DspoolErrors", "state": "firing"}


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (seen(), {}),
        (seen(p99_s=0.12), {}),
        (seen(p99_s=0.13), {"latency": "warn"}),
        (seen(error_rate=0.002), {"errors": "fail"}),
        (seen(error_rate=0.001), {}),
        (seen(cost=3.0), {"cost": "warn"}),
        (seen(cost=2.0), {}),
        (seen(rss_mb=200.0), {"memory": "warn"}),
        (seen(utilization=0.9), {"settings": "warn"}),
        (seen(alerts=[FIRING]), {"alerts": "fail"}),
        (seen(alerts=[{**FIRING, "state": "pending"}]), {}),
        (seen(ready=1), {"health": "fail"}),
    ],
)
def test_what_became_worse_is_named(now, found):
    assert levels(seen(cost=2.0), now) == found


def test_without_figures_of_before_it_says_what_there_is_now():
    assert levels(None, seen()) == {}
    said = after.examine(None, after.figures(seen()), seen())
    assert any("preflight" in one.found for one in said)


def test_a_changed_program_is_written_down():
    now = seen(version=3)
    found = after.examine(after.figures(seen()), after.figures(now), now)
    assert found[-1].found == "qa v1 -> v3"


def test_a_pool_that_does_not_answer_fails():
    [found] = after.examine(None, after.figures({"status": None}), {"status": None})
    assert (found.check, found.level) == ("health", "fail")


def test_preflight_refuses_a_configuration_that_nothing_starts_with(tmp_path):
    (tmp_path / "pool.yaml").write_text("pool_size: 0\n")
    ended = run(app, ["preflight", "-f", str(tmp_path / "pool.yaml"), "--json"])
    assert ended.exit_code == 1
    facts = json.loads(ended.stdout)
    assert (facts["result"], facts["checks"][0]["check"]) == ("fail", "configuration")


def test_preflight_warms_a_worker_measures_it_and_leaves_nothing(tmp_path):
    (tmp_path / "pool.yaml").write_text(f"pool_size: 2\nstate_dir: {tmp_path / 'state'}\n")
    ended = run(app, ["preflight", "-f", str(tmp_path / "pool.yaml"), "--seconds", "0.5", "--json"])
    assert ended.exit_code == 0, ended.output
    facts = json.loads(ended.stdout)
    assert {one["check"] for one in facts["checks"]} == set(before.CHECKS)
    [measured] = [one["found"] for one in facts["checks"] if one["check"] == "benchmark"]
    assert "operations/s" in measured
    assert not (tmp_path / "state").exists()


def test_preflight_names_a_program_that_no_worker_could_load(tmp_path):
    document = {"allowed_imports": ["nowhere"], "programs": {"p": {"import_path": "nowhere:Program"}}}
    (tmp_path / "pool.yaml").write_text(json.dumps(document))
    ended = run(app, ["preflight", "-f", str(tmp_path / "pool.yaml"), "--json"])
    failed = [one for one in json.loads(ended.stdout)["checks"] if one["level"] == "fail"]
    assert (ended.exit_code, failed[0]["check"]) == (1, "imports")
