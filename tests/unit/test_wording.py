"""One worker is one worker, wherever a number of them is said."""

from __future__ import annotations

import re

import pytest

from dspool.cli.overview import headline
from dspool.cli.warm import line_of
from dspool.core.autoscale.policies import POLICIES, Policy
from dspool.core.metrics.health import HealthInput, health
from dspool.core.wording import counted
from dspool.supervisor.warmup import WarmProgress


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 workers"), (1, "1 worker"), (1.5, "1.5 workers"), (1200, "1,200 workers")]
)
def test_a_number_of_things(number, said):
    assert counted(number, "worker") == said


def said_of_one():
    status = {"actual": 1, "desired": 1, "spares": 1, "state": "ready"}
    yield headline({"status": status, "pool": "p", "diagnosis": {"score": None}})
    yield line_of(WarmProgress(1, "begin", total=1))
    yield line_of(WarmProgress(1, "stage", index=0, total=1))
    yield from map(str, (*POLICIES, Policy(10.0, 1.0)))
    for ready in (0, 1):
        yield from (part.sentence for part in health(HealthInput(desired=1, ready=ready)).parts)


def test_one_worker_has_no_plural():
    told = list(said_of_one())
    assert [text for text in told if re.search(r"\b1 \w+s\b", text)] == []
    assert any("1 worker" in text for text in told)
