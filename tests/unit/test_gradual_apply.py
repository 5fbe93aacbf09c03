"""How a pool goes step by step and back, with a cluster that is only a record of what it was asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from dspool.config import PoolConfig
from dspool.core.lifecycle.config_changes import changes
from dspool.core.lifecycle.gradual_watch import Course
from dspool.errors import ChangeWentBack, ConfigError, Conflict, PoolNotReady, StoreFailed
from dspool.messages import GradualStatus, PoolStatus, WorkerStatus
from dspool.runtime import exchange, metrics
from dspool_serve.ingress import gradual

BEFORE = PoolConfig(name="p", pool_size=2)
AFTER = BEFORE.override(slots_per_worker=4)
WORSE = SimpleNamespace(
    name="DspoolErrorRate", state="pending", severity="warning", value=0.07, when="> 0.05"
)
MILD = SimpleNamespace(name="Mild", state="firing", severity="info", value=1.0, when="> 0")
MISSING = SimpleNamespace(
    name="DspoolMetricsMissing", state="pending", severity="warning", value=0.0, when="== 0"
)


class Cluster:
    """One pool, whose workers come and go at once."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.config, self.percent = BEFORE, None
        self.alerts: list = []
        self.alerts_after: list = []
        """Once the exchange was made."""
        self.failing: set[tuple] = set()

    def take(self, snapshot) -> None:
        self.alerts = self.alerts_after if self.config is AFTER else self.alerts

    def _ask(self, *what) -> None:
        self.asked.append(what)
        if what in self.failing:
            raise StoreFailed("the disk is full")

    async def exchange(self, config, parts, code=None) -> None:
        self._ask("exchange", "after" if config is AFTER else "before")
        self.config = config

    async def gradual_step(self, config, percent) -> None:
        self._ask("step", "after" if config is AFTER else "before", percent)
        self.percent = percent

    async def until_rolled(self, config, old, patience_s, told) -> None:
        self._ask("rolled", "after" if config is AFTER else "before")

    async def mark_of(self, config) -> str:
        return "after" if config is AFTER else "before"

    async def heal(self, pool) -> None:
        self._ask("heal")

    async def status_of(self, pool) -> PoolStatus:
        workers = (WorkerStatus("a", 0, "ready", settings="before"),)
        stands = None if self.percent is None else GradualStatus(self.percent, 1, 2, True)
        return PoolStatus("p", "ready", True, 2, 2, 0, 1, workers, gradual=stands)


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    for name in ("exchange", "gradual_step", "until_rolled", "mark_of", "heal", "status_of"):
        monkeypatch.setattr(exchange, name, getattr(made, name))

    async def ask(self, method):
        return None

    monkeypatch.setattr(metrics.RemoteMetrics, "ask", ask)
    return made


def way(cluster, *steps, hold_s=0.4, report=lambda *_: None):
    [change] = changes({"p": BEFORE}, {"p": AFTER})
    gradually = gradual.Gradually(Course(steps or (10, 50, 100), hold_s), lambda pool: cluster)
    return gradual.GradualApply(BEFORE, AFTER, change, gradually, 30.0, report)


BACK = [
    ("heal",),
    ("step", "after", 0),
    ("step", "before", 100),
    ("exchange", "before"),
    ("rolled", "before"),
]


async def test_each_step_is_held_and_the_first_is_on_record_before_the_exchange(cluster):
    going = way(cluster)
    await going.run()
    assert cluster.asked == [
        ("step", "after", 10),
        ("exchange", "after"),
        ("step", "after", 10),
        ("step", "after", 50),
        ("step", "after", None),
        ("rolled", "after"),
    ]
    assert [one.percent for one in going.steps] == [10, 50, 100]
    assert [one.held_s >= 0.4 for one in going.steps] == [True, True, False]


async def test_an_alert_that_holds_since_the_change_takes_it_back_and_is_named(cluster):
    cluster.alerts_after = [WORSE, MILD]
    with pytest.raises(ChangeWentBack, match=r"at 10 %: alert DspoolErrorRate: 0.07 > 0.05") as back:
        await way(cluster).run()
    assert cluster.asked[3:] == BACK
    told = back.value.details["gradual"]
    assert (told["went_back"], told["percent"], [one["percent"] for one in told["steps"]]) == (True, 10, [10])


async def test_an_alert_that_held_before_and_one_that_only_informs_take_nothing_back(cluster):
    cluster.alerts = [WORSE]
    cluster.alerts_after = [WORSE, MILD]
    await way(cluster).run()
    assert cluster.asked[-1] == ("rolled", "after")


async def test_without_an_answer_of_the_metrics_nothing_is_begun(cluster):
    cluster.alerts = [MISSING]
    with pytest.raises(PoolNotReady, match="do not answer"):
        await way(cluster).run()
    assert cluster.asked == []


async def test_whatever_fails_on_the_way_goes_back(cluster):
    cluster.failing = {("step", "after", 50)}
    with pytest.raises(ChangeWentBack, match="at 50 %: the disk is full"):
        await way(cluster).run()
    assert cluster.asked[-5:] == BACK


async def test_one_that_cannot_go_back_says_so(cluster):
    cluster.failing = {("step", "after", 50), ("exchange", "before")}
    with pytest.raises(ChangeWentBack, match="is still on its way: the disk is full") as back:
        await way(cluster).run()
    assert back.value.details["gradual"]["went_back"] is False


async def test_an_interruption_in_a_hold_goes_back(cluster, monkeypatch):
    monkeypatch.setattr(gradual, "BEFORE_S", 0.0)
    holds = asyncio.Event()
    going = asyncio.create_task(
        way(cluster, hold_s=40.0, report=lambda _, text: "holding" in text and holds.set()).run()
    )
    await holds.wait()
    going.cancel()
    with pytest.raises(ChangeWentBack, match="it was interrupted"):
        await going
    assert cluster.asked[-5:] == BACK


def test_what_cannot_be_judged_or_taken_back_is_refused_before_anything_is_changed():
    planned = changes({"p": BEFORE}, {"p": AFTER})
    gradual.check(planned, {"p": AFTER}, ())
    with pytest.raises(ConfigError, match="enable_metrics is off"):
        gradual.check(planned, {"p": AFTER.override(enable_metrics=False)}, ())
    with pytest.raises(Conflict, match="stands half-way"):
        gradual.check(planned, {"p": AFTER}, ("p",))
    gradual.check(changes({"p": BEFORE}, {"p": BEFORE.override(pool_size=3)}), {"p": BEFORE}, ())
    # The same file again, of which nothing differs any more, would go to all workers without a look.
    with pytest.raises(Conflict, match="stands half-way"):
        gradual.check(changes({"p": AFTER}, {"p": AFTER}), {"p": AFTER}, ("p",))
