"""A pool in the process of a test and one on a Ray cluster come to the same results and errors, call by call."""

from __future__ import annotations

import pytest
from harness import PATIENCE_S

from dspool import Pool, PoolConfig
from dspool.testing import local_pool
from tests import pool_calls

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


async def test_a_local_pool_gives_what_a_real_one_gives(cluster, tmp_path):
    patient = {**pool_calls.CONFIG, "init_timeout_s": PATIENCE_S}
    async with Pool.start(PoolConfig(name="table", state_dir=tmp_path, **patient)) as pool:
        real = await pool_calls.outcomes(pool)
    async with local_pool(name="table", **patient) as pool:
        local = await pool_calls.outcomes(pool)
    assert len(real) == len(pool_calls.TABLE)
    assert {name: local[name] for name in real if local[name] != real[name]} == {}
