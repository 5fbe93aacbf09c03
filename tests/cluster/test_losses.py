"""What the loss of a machine may cost, on three nodes with a load: the bounds of docs/promises.md."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks import cluster
from tests.cluster.database import Database
from tests.cluster.possible import why_not

pytestmark = [pytest.mark.serve, pytest.mark.scenario, pytest.mark.alone]


@pytest.fixture(scope="module")
def losses():
    """Runs one trouble after the other on machines of this file's own, which it has to break."""
    if why := why_not() or Database.why_not():
        pytest.skip(why)
    with cluster.machines() as bench:
        asyncio.run(bench.whole())
        yield lambda name: asyncio.run(cluster.MEASURE[name](bench))


@pytest.mark.parametrize(
    ("trouble", "detected_s", "sessions_back_s"),
    [("power_off", 5.0, 8.0), ("freeze", 5.0, 10.0), ("partition", 5.0, 8.0)],
)
def test_a_node_that_is_gone_is_noticed_and_its_sessions_go_on_elsewhere(
    losses, trouble, detected_s, sessions_back_s
):
    seen = losses(trouble)
    assert seen["detected_s"] <= detected_s, seen
    assert seen["sessions_back_s"] <= sessions_back_s, seen
    assert (seen["hanging"], seen["lost_changes"], seen["stale_commits"]) == (0, 0, 0), seen
    assert seen["traffic_gap_s"] <= 2.0, seen


def test_nothing_acknowledged_is_lost_with_the_head(losses):
    seen = losses("head_loss")
    assert (seen["hanging"], seen["lost_changes"], seen["stale_commits"]) == (0, 0, 0), seen
    assert seen["traffic_gap_s"] <= 2.0, seen


def test_a_database_that_is_away_is_noticed_and_changes_go_on_once_it_is_back(losses):
    seen = losses("store_loss")
    assert seen["detected_s"] <= 5.0, seen
    assert seen["sessions_back_s"] <= 8.0, seen
    assert (seen["hanging"], seen["lost_changes"], seen["stale_commits"]) == (0, 0, 0), seen
    assert seen["traffic_gap_s"] <= 2.0, seen
