"""The corrections of DSPy's native engine, on DSPy as it is installed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from queue import Queue

import dspy
import pytest
from dspy._vendor.lm15 import compat
from dspy._vendor.lm15.compat import OpenAIChatCompat
from dspy._vendor.lm15.providers import openai_chat
from dspy._vendor.lm15.transports import _async, _sync
from dspy._vendor.lm15.transports._url import parse_url
from dspy._vendor.lm15.types import StreamDeltaEvent, TextDelta
from dspy.clients import backend_selection, capabilities, costs, execution, model_metadata
from dspy.clients.engines import lm15_engine
from dspy.clients.engines.lm15_engine import AsyncLM15Engine
from dspy.clients.engines.streaming import ListenerBridge
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.lm15 import RouterConfig
from dspy.streaming import streaming_listener

import dspool.programs.settings  # noqa: F401 - corrects contexts when imported
from dspool.config import LMProfile
from dspool.corrections.dspy_calls import (
    TokenQueue,
    choosing_once,
    remembering,
    routing_once,
    taking_free_slots,
)
from dspool.programs.adapters import adapter_named
from dspool.programs.models.lm import LMs
from dspool.testing.lm_server import LMServer


def test_a_model_is_looked_up_once_and_each_caller_has_its_own_answer():
    asked = []

    def look_up(provider, model, *, namespaces=None):
        asked.append((provider, model, namespaces))
        return {"price": 1}

    model_info = remembering(look_up)
    first = model_info("openai", "mine")
    first["price"] = 2
    assert model_info("openai", "mine") == {"price": 1}
    assert model_info("openai", "mine", namespaces=["a"]) == {"price": 1}
    assert asked == [("openai", "mine", None), ("openai", "mine", ("a",))]


def test_dspy_asks_the_one_that_remembers_and_hears_the_same():
    import dspool.programs.models.lm  # noqa: F401 - changes it when imported

    for asker in (costs, capabilities):
        assert asker.model_info.__wrapped__ is model_metadata.model_info
    for model in ("gpt-4o-mini", "no-such-model"):
        assert costs.model_info("openai", model) == model_metadata.model_info("openai", model)


def native_lm(**more):
    profile = LMProfile(model="openai/mine", endpoint="http://127.0.0.1:1/v1", **more)
    return LMs({"mine": profile}, None).get("mine")


def test_the_engine_of_an_lm_is_chosen_once_until_something_that_decides_it_changes():
    asked = []

    def select_backend(lm, options=None):
        asked.append((lm.model, options))
        return backend_selection.select_backend(lm, options)

    select, lm = choosing_once(select_backend), native_lm()
    del lm._dspool_backend  # chosen when it was built
    first = select(lm)
    first.clients["api_key"] = "changed by a caller"
    assert select(lm, {"temperature": 1}) == backend_selection.select_backend(lm)
    assert len(asked) == 1
    other = {"api_base": "http://127.0.0.1:2/v1"}
    assert select(lm, other) == backend_selection.select_backend(lm, other)
    assert select(lm, other).clients["api_base"] == other["api_base"]
    assert len(asked) == 2
    lm.model = "openai/other"
    assert select(lm).resolution.model == "other"
    lm.kwargs["timeout"] = 7
    assert select(lm).clients["timeout"] == 7
    assert len(asked) == 4


def test_the_engine_of_an_lm_that_may_use_two_is_chosen_each_time(monkeypatch):
    lm = dspy.LM("openai/gpt-4o-mini", api_key="k", engine="auto")
    assert execution.select_backend(lm).native
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:1/v1")
    assert not execution.select_backend(lm).native


def test_dspy_asks_the_one_that_remembers_where_a_call_goes():
    for asker in (execution, capabilities):
        assert asker.select_backend.__wrapped__ is backend_selection.select_backend
    lm = native_lm()
    assert capabilities.resolve(lm) == capabilities.resolve.__wrapped__(lm)
    assert capabilities.resolve(lm) is capabilities.resolve(native_lm())
    for asker in (_async, _sync):
        assert asker.proxy_route_for.__wrapped__.__name__ == "proxy_route_for"


def test_the_environment_is_asked_for_a_proxy_once_a_host():
    asked = []
    route = routing_once(lambda parsed, *, proxy, trust_env: asked.append(parsed.host) or parsed.host)
    for url in ("http://a/v1", "http://a/v2", "http://b/v1", "http://a/v1"):
        parsed = parse_url(url)
        assert route(parsed, proxy=None, trust_env=True) == parsed.host
    assert asked == ["a", "b"]


async def test_a_free_connection_is_taken_without_waiting_and_the_last_one_is_waited_for():
    pool = _async._AsyncConnectionPool(1)
    before = len(asyncio.all_tasks())
    step = taking_free_slots(_async._AsyncConnectionPool.acquire_slot.__wrapped__)(pool, 5.0)
    with pytest.raises(StopIteration):
        step.send(None)
    assert len(asyncio.all_tasks()) == before
    waiting = asyncio.create_task(pool.acquire_slot(5.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    pool.release_slot()
    await waiting


ALL_AT_ONCE = """
import asyncio
from dspool.messages import Deployment, ExecuteProgram
from dspool.config import PoolConfig
from dspool.programs.sessions.host import SessionHost
import sys

async def main():
    host = SessionHost(PoolConfig(
        slots_per_worker=130, lm_profiles={"m": {"model": "openai/m", "endpoint": sys.argv[1], "engine": "lm15"}}))
    host.deploy(Deployment("p", 1, spec={"signature": "question -> answer"}))
    await asyncio.gather(*(host.run_async(ExecuteProgram("p", {"question": "?"}), None) for _ in range(130)))

