"""What answers cost: tokens of every kind counted, priced by the configuration's table, summed up, and 0 for nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dspool.config import ModelPrice, PoolConfig
from dspool.core.metrics.tally import MAX_MODELS, OTHER, Tally, add_usage
from dspool.errors import ConfigError
from dspool.messages import Deployment, ExecuteProgram, Result, StreamEvent, StreamProgram
from dspool.programs.models.prices import cost_usd
from dspool.programs.sessions.host import CommandResult, SessionHost
from dspool.testing.lm_server import LMServer, Reply

ASKED = {"question": "Rome is big. What is big?"}
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 500,
    "total_tokens": 1500,
    "prompt_tokens_details": {"cached_tokens": 600},
    "completion_tokens_details": {"reasoning_tokens": 300},
}
PRICE = {
    "input_usd_per_mtok": 2.0,
    "output_usd_per_mtok": 8.0,
    "cached_input_usd_per_mtok": 0.5,
    "reasoning_usd_per_mtok": 10.0,
}
COST = (400 * 2.0 + 600 * 0.5 + 200 * 8.0 + 300 * 10.0) / 1e6


@pytest.fixture(scope="module")
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


def host_of(server: LMServer, engine: str = "auto", **prices: Any) -> SessionHost:
    profile = {"model": "openai/test", "endpoint": server.url, "engine": engine}
    config = PoolConfig(
        lm_profiles={"test": profile},
        prices={name.replace("__", "/"): price for name, price in prices.items()},
        allowed_imports=("calling_programs",),
    )
    host = SessionHost(config)
    host.deploy(Deployment("ask", 1, spec={"signature": "question -> answer"}))
    own = {"import_path": "calling_programs:OwnLM", "kwargs": {"url": server.url}}
    host.deploy(Deployment("own", 1, **own))
    host.deploy(Deployment("two", 1, import_path="calling_programs:InTasks", spec={"lm": "test"}))
    return host


async def ran(host: SessionHost, program: str = "ask", way: str = "execute") -> CommandResult:
    async def emit(event: StreamEvent) -> None:
        pass

    command = (StreamProgram if way == "stream" else ExecuteProgram)(program, ASKED)
    if host.plan(command, None) == "thread":
        return host.run_thread(command, None)
    return await host.run_async(command, None, emit if way == "stream" else None)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
@pytest.mark.parametrize("way", ["execute", "stream"])
async def test_cached_and_reasoning_tokens_are_kept_and_priced(server: LMServer, way: str, engine: str):
    if engine == "litellm":
        pytest.importorskip("litellm")
    server.script(Reply(usage=USAGE))
    (counts,) = (await ran(host_of(server, engine, test=PRICE), way=way)).usage.values()
    wanted = {"prompt_tokens": 1000, "completion_tokens": 500, "cached_tokens": 600, "reasoning_tokens": 300}
    assert {key: counts[key] for key in wanted} == wanted
    assert counts["cost_usd"] == pytest.approx(COST)


async def test_a_price_is_by_profile_or_by_model_and_the_profile_s_comes_first(server: LMServer):
    dear = {"input_usd_per_mtok": 1000.0, "output_usd_per_mtok": 1000.0}
    for prices, cost in (
        ({"openai__test": PRICE}, COST),
        ({"openai__test": dear, "test": PRICE}, COST),
        ({"openai__else": dear}, None),
        ({}, None),
    ):
        server.script(Reply(usage=USAGE))
        (counts,) = (await ran(host_of(server, **prices))).usage.values()
        assert counts.get("cost_usd") == (cost and pytest.approx(cost))


async def test_a_model_of_the_program_s_own_is_priced_by_its_name(server: LMServer):
    server.script(Reply(usage=USAGE))
    (counts,) = (await ran(host_of(server, openai__own=PRICE), "own")).usage.values()
    assert counts["cost_usd"] == pytest.approx(COST)


async def test_the_costs_of_several_calls_add_up(server: LMServer):
    server.script(Reply(usage=USAGE), Reply(usage=USAGE))
    (counts,) = (await ran(host_of(server, test=PRICE), "two")).usage.values()
    assert counts["cost_usd"] == pytest.approx(2 * COST)
    assert counts["cached_tokens"] == 1200


def test_what_has_no_price_of_its_own_costs_as_the_rest():
    price = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2)
    counts = {"prompt_tokens": 10, "cached_tokens": 4, "cache_creation_tokens": 3, "completion_tokens": 5}
    assert cost_usd(price, counts) == pytest.approx((10 * 1 + 5 * 2) / 1e6)
    dear = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=0, cache_write_usd_per_mtok=5)
    assert cost_usd(dear, counts) == pytest.approx((7 + 15) / 1e6)
    assert cost_usd(price, {"prompt_tokens": 3, "cached_tokens": 9}) == pytest.approx(9 / 1e6)
    assert cost_usd(price, {"prompt_tokens": None, "completion_tokens": "x", "cached_tokens": -1}) == 0


def test_a_result_tells_the_sum():
    assert Result("1", usage={"a": {"cost_usd": 0.5}, "b": {"cost_usd": 0.25}, "c": {}}).cost_usd == 0.75
    assert Result("1", usage={"a": {"total_tokens": 1}}).cost_usd is None


def test_costs_add_up_by_model_and_stay_bounded():
    tally = Tally()
    for number in range(MAX_MODELS + 5):
        add_usage(tally, {f"m{number}": {"prompt_tokens": 1, "cached_tokens": 1, "cost_usd": 0.5}})
    whole = Tally()
    whole.add(tally)
    whole.add(tally)
    assert whole.cost_usd == MAX_MODELS + 5
    assert len(whole.costs_usd) == MAX_MODELS + 1
    assert whole.costs_usd[OTHER] == 5
    assert whole.cached_tokens == 2 * (MAX_MODELS + 5)


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({"a/b": {"input_usd_per_mtok": -1, "output_usd_per_mtok": 1}}, "=-1"),
        ({"a/b": {"input_usd_per_mtok": True, "output_usd_per_mtok": 1}}, "not true or false"),
        ({"a/b": {"input_usd_per_mtok": 1e7, "output_usd_per_mtok": 1}}, "10000000"),
        ({"a/b": {"input_usd_per_mtok": float("nan"), "output_usd_per_mtok": 1}}, "nan"),
        ({"a/b": {"input_usd_per_mtok": 1}}, "output_usd_per_mtok"),
        ({"a/b": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1, "usd": 1}}, "no such key"),
        ({"nobody": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}}, "neither a model"),
    ],
)
def test_an_odd_price_is_refused_with_its_place(prices: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said) as error:
        PoolConfig(prices=prices)
    assert str(error.value).startswith("prices.")
