"""Language models that do not answer, behind a real HTTP profile: typed errors, and a pool that goes on."""

from __future__ import annotations

import socket

import pytest
from harness import QUESTION, full

from dspool.errors import ModelAuthFailed, ModelError, ModelRateLimited, ModelUnreachable
from dspool.testing.lm_server import LMServer, Reply

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


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
