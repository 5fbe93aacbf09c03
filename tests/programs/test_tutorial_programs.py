"""Programs after DSPy's public tutorials are served, streamed and evaluated as they are, without a change for dspool.

They configure DSPy where their tutorial does, with a model and a key of their own; a real HTTP server answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import dspy
import pytest
import pytest_asyncio
from cases import CASES
from tutor import KEY, server

from dspool import Pool, PoolConfig
from dspool.messages import GetProgramInfo, Result, StreamEvent, StreamProgram
from dspool.testing.lm_server import LMServer

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture(scope="module")
def model(model_port: int) -> Iterator[LMServer]:
    with server(model_port) as model:
        yield model


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pool(
    cluster: str, model: LMServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pool]:
    config = PoolConfig(
        name="tutorials",
        pool_size=1,
        state_dir=tmp_path_factory.mktemp("tutorials"),
        allowed_imports=("tutorials", "operator_code"),
        preload=("tutorials.multi_hop",),
        setup="operator_code:setup",
        programs={name: {"import_path": f"tutorials.{case.path}"} for name, case in CASES.items()},
        init_timeout_s=120.0,
    )
    async with Pool.start(config) as pool:
        yield pool


@pytest.mark.parametrize("name", CASES)
async def test_it_is_served_by_its_own_model(pool: Pool, name: str):
    case = CASES[name]
    result = await pool.execute(name, **case.inputs)
    assert case.holds(result.outputs), result.outputs
    assert result.offline is False
    assert all(counts["total_tokens"] > 0 for counts in result.usage.values())
    assert result.usage


@pytest.mark.parametrize("name", CASES)
async def test_it_is_streamed(pool: Pool, name: str):
    case = CASES[name]
    *events, last = [event async for event in pool.stream(StreamProgram(name, case.inputs))]
    assert isinstance(last, Result)
    assert case.holds(last.outputs), last.outputs
    assert {event.field for event in events if event.kind == "field"} == set(last.outputs)
    tokens = [event.field for event in events if isinstance(event, StreamEvent) and event.kind == "token"]
    assert case.streams == "" or case.streams in tokens


@pytest.mark.parametrize("name", CASES)
async def test_it_is_evaluated_through_the_pool(pool: Pool, name: str):
    case = CASES[name]
    examples = [dspy.Example(**case.inputs).with_inputs(*case.inputs)] * 3
    evaluate = dspy.Evaluate(
        devset=examples,
        metric=lambda example, found, trace=None: bool(case.holds(dict(found))),
        num_threads=3,
        display_progress=False,
    )
    scored = await asyncio.to_thread(evaluate, pool.as_module(name))
    assert scored.score == 100.0


async def test_each_program_says_what_its_code_configured(pool: Pool):
    names = ("retrieval", "later", "classification")
    configured = {name: (await pool.run(GetProgramInfo(name))).value["configured"] for name in names}
    assert configured == {
        "retrieval": ["lm"],
        "later": ["async_max_workers", "lm"],
        "classification": ["adapter", "lm"],
    }


async def test_a_callback_of_setup_hears_every_program_of_the_worker(pool: Pool, notes: Path):
    (file,) = await asyncio.to_thread(lambda: list(notes.glob("*.heard")))
    heard: dict[str, list[str]] = {}
    for name in ("airline", "later", "papillon"):
        before = len(file.read_text().splitlines())
        await pool.execute(name, **CASES[name].inputs)
        heard[name] = file.read_text().splitlines()[before:]
    assert heard["airline"].count("model openai/gpt-4o-mini") == 4
    assert {"tool fetch_flight_info", "tool book_flight", "tool finish"} <= set(heard["airline"])
    assert heard["later"][0] == "module Summaries"
    assert heard["papillon"].count("model openai/llama-3.2-3b") == 2
    assert heard["papillon"].count("model openai/gpt-4o-mini") == 1


async def test_the_programs_key_is_in_no_file_of_the_pool(pool: Pool):
    assert await asyncio.to_thread(files_with, KEY, Path(pool.config.state_dir)) == []


def files_with(text: str, place: Path) -> list[Path]:
    files = [file for file in place.rglob("*") if file.is_file()]
    assert files
    return [file for file in files if text.encode() in file.read_bytes()]