asyncio.run(main())
"""


def test_as_many_calls_run_at_once_as_there_are_slots():
    # A process of its own: the bound is one for all LMs of a process, and only ever raised.
    with LMServer(latency_s=3.0) as server:
        process = subprocess.Popen([sys.executable, "-c", ALL_AT_ONCE, server.url], env=os.environ)
        most = 0
        while process.poll() is None:
            most = max(most, server.running)
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
    assert process.returncode == 0
    assert most == 130


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
@pytest.mark.parametrize(
    ("numbers", "written"),
    [
        ([1, 2.5], "[2] «2.5»"),
        ([None], "«null»"),
        ([True, {"a": 1}, [3]], '[2] «{"a": 1}»'),
        (["text", 4], "[1] «text»"),
    ],
)
def test_a_list_that_is_not_all_text_is_written_into_a_prompt_where_its_field_says_no_type(
    adapter, numbers, written
):
    messages = adapter_named(adapter).format(dspy.Signature("numbers -> total"), [], {"numbers": numbers})
    assert written in str(messages[-1]["content"])


# --- settings ---


def test_in_a_context_the_settings_around_it_hold_with_its_changes_and_after_it_as_before():
    assert not hasattr(dspy.context, "__wrapped__"), "the correction is not on"
    before = dspy.settings.get("max_errors")
    with dspy.context(max_errors=1, of_outer=1):
        with dspy.context(max_errors=2):
            assert (dspy.settings.max_errors, dspy.settings.of_outer) == (2, 1)
        with pytest.raises(KeyError), dspy.context(max_errors=3):
            raise KeyError("out of it")
        assert dspy.settings.max_errors == 1
    assert dspy.settings.get("max_errors") == before
    assert "of_outer" not in dspy.settings


def test_a_context_takes_what_is_set_when_its_block_begins_and_changes_nothing_around_it():
    with dspy.context(of_outer=1):
        later = dspy.context(of_inner=2)
        with dspy.context(of_outer=3), later:
            thread_local_overrides.get()["of_inner"] = 4
            assert (dspy.settings.of_outer, dspy.settings.of_inner) == (3, 4)
        assert dspy.settings.of_outer == 1
        assert "of_inner" not in dspy.settings


def test_a_context_decorates_a_function_which_may_call_itself():
    @dspy.context(depth=1)
    def count(left: int) -> int:
        assert dspy.settings.depth == 1
        return 1 + count(left - 1) if left else 0

    assert count(3) == 3
    assert "depth" not in dspy.settings


async def test_tasks_that_run_side_by_side_each_have_the_context_that_they_entered():
    async def seen(number: int) -> int:
        with dspy.context(number=number):
            await asyncio.sleep(0)
            return dspy.settings.number

    assert await asyncio.gather(*map(seen, range(8))) == list(range(8))


def test_a_model_is_routed_once_by_each_engine_and_one_that_names_its_provider_each_time():
    class Named(str):
        provider = "anthropic"

    engine = AsyncLM15Engine(RouterConfig(api_keys={"openai-chat": "k"}))
    first = engine.resolve("openai/mine")
    assert (first.provider, first.model) == ("openai-chat", "mine")
    assert engine.resolve("openai/mine") is first
    assert AsyncLM15Engine().resolve("openai/mine") is not first
    assert engine.resolve(Named("openai:mine")).provider == "anthropic"
    assert engine.resolve("openai:mine").provider == "openai"


def test_what_is_worked_out_once_is_what_dspy_works_out():
    for name in ("openai", "groq", "deepseek"):
        partial = OpenAIChatCompat.preset(name)
        resolved = openai_chat.resolve_openai_chat_compat(partial)
        assert resolved is openai_chat.resolve_openai_chat_compat(partial)
        assert resolved == compat.resolve_openai_chat_compat(partial)
    assert execution.timeouts_for(3) == execution.timeouts_for(3.0) == lm15_engine.timeouts_for(3)
    assert execution.timeouts_for(None) is None
    for bad in (0, True, "3"):
        with pytest.raises((TypeError, ValueError)):
            execution.timeouts_for(bad)


def test_what_stands_in_dspys_place_costs_the_same():
    response = dspy.lm15.Response(
        id="1",
        model="gpt-4o-mini",
        message=dspy.lm15.Message(role="assistant", parts=(dspy.lm15.TextPart(text="x"),)),
        finish_reason="stop",
        usage=dspy.lm15.Usage(input_tokens=200_000, output_tokens=10, total_tokens=200_010),
    )
    found = costs.estimate_cost(response, provider="openai", requested_model="gpt-4o-mini")
    assert found[0] == pytest.approx(200_000 * 0.15e-6 + 10 * 0.6e-6)
    assert found == costs.estimate_cost(response, provider="openai", requested_model="gpt-4o-mini")


@pytest.mark.parametrize("kind", [Queue, TokenQueue])
def test_a_listener_gives_the_same_tokens_with_either_queue(monkeypatch, kind):
    monkeypatch.setattr(streaming_listener, "Queue", kind)
    text = "[[ ## answer ## ]]\nRome is big, and so is Paris.\n\n[[ ## completed ## ]]"
    listener = dspy.streaming.StreamListener(
        "answer", predict=dspy.Predict("question -> answer"), predict_name="p"
    )
    heard = []
    with dspy.context(adapter=dspy.ChatAdapter()):
        for at in range(0, len(text), 5):
            chunk = ListenerBridge("m").chunk(
                StreamDeltaEvent(delta=TextDelta(text=text[at : at + 5], part_index=0))
            )
            heard.append(listener.receive(chunk))
        heard.append(listener.finalize())
    assert "".join(one.chunk for one in heard if one) == "Rome is big, and so is Paris."
