"""The store as an actor: what it was told of its settings holds after Ray started it again."""

from __future__ import annotations

import pytest

from dspool.config import PoolConfig
from dspool.errors import QuotaExceeded
from dspool.runtime import store


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A store actor with this id and these limits on the sessions of a pool, as often as it is called."""

    async def begin(actor: str, most: int) -> tuple[store.StoreActor, PoolConfig]:
        monkeypatch.setattr(store, "_own_ids", lambda: (actor, ""))
        config = PoolConfig(
            state_dir=tmp_path / "state", enable_metrics=False, limits={"max_pool_sessions": most}
        )
        opened.append(store.StoreActor(config))
        return opened[-1], config

    opened: list[store.StoreActor] = []
    return begin


async def refused(actor: store.StoreActor, session: str) -> bool:
    try:
        await actor.ask("create", "default", session)
    except QuotaExceeded:
        return True
    return False


async def test_limits_that_were_changed_hold_after_a_restart_and_not_for_the_next_store(begun):
    first, config = await begun("one", 1)
    assert [await refused(first, "a"), await refused(first, "b")] == [False, True]
    await first.take_settings(config.override(limits={"max_pool_sessions": 3}))
    assert await refused(first, "b") is False
    await first.close()

    # Ray repeats the arguments of the first start.
    again, _ = await begun("one", 1)
    assert [await refused(again, "c"), await refused(again, "d")] == [False, True]
    await again.close()

    other, _ = await begun("two", 5)
    assert [await refused(other, one) for one in ("d", "e", "f")] == [False, False, True]
    await other.close()
