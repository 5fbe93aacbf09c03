"""Stores with limits: what principals put into them, and whether what was counted is what there is."""

from __future__ import annotations

import os

from dspool.config import PoolConfig
from dspool.core.admission.quotas import MB, Quotas
from dspool.errors import PayloadTooLarge, QuotaExceeded
from dspool.messages import Change, StorageLimits
from dspool.store.idempotency import KeptAnswer
from dspool.store.usage import count_anew

POSTGRES = os.environ.get("DSPOOL_TEST_POSTGRES_URL")
BIG = "x" * MB
ANSWER = KeptAnswer(200, "application/json", [], b"x" * (MB // 2))


def quotas_of_config(**limits):
    from dspool.store.settings import quotas_of

    return quotas_of(PoolConfig(limits=limits))


def limited(**limits):
    return Quotas(principal=StorageLimits(**limits))


async def put(store, pool, session, name, value, principal="ada", **more):
    lease = await store.acquire(pool, session, "w", create=True, principal=principal, **more)
    changes = [Change("variable", name, None if value is None else {"value": value})]
    return await store.commit(pool, session, "w", lease.epoch, changes, principal=principal, **more)


async def usage_of(store, pool, principal="ada"):
    _, rows = await store.usage(pool)
    return next((row for row in rows if row.principal == principal), None)


async def first_refusal(attempts):
    """How many succeeded before the first that was refused, and why that was."""
    done, refused = 0, None
    for attempt in attempts:
        if refused is not None:
            attempt.close()
            continue
        try:
            await attempt
            done += 1
        except (QuotaExceeded, PayloadTooLarge) as error:
            refused = error
    assert refused is not None
    return done, refused


async def assert_counted_right(store, pool):
    """What was counted step by step is what a count of everything finds."""
    before = await store.usage(pool)
    async with store._engine.begin() as connection:
        await connection.run_sync(count_anew)
    assert await store.usage(pool) == before


def claim(store, pool, key, principal="ada", **more):
    return store.claim_key(
        pool, key, principal=principal, fingerprint="f", holder=key, patience_s=10, keep_s=100, **more
    )


async def claim_and_settle(store, pool, key):
    await claim(store, pool, key)
    await store.settle_key(pool, key, principal="ada", holder=key, answer=ANSWER)
