"""What one principal may keep, and what happens to those who want more; the store counts, in its transaction."""

from __future__ import annotations

import asyncio

import pytest

from dspool.config import PoolConfig
from dspool.core.admission.quotas import MB, ROW_BYTES, Quotas, size_of
from dspool.errors import ConfigError, PayloadTooLarge, QuotaExceeded
from dspool.messages import Change, StorageLimits
from dspool.telemetry import events
from dspool.telemetry.event_log import LIMITS, EventLog
from dspool.telemetry.refusals import Refusals
from tests.security.limited_stores import (
    BIG,
    assert_counted_right,
    claim,
    claim_and_settle,
    first_refusal,
    limited,
    put,
    quotas_of_config,
    usage_of,
)

# --- sizes ---


async def test_a_session_does_not_grow_beyond_its_bound_and_keeps_what_it_had(opened, pool):
    store = await opened(quotas_of_config())
    lease = await store.acquire(pool, "s", "w", create=True, principal="ada")
    kept, refused = await first_refusal(
        store.commit(pool, "s", "w", lease.epoch, [Change("variable", f"v{number}", BIG)], principal="ada")
        for number in range(150)
    )
    assert kept == 31
    assert isinstance(refused, PayloadTooLarge)
    assert refused.details == {"limit": "max_session_mb", "most": 32.0}
    lease = await store.acquire(pool, "s", "w", create=False, principal="ada")
    assert len(lease.items) == kept
    assert lease.size < 32 * MB


async def test_many_sessions_each_below_its_bound_do_not_pass_the_bound_of_their_principal(opened, pool):
    store = await opened(limited(max_session_mb=2, max_stored_mb=5))
    _, refused = await first_refusal(put(store, pool, f"s{number}", "v", BIG) for number in range(1000))
    assert refused.details == {"limit": "max_stored_mb", "most": 5, "scope": "principal"}
    assert (await usage_of(store, pool)).stored_mb < 5
    await put(store, pool, "t", "v", BIG, principal="bob")  # another's bound is another's


async def test_sessions_are_counted_and_ending_one_gives_its_place_back_at_once(opened, pool):
    store = await opened(limited(max_sessions=2))
    await store.create(pool, "a", principal="ada")
    await store.acquire(pool, "b", "w", create=True, principal="ada")
    for create in (
        store.create(pool, "c", principal="ada"),
        store.acquire(pool, "c", "w", create=True, principal="ada"),
    ):
        with pytest.raises(QuotaExceeded, match="max_sessions"):
            await create
    await store.create(pool, "of-bob", principal="bob")
    assert await store.end(pool, "a", principal="ada")
    await store.create(pool, "c", principal="ada")


async def test_deleting_gives_room_back_at_once(opened, pool):
    store = await opened(limited(max_stored_mb=2.5))
    await put(store, pool, "a", "v", BIG)
    await put(store, pool, "b", "v", BIG)
    with pytest.raises(QuotaExceeded):
        await put(store, pool, "b", "w", BIG)
    await put(store, pool, "a", "v", None)
    await put(store, pool, "b", "w", BIG)
    await store.end(pool, "b", principal="ada")
    assert (await usage_of(store, pool)).stored_mb * MB == ROW_BYTES


async def test_replacing_a_value_counts_the_difference_only(opened, pool):
    store = await opened(limited(max_session_mb=1.5))
    for _ in range(4):
        await put(store, pool, "s", "v", BIG)
    await put(store, pool, "s", "v", "small")
    assert (await usage_of(store, pool)).stored_mb < 0.01


async def test_whoever_is_over_a_bound_that_was_lowered_may_still_delete(opened, pool):
    first = await opened()
    await put(first, pool, "s", "v", BIG)
    await put(first, pool, "s", "w", BIG)
    second = await opened(limited(max_session_mb=0.5, max_stored_mb=0.5, max_sessions=1))
    with pytest.raises(PayloadTooLarge):
        await put(second, pool, "s", "x", 1)
    await put(second, pool, "s", "v", None)
    await put(second, pool, "s", "w", "small")


async def test_what_expires_gives_room_back(opened, pool):
    now = [1000.0]
    store = await opened(limited(max_sessions=1), clock=lambda: now[0])
    await put(store, pool, "old", "v", BIG)
    now[0] += 100
    assert await store.expire(pool, 50) == [("old", "w")]
    assert await usage_of(store, pool) is None
    await put(store, pool, "new", "v", 1)
    await assert_counted_right(store, pool)


async def test_small_text_that_python_turns_into_much_memory_counts_for_that(opened, pool):
    """`[[],[],...]` takes twenty times its text in a worker."""
    store = await opened(limited(max_session_mb=8))
    with pytest.raises(PayloadTooLarge):
        await put(store, pool, "s", "v", [[]] * 300_000)
    assert size_of("[" + ",".join(["[]"] * 1000) + "]") > 1000 * 56


