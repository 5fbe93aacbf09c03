"""What the pool remembers for those who look at it: roll-outs, decisions, health checks, sessions that are searched."""

from __future__ import annotations

import pytest

from dspool.core.lifecycle.roster import WorkerRecord
from dspool.core.lifecycle.status import _worker
from dspool.errors import ProgramError
from dspool.messages import WorkerStatus
from dspool.store.store import SessionStore
from dspool.supervisor.canary import MAX_ROLLOUTS, Rollouts


class Wall:
    def __init__(self):
        self.now = 10.0

    def __call__(self):
        return self.now


def test_a_rollout_is_seen_while_it_runs_and_remembered_when_it_ended():
    wall = Wall()
    rollouts = Rollouts(wall)
    with rollouts.of("qa", 2, 1, "loading") as rollout:
        rollout.phase = "canary"
        (seen,) = rollouts.recent()
        rollout.phase = "rolling out"
        wall.now = 15.0
    assert (seen.phase, seen.ended_at) == ("canary", None)
    (last,) = rollouts.recent()
    assert (last.phase, last.began_at, last.ended_at) == ("done", 10.0, 15.0)


def test_a_rollout_that_lost_its_supervisor_has_failed_and_the_oldest_are_forgotten():
    kept = []
    rollouts = Rollouts(Wall(), keep=kept.append)
    for version in range(2, MAX_ROLLOUTS + 5):
        with rollouts.of("qa", version, 1, "loading", by="ada"):
            running = kept[-1]
    successor = Rollouts(Wall())
    successor.restore(running)
    interrupted, before = successor.recent()[:2]
    assert (interrupted.phase, interrupted.reason) == ("failed", "the supervisor ended meanwhile")
    assert (before.phase, before.by, before.ended_at) == ("done", "ada", 10.0)
    assert len(successor.recent()) == MAX_ROLLOUTS
    successor.restore([{"odd": 1}])
    assert len(successor.recent()) == MAX_ROLLOUTS


@pytest.mark.parametrize(
    ("phase", "raised", "ended", "reason"),
    [
        # Why the canary was judged so is known already.
        ("rolled back", ProgramError("it was rolled back"), "rolled back", "the verdict"),
        ("loading", ProgramError("no such module"), "failed", "no such module"),
        # The text of a foreign error may quote what a user sent.
        ("loading", ValueError("SECRET"), "failed", "ValueError"),
    ],
)
def test_a_rollout_that_failed_says_why(phase, raised, ended, reason):
    rollouts = Rollouts(Wall())

    def fail():
        with rollouts.of("qa", 2, 1, "loading") as rollout:
            rollout.phase, rollout.reason = phase, "the verdict"
            raise raised

    with pytest.raises(type(raised)):
        fail()
    (last,) = rollouts.recent()
    assert (last.phase, last.reason) == (ended, reason)


def test_the_last_health_check_is_told_in_wall_time():
    record = WorkerRecord("w", 0, "ready", 5.0, status=WorkerStatus("w", 0, "ready"), checked_at=7.0)
    assert _worker(record, overflow=False, wall_offset=1000.0).checked_at == 1007.0
    record.checked_at = None
    assert _worker(record, overflow=False, wall_offset=1000.0).checked_at is None


async def test_sessions_are_found_by_a_part_of_their_id_or_principal_and_nothing_in_it_is_a_wildcard(
    tmp_path,
):
    store = SessionStore(f"sqlite:///{tmp_path / 's.db'}")
    await store.open()
    try:
        for id, principal in (("ada/100%", "ada"), ("bob/1", "bob"), ("bob/_x", "bob")):
            await store.create("p", id, principal=principal)
        await store.create("other", "ada/2", principal="ada")

        async def found(text):
            return [info.id for info in (await store.list("p", containing=text))[0]]

        assert await found("ada") == ["ada/100%"]
        assert await found("%") == ["ada/100%"]
        assert await found("_") == ["bob/_x"]
        assert await found("'; DROP TABLE sessions") == []
        assert await found("") == ["ada/100%", "bob/1", "bob/_x"]
        assert await store.count("p") == 3
    finally:
        await store.close()
