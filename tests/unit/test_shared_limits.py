"""Limits of a token over several ingress processes that ask one place."""

from __future__ import annotations

import asyncio

import pytest

from dspool.core.admission.access import Token
from dspool.core.admission.rates import Allowances
from dspool.errors import RateLimited, StoreFailed
from dspool_serve.access.admission import Admission


class World:
    def __init__(self, doors=2):
        self.now = 0.0
        self.asked = 0
        self.away = False
        self.counted = Allowances()
        self.doors = [
            Admission(lambda: 99, max_waiting=9, shared=self.take, clock=self.clock, wall=self.clock)
            for _ in range(doors)
        ]

    def clock(self):
        return self.now

    async def take(self, token, limits, wanted):
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreFailed("away")
        return self.counted.take(token, limits, wanted, now=self.now, wall=self.now)

    async def passed(self, token, tries, doors=None):
        async def one(number):
            try:
                await self.doors[number % len(self.doors) if doors is None else doors].allow(token)
            except RateLimited:
                return 0
            return 1

        return sum(await asyncio.gather(*(one(number) for number in range(tries))))


def token(**limits):
    return Token(id="0" * 8, name="ada", role="caller", sha256="0" * 64, **limits)


async def test_two_processes_together_let_through_what_one_would():
    world, ada = World(), token(rate_per_s=2.0, burst=4.0)
    assert await world.passed(ada, 20) == 4
    world.now = 1.0
    assert await world.passed(ada, 20) == 2
    # The rate of one second, wherever the requests arrive.
    world.now = 2.0
    assert await world.passed(ada, 20, doors=1) == 2


async def test_a_quota_holds_over_all_of_them():
    world, ada = World(), token(quota_per_day=5)
    assert await world.passed(ada, 4, doors=0) == 4
    assert await world.passed(ada, 4, doors=1) == 1
    with pytest.raises(RateLimited) as refused:
        await world.doors[0].allow(ada)
    assert 0 < refused.value.retry_after_s <= 86_400


async def test_a_busy_token_is_not_asked_about_each_time():
    world, ada = World(), token(rate_per_s=1000.0, burst=1000.0)
    assert await world.passed(ada, 500) == 500
    assert world.asked <= 6


async def test_what_is_refused_is_not_asked_about_each_time_either():
    world, ada = World(doors=1), token(rate_per_s=1.0)
    assert await world.passed(ada, 100) == 1
    assert world.asked == 2


async def test_what_was_taken_and_not_used_is_no_burst_later():
    world, ada = World(), token(rate_per_s=100.0, burst=10.0)
    assert await world.passed(ada, 1, doors=0) == 1  # takes 10
    world.now = 5.0
    assert await world.passed(ada, 100) == 10


async def test_while_the_place_is_away_each_counts_for_itself():
    world, ada = World(), token(rate_per_s=1.0)
    world.away = True
    assert await world.passed(ada, 10) == 2