async def test_a_race_does_not_pass_a_bound(opened, pool):
    stores = [await opened(limited(max_sessions=5)), await opened(limited(max_sessions=5))]
    ends = await asyncio.gather(
        *(stores[n % 2].create(pool, f"s{n}", principal="ada") for n in range(40)), return_exceptions=True
    )
    assert sum(not isinstance(end, QuotaExceeded) for end in ends) == 5
    assert (await usage_of(stores[0], pool)).sessions == 5


# --- who has no principal, and everybody together ---


async def test_without_a_principal_the_bounds_of_the_pool_hold(opened, pool):
    store = await opened(Quotas(principal=StorageLimits(max_sessions=1), sessions=3, stored_mb=2.5))
    for number in range(2):
        await put(store, pool, f"s{number}", "v", BIG, principal=None)
    with pytest.raises(QuotaExceeded) as full:
        await put(store, pool, "s0", "w", BIG, principal=None)
    assert (full.value.limit, full.value.scope) == ("max_pool_stored_mb", "pool")
    await store.create(pool, "of-ada", principal="ada")
    with pytest.raises(QuotaExceeded) as many:
        await store.create(pool, "more")
    assert (many.value.limit, many.value.scope) == ("max_pool_sessions", "pool")
    total, principals = await store.usage(pool)
    assert (total.sessions, [row.principal for row in principals]) == (3, ["ada"])


async def test_pools_that_share_a_database_are_counted_apart(opened, pool):
    store = await opened(limited(max_sessions=1))
    await store.create(pool, "s", principal="ada")
    await store.create(f"{pool}-2", "s", principal="ada")


async def test_a_token_may_say_more_or_less_than_the_configuration(opened, pool):
    store = await opened(limited(max_sessions=2, max_session_mb=1))
    more = StorageLimits(max_sessions=4, max_session_mb=3)
    for number in range(4):
        await put(store, pool, f"s{number}", "v", "x" * int(1.5 * MB), limits=more)
    with pytest.raises(QuotaExceeded):
        await store.create(pool, "s4", principal="ada", limits=more)
    with pytest.raises(QuotaExceeded):
        await store.create(pool, "s", principal="bob", limits=StorageLimits(max_sessions=0))
    # An admin's own limits do not count for another's session.
    lease = await store.acquire(pool, "s0", "w", create=False)
    change = Change("variable", "w", BIG)
    with pytest.raises(PayloadTooLarge):
        await store.commit(pool, "s0", "w", lease.epoch, [change], principal="root", limits=more)


# --- kept answers ---


async def test_kept_answers_do_not_grow_beyond_the_bound_of_their_principal(opened, pool):
    now = [1000.0]
    store = await opened(limited(max_answers_mb=2), clock=lambda: now[0])
    _, refused = await first_refusal(claim_and_settle(store, pool, f"k{number}") for number in range(100))
    assert refused.limit == "max_answers_mb"
    # The last answer may pass the bound: its work was done.
    assert 2 < (await usage_of(store, pool)).answers_mb < 2.6
    assert (await claim(store, pool, "k0")).outcome == "done"  # what is kept still answers
    assert (await claim(store, pool, "k", principal="bob")).outcome == "new"
    await assert_counted_right(store, pool)
    now[0] += 101
    assert (await claim(store, pool, "later")).outcome == "new"
    assert (await usage_of(store, pool)).answers_mb < 0.01


async def test_a_claim_that_is_given_up_gives_its_room_back_and_empty_answers_are_not_free(opened, pool):
    store = await opened(limited(max_answers_mb=ROW_BYTES * 3 / MB))
    await claim(store, pool, "a")
    await claim(store, pool, "b")
    with pytest.raises(QuotaExceeded):
        await claim(store, pool, "c")
    await store.drop_key(pool, "a", principal="ada", holder="a")
    assert (await claim(store, pool, "c")).outcome == "new"


# --- seen from outside ---


async def test_refusals_are_counted_by_limit_and_do_not_flood_the_events():
    log, told = EventLog("p"), asyncio.Event()

    def listen(event, measurements, metadata):
        log(event, measurements, metadata)
        if len(log.after()) == 2:
            told.set()

    events.attach(listen, ("limit.refused",))
    refusals = Refusals("p", every_s=0.0)
    for _ in range(500):
        refusals.count("max_sessions")
    refusals.count("rate_per_s")
    await asyncio.wait_for(told.wait(), 60)
    events.detach(listen)
    assert log.refusals == {"max_sessions": 500, "rate_per_s": 1}
    assert len(log.after()) == 2


async def test_every_refusal_of_the_store_is_counted_under_a_known_limit(opened, pool):
    counted = []
    store = await opened(limited(max_sessions=1, max_session_mb=0.1), refused=counted.append)
    await store.create(pool, "a", principal="ada")
    for what in (store.create(pool, "b", principal="ada"), put(store, pool, "a", "v", BIG)):
        with pytest.raises((QuotaExceeded, PayloadTooLarge)):
            await what
    assert counted == ["max_sessions", "max_session_mb"]
    assert set(counted) < set(LIMITS)


def test_a_session_may_not_be_larger_than_what_its_principal_may_keep():
    with pytest.raises(ConfigError, match="max_stored_mb"):
        PoolConfig(limits={"max_session_mb": 64, "max_stored_mb": 32})
