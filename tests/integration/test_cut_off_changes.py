"""A change of a pool's settings that is cut off, wherever, is finished by whoever asks for the pool next."""

from __future__ import annotations

import asyncio

import pytest
from harness import QUESTION, actors_of, full, pids, until

from dspool.errors import WorkerStartFailed
from dspool.messages import PoolStatus
from dspool.runtime import exchange, lifecycle, unfinished
from dspool_serve.ingress.held_pools import running_config

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


class CutOff(BaseException):
    """In place of the end of the process that makes the change."""


def cut_at(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Before the old supervisor is ended, before the new one is started, before the pool has its new size."""
    place, name, passes = {
        "end": (exchange, "_end", lambda calls, _: calls <= 0),
        # The first one only looks whether all fits.
        "start": (lifecycle, "launch", lambda calls, _: calls <= 1),
        "resize": (exchange, "ask_supervisor", lambda _, arguments: arguments[1] != "resize"),
    }[step]
    real, calls = getattr(place, name), 0

    def instead(*arguments, **named):
        nonlocal calls
        calls += 1
        if passes(calls, arguments):
            return real(*arguments, **named)
        raise CutOff

    monkeypatch.setattr(place, name, instead)


async def test_it_is_finished_with_its_own_settings_while_operations_go_on(start_pool, monkeypatch):
    pool = await start_pool(min_pool_size=1, max_pool_size=4)
    await full(pool)
    session = pool.session("kept")
    await session.set_variable("n", 1)
    config, old = pool.client.config, pids(pool)
    for step, changed in (
        ("end", {"pool_size": 3}),
        ("resize", {"pool_size": 2}),
        ("start", {"pool_size": 1, "slots_per_worker": 4}),
    ):
        config = config.override(**changed)
        with monkeypatch.context() as cut:
            cut_at(cut, step)
            with pytest.raises(CutOff):
                await exchange.exchange(config, ("supervisor",))
        assert (await pool.execute("qa", **QUESTION)).answer == "Paris"
        assert await running_config(pool.name) == config
        await exchange.until_rolled(config, (), 120.0, print)
        await full(pool, config.pool_size)
        # There is nothing left to finish.
        assert await asyncio.to_thread(unfinished.noted, pool.name) is None
    await until(lambda: not old.keys() & pids(pool).keys())
    status: PoolStatus = await pool.status()
    assert (status.desired, [one.slots for one in status.workers if one.state == "ready"]) == (1, [4])
    assert (await session.get_variable("n"))["value"] == 1


async def test_one_to_a_program_that_no_worker_can_load_says_so_at_once_and_those_from_before_serve(
    start_pool,
):
    pool = await start_pool()
    await full(pool)
    before = pool.client.config
    config = before.override(programs={"qa": {"spec": {"signature": "question ->"}}})
    await exchange.exchange(config, ("supervisor",))
    with pytest.raises(WorkerStartFailed, match="qa: a signature needs 1 to 64 outputs"):
        # Longer than a test may take.
        await exchange.until_rolled(config, (), 3600.0, print)
    assert (await pool.execute("qa", **QUESTION)).answer == "Paris"
    status: PoolStatus = await pool.status()
    assert (status.ready, "1 to 64 outputs" in status.cannot_start) == (True, True)
    await exchange.exchange(before, ("supervisor",))
    await exchange.until_rolled(before, (), 120.0, print)
    assert (await pool.status()).cannot_start == ""


async def test_nothing_of_it_is_left_for_a_pool_that_starts_anew_under_the_name(start_pool, monkeypatch):
    pool = await start_pool()
    with monkeypatch.context() as cut:
        cut_at(cut, "start")
        with pytest.raises(CutOff):
            await exchange.exchange(pool.client.config.override(slots_per_worker=4), ("supervisor",))
    assert await asyncio.to_thread(unfinished.noted, pool.name) is not None
    await lifecycle.dismantle(pool.client.config, timeout_s=1.0)
    assert await asyncio.to_thread(unfinished.noted, pool.name) is None
    assert actors_of(pool.name) == []
