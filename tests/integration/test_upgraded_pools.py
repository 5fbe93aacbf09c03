"""A pool's actors are replaced by those of another installation (here another parent of the same): nothing fails."""

from __future__ import annotations

import asyncio

import pytest
import ray
from harness import QUESTION, full, kill, pid_of, pids, until

from dspool.messages import PoolStatus
from dspool.runtime import exchange, unfinished
from dspool.runtime.cluster import ask, find_actor
from dspool.runtime.installed import StartCommand
from dspool_serve.ingress.held_pools import running_config

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


class Changes:
    """Sessions that are made, changed, read and ended all the while; what a store did twice would be seen."""

    def __init__(self, pool, tasks: int = 4) -> None:
        self.pool, self.over, self.done = pool, False, 0
        self._tasks = [asyncio.ensure_future(self._task(number)) for number in range(tasks)]

    async def _task(self, number: int) -> None:
        while not self.over:
            # Done twice, this would be a conflict, and the end of what is not there.
            name = f"load{number}-{self.done}"
            await self.pool.create_session(name)
            session = self.pool.session(name)
            for value in range(3):
                await session.set_variable("n", value)
                assert (await session.get_variable("n"))["value"] == value
            assert (await self.pool.execute("qa", **QUESTION)).answer == "Paris"
            await self.pool.end_session(name)
            self.done += 1

    async def end(self) -> int:
        self.over = True
        await asyncio.gather(*self._tasks)
        return self.done


async def actor_pids(pool: str) -> dict[str, str]:
    return {
        role: (await find_actor(pool, role))._actor_id.hex() for role in ("store", "supervisor", "metrics")
    }


async def test_no_operation_fails_and_nothing_is_done_twice_while_all_actors_are_replaced(start_pool):
    pool = await start_pool(min_pool_size=1, max_pool_size=4)
    await full(pool)
    kept = pool.session("kept")
    await kept.set_variable("n", 1)
    config, old, actors = pool.client.config, pids(pool), await actor_pids(pool.name)
    load = Changes(pool)
    for _ in range(2):
        await exchange.upgrade(config, StartCommand.of_this_process(config))
        await exchange.until_rolled(config, (), 240.0, print)
    assert await load.end() > 4
    assert not actors.items() & (await actor_pids(pool.name)).items()
    await until(lambda: not old.keys() & pids(pool).keys())
    status: PoolStatus = await pool.status()
    assert {one.start.partition(":")[0] for one in status.workers} == {"fork"}
    assert (await kept.get_variable("n"))["value"] == 1
    assert await pool.count_sessions() == 1


async def test_one_that_was_cut_off_as_the_store_had_handed_over_is_finished_by_whoever_asks_for_the_pool(
    start_pool, monkeypatch
):
    pool = await start_pool()
    await full(pool)
    await pool.session("kept").set_variable("n", 1)
    config = pool.client.config

    async def cut_off(name: str, role: str) -> None:
        # What is asked now waits for a store that nobody starts any more.
        ray.kill(await find_actor(name, role))
        raise asyncio.CancelledError

    with monkeypatch.context() as cut:
        cut.setattr(exchange, "_end", cut_off)
        with pytest.raises(asyncio.CancelledError):
            await exchange.upgrade(config, StartCommand.of_this_process(config))
    assert await asyncio.to_thread(unfinished.is_noted, pool.name)
    waiting = asyncio.ensure_future(pool.count_sessions())
    assert await running_config(pool.name) == config
    assert await waiting == 1
    assert not await asyncio.to_thread(unfinished.is_noted, pool.name)
    await exchange.until_rolled(config, (), 240.0, print)
    assert (await pool.session("kept").get_variable("n"))["value"] == 1


async def test_a_supervisor_that_ray_starts_again_starts_workers_of_the_same_installation(start_pool):
    pool = await start_pool()
    await full(pool)
    config = pool.client.config
    await exchange.upgrade(config, StartCommand.of_this_process(config))
    await exchange.until_rolled(config, (), 240.0, print)
    mark = await ask(await find_actor(pool.name, "supervisor"), "worker_mark")
    supervisor = await find_actor(pool.name, "supervisor")
    kill(await pid_of(supervisor))
    await pid_of(supervisor)  # the next one is there
    for worker in (await pool.status()).workers:
        await pool.restart(worker.id)
    await full(pool)
    assert {one.settings for one in (await pool.status()).workers if one.state == "ready"} == {mark}
