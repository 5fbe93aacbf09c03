"""A service on three machines, as `cluster.yaml` starts it."""

from __future__ import annotations

import httpx
import pytest

pytestmark = [pytest.mark.serve, pytest.mark.scenario]

QA = "/v1/pools/default/programs/qa/execute"
QUESTION = {"context": "Ray was started at Berkeley.", "question": "Where was Ray started?"}


def test_a_service_on_three_machines_serves(service):
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=120, trust_env=False) as http:
        answer = http.post(QA, json={"inputs": QUESTION})
        assert "Berkeley" in answer.json()["outputs"]["answer"], answer.text
        pool = http.get("/v1/pools/default").json()
    assert pool["actual"] == 3
    seen = service.nodes.seen()
    assert seen["nodes"] == sorted(machine.address for machine in service.nodes.machines)
