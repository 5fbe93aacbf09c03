"""A request that kills its workers kills no more of them than it may, and is refused from then on for a time."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from dspool.config import PoolConfig, RetryConfig
from dspool.core.dispatch.dispatcher import DispatchConfig, Dispatcher
from dspool.core.dispatch.suspects import Suspects, key_of
from dspool.errors import PoisonRequest, PoolError, WorkerLost
from dspool.messages import ExecuteProgram, Member, Operation, Result
from dspool.testing.host import LoopbackPool, Script


def member(worker_id: str) -> Member:
    return Member(worker_id=worker_id, ordinal=0, host="x", port=1, slots=4)


class World:
    """A dispatcher whose workers die at will."""

    def __init__(self, **config: Any) -> None:
        self.dispatcher = Dispatcher(DispatchConfig(jitter=0.0, **config))
        self.now, self.count, self.workers = 0.0, 0, 0
        self.deaths = 0
        self.held: dict[str, str] = {}
        self.errors: dict[str, PoolError] = {}
        self._new_worker()

    def _new_worker(self) -> None:
        self.workers += 1
        self.worker = f"w{self.workers}"
        self.dispatcher.members([member(self.worker)], now=self.now)
        self.settle()

    def settle(self) -> None:
        actions = self.dispatcher.take()
        for worker_id, tickets in actions.send.items():
            self.held |= {ticket.operation.id: worker_id for ticket in tickets}
        self.errors |= {end.ticket.operation.id: end.error for end in actions.ends if end.error is not None}

    def submit(self, text: str, *, idempotent: bool = True, principal: str | None = None) -> str:
        self.count += 1
        command = ExecuteProgram("p", {"text": text})
        operation = Operation(f"o{self.count}", command, 1000.0, principal=principal)
        self.dispatcher.submit(operation, idempotent=idempotent, sink=None, now=self.now)
        self.settle()
        return operation.id

    def die(self) -> None:
        self.deaths += 1
        self.dispatcher.lost(self.worker, "killed", now=self.now)
        self.settle()
        self.now += 5.0
        self.dispatcher.tick(self.now)
        self._new_worker()

    def end(self, operation_id: str) -> None:
        self.dispatcher.finished(self.held[operation_id], Result(operation_id, "w", {}), now=self.now)
        self.settle()


def test_a_request_that_may_be_repeated_kills_as_many_workers_as_it_has_tries_and_its_error_says_so():
    world = World(attempts=3)
    poison = world.submit("poison")
    while poison not in world.errors:
        world.die()
    assert world.deaths == 3
    error = world.errors[poison]
    assert type(error) is WorkerLost
    assert "try 3" in error.message
    assert "was not repeated" not in error.message
    assert error.details["attempts"] == 3


@pytest.mark.parametrize(("idempotent", "says"), [(False, "not declared idempotent"), (True, "left no time")])
def test_one_that_was_not_repeated_says_so_and_why(idempotent: bool, says: str):
    world = World(attempts=3, budget_burst=0, budget_ratio=0.0)
    lost = world.submit("x", idempotent=idempotent)
    world.die()
    assert "was not repeated" in world.errors[lost].message
    assert says in world.errors[lost].message


@pytest.mark.parametrize("idempotent", [True, False])
def test_the_same_request_is_refused_once_it_killed_that_many_and_again_taken_after_its_time(
    idempotent: bool,
):
    world = World(attempts=3, refuse_poison_s=300.0)
    while world.deaths < 3:
        world.submit("poison", idempotent=idempotent)
        world.die()
        if idempotent:
            world.die()
            world.die()
    with pytest.raises(PoisonRequest, match="last 3 workers") as refused:
        world.submit("poison")
    assert 0 < refused.value.details["retry_after_s"] <= 300.0
    # Its inputs stand nowhere in the refusal, and others are served.
    assert "text" not in str(refused.value.to_wire())
    world.end(world.submit("another"))
    world.now += 300.0
    world.end(world.submit("poison"))


def test_who_ran_beside_it_is_not_blamed_for_long():
    world = World(attempts=3)
    world.submit("poison")
    for beside in ("a", "b", "c"):
        world.submit(beside, idempotent=False)
        world.die()
    for beside in ("a", "b", "c"):
        world.end(world.submit(beside))
    with pytest.raises(PoisonRequest):
        world.submit("poison")


def test_what_a_worker_survives_is_cleared():
    world = World(attempts=2)
    for _ in range(5):
        world.submit("popular", idempotent=False)
        world.die()
        world.end(world.submit("popular"))


def test_one_that_many_callers_run_at_once_counts_once_a_death():
    world = World(attempts=2)
    for _ in range(4):
        world.submit("popular", idempotent=False)
    world.die()
    world.end(world.submit("popular"))


def test_another_version_of_a_program_gets_a_chance_of_its_own():
    world = World(attempts=1)
    world.submit("poison", idempotent=False)
    world.die()
    world.dispatcher.programs_changed()
    world.end(world.submit("poison"))


def test_with_nothing_to_refuse_for_none_is_refused():
    world = World(attempts=1, refuse_poison_s=0.0)
    for _ in range(5):
        world.submit("poison", idempotent=False)
        world.die()


def test_memory_is_bounded_and_sessions_are_apart():
    suspects = Suspects(1, 10.0)
    for number in range(3000):
        suspects.died([str(number).encode()], float(number) / 1000)
    assert len(suspects._known) == 1024
    command = ExecuteProgram("p", {})
    keys = {key_of(Operation("a", command, 1.0, session)) for session in (None, "s", "t")}
    assert len(keys) == 3
    assert key_of(Operation("a", command, 1.0)) == key_of(Operation("b", command, 9.0))


def test_nobody_has_the_request_of_another_refused():
    world = World(attempts=2)
    for number in range(2):
        world.submit("popular", idempotent=False, principal="eve")
        world.submit(f"poison {number}", idempotent=False, principal="eve")
        world.die()
    with pytest.raises(PoisonRequest):
        world.submit("popular", principal="eve")
    world.end(world.submit("popular", principal="ada"))


def test_the_refusal_crosses_processes():
    error = PoisonRequest("refused", retry_after_s=1.0)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.message, back.details) == (PoisonRequest, "refused", {"retry_after_s": 1.0})


async def test_a_real_client_refuses_what_killed_its_workers():
    config = PoolConfig(name="t", retry=RetryConfig(attempts=2, backoff_s=0.0))
    async with LoopbackPool(config) as pool:
        started: list[str] = []

        async def hang(inputs: Any, session: Any, emit: Any) -> Any:
            started.append("x")
            await asyncio.Event().wait()

        pool.programs["hang"] = Script("async", hang)
        await pool.start_worker()
        client = await pool.start_client()
        asked = asyncio.create_task(client.run(ExecuteProgram("hang", {}), idempotent=True))
        for number in range(2):
            while len(started) <= number:  # noqa: ASYNC110  (it starts on the other side)
                await asyncio.sleep(0)
            if number == 0:
                await pool.start_worker()
            await pool.kill(f"w{number}")
        with pytest.raises(WorkerLost, match="try 2"):
            await asked
        with pytest.raises(PoisonRequest):
            await client.run(ExecuteProgram("hang", {}))
