"""Language models that do not answer, behind a real HTTP profile: typed errors, and a pool that goes on."""

from __future__ import annotations

import asyncio
import socket

import pytest
import ray
from harness import QUESTION, full

from dspool.errors import ModelAuthFailed, ModelError, ModelRateLimited, ModelUnreachable
from dspool.runtime.cluster import NAMESPACE, actor_name
from dspool.testing.lm_server import LMServer, Reply

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


KINDS = ("prompt_tokens", "completion_tokens")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_faults_of_a_model_are_typed_and_the_pool_goes_on(start_pool):
    def reader(profile):
        return {"spec": {"signature": "context, question -> answer", "lm": profile}, "idempotent": False}

    with LMServer() as server, LMServer(api_key="right") as locked:
        profile = {"model": "openai/gpt-4o-mini", "timeout_s": 5, "max_rate_limit_wait_s": 0.1}
        pool = await start_pool(
            pool_size=1,
            lm_profiles={
                "good": {**profile, "endpoint": server.url},
                "locked": {**profile, "endpoint": locked.url},
                "nobody": {**profile, "endpoint": f"http://127.0.0.1:{unused_port()}/v1"},
            },
            default_lm="good",
            programs={name: reader(name) for name in ("good", "locked", "nobody")},
        )
        await full(pool, 1)
        result = await pool.execute("good", **QUESTION)
        assert (result.answer, result.offline) == ("Paris", False)
        assert result.usage["openai/gpt-4o-mini"]["total_tokens"] > 0
        with pytest.raises(ModelUnreachable):
            await pool.execute("nobody", **QUESTION)
        with pytest.raises(ModelAuthFailed) as refused:
            await pool.execute("locked", **QUESTION)
        assert refused.value.status == 401
        server.script(Reply(status=500))
        with pytest.raises(ModelError) as failed:
            await pool.execute("good", **QUESTION)
        assert failed.value.status == 500
        session = pool.session("chooser")
        await session.create_program("p", "context, question -> answer")
        await session.configure_lm("nobody")
        with pytest.raises(ModelUnreachable):
            await session.execute("p", **QUESTION)
        await session.configure_lm("good")
        assert (await session.execute("p", **QUESTION)).answer == "Paris"
        server.script(Reply(status=429, retry_after_s=7))
        with pytest.raises(ModelRateLimited) as limited:
            await pool.execute("good", **QUESTION)
        assert limited.value.retry_after_s == 7
        assert (await pool.status()).state == "ready"


async def test_workers_share_answers_and_go_on_without_them(start_pool):
    with LMServer(latency_s=0.5) as server:
        pool = await start_pool(
            pool_size=2,
            slots_per_worker=4,
            lm_profiles={"test": {"model": "openai/gpt-4o-mini", "endpoint": server.url}},
            prices={"test": {"input_usd_per_mtok": 1e6, "output_usd_per_mtok": 1e6}},
            programs={"good": {"spec": {"signature": "context, question -> answer"}}},
            cache={"scope": "pool"},
            metrics_flush_interval_s=0.1,
            metrics_interval_s=0.2,
            history={"fine_interval_s": 0.2, "coarse_interval_s": 2.0},
        )
        await full(pool, 2)
        done = await asyncio.gather(*(pool.execute("good", **QUESTION) for _ in range(8)))
        assert {one.answer for one in done} == {"Paris"}
        assert len({one.worker for one in done}) == 2
        assert server.requests == 1
        assert sorted(one.cached for one in done) == [False] + [True] * 7
        (paid,) = (one for one in done if not one.cached)
        assert paid.cost_usd == sum(paid.usage["openai/gpt-4o-mini"][kind] for kind in KINDS)
        assert all(one.cost_usd is None and one.usage == {} for one in done if one.cached)

        def is_all(seen):
            return seen.model_calls.get("hits") == 7 and seen.counters.cost_usd

        async with asyncio.timeout(60):
            # Workers report the calls of models, clients report what they cost: either may come first.
            while not is_all(seen := await pool.metrics_snapshot()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert seen.model_calls["misses"] == 1
        assert seen.counters.cost_usd == paid.cost_usd
        ray.kill(ray.get_actor(actor_name(pool.name, "answers"), namespace=NAMESPACE), no_restart=True)
        async with asyncio.timeout(60):
            # Until the kill has taken effect.
            while (await pool.execute("good", **QUESTION)).cached:
                pass
        asked = server.requests
        for _ in range(2):
            assert (await pool.execute("good", **QUESTION)).answer == "Paris"
        assert server.requests == asked + 2
