"""The tutorials' programs in the pool of a test: their own models are not called, the script answers in their place."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from cases import CASES
from tutor import KEY, answered

from dspool.local.pool import LocalPool
from dspool.messages import Result, StreamProgram
from dspool.testing import ScriptedLM, local_pool

pytestmark = pytest.mark.asyncio(loop_scope="module")

# It holds its second model itself and calls it directly.
NAMES = [name for name in CASES if name != "papillon"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[LocalPool]:
    with pytest.MonkeyPatch.context() as patched:
        # Nobody listens there.
        patched.setenv("MODEL_URL", "http://127.0.0.1:9/v1")
        patched.setenv("MODEL_KEY", KEY)
        programs = {name: f"tutorials.{CASES[name].path}" for name in NAMES}
        async with local_pool(
            programs, lm=ScriptedLM(lambda call: answered(call.system, call.prompt))
        ) as pool:
            yield pool


@pytest.mark.parametrize("name", NAMES)
async def test_it_answers_from_the_script(pool: LocalPool, name: str):
    case = CASES[name]
    result = await pool.execute(name, **case.inputs)
    if name != "captions":  # the script has no picture before it
        assert case.holds(result.outputs), result.outputs


@pytest.mark.parametrize("name", NAMES)
async def test_it_streams_from_the_script(pool: LocalPool, name: str):
    case = CASES[name]
    *events, last = [event async for event in pool.stream(StreamProgram(name, case.inputs))]
    assert isinstance(last, Result)
    assert case.streams == "" or case.streams in {event.field for event in events if event.kind == "token"}
