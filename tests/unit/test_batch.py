"""Many inputs at once, and a pool program as a module of DSPy."""

from __future__ import annotations

import asyncio
import copy
from contextlib import asynccontextmanager

import dspy
import pytest

from dspool.blocking import BlockingClient
from dspool.config import PoolConfig
from dspool.errors import ProgramError
from dspool.messages import ExecuteProgram, Result
from dspool.pool import Pool

USAGE = {"m": {"total_tokens": 7}}


class Upper(Pool):
    """Answers a question in capitals; refuses to answer `bad`."""

    config = PoolConfig(name="t", max_queue=10)

    def __init__(self) -> None:
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def run(self, command: ExecuteProgram, *, timeout_s: float | None = None) -> Result:
        self.loops.add(asyncio.get_running_loop())
        question = command.inputs["question"]
        if question == "bad":
            raise ProgramError("no")
        return Result("op", value={"outputs": {"answer": str(question).upper()}}, usage=USAGE)

    async def close(self) -> None:
        pass


@asynccontextmanager
async def opened():
    yield Upper()


@pytest.fixture
def blocking():
    with BlockingClient(opened()) as pool:
        yield pool


def asked(*questions):
    return [{"question": question} for question in questions]


async def test_errors_stand_in_the_places_of_their_results_and_the_others_go_on():
    outcomes = await Upper().map("p", asked("a", "bad", "b"), return_errors=True)
    assert [type(outcome) for outcome in outcomes] == [Result, ProgramError, Result]
    assert outcomes[2].answer == "B"


async def test_progress_is_shown_on_stderr_and_nowhere_else(capsys):
    await Upper().map("program-p", asked("a", "bad"), return_errors=True, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "program-p" in err
    assert "2/2" in err


async def test_a_module_is_awaited_in_the_loop_of_its_pool():
    module = Upper().as_module("p")
    assert (await module.acall(question="a")).answer == "A"


async def test_a_call_that_would_stop_the_loop_is_refused_and_says_what_to_do():
    module = Upper().as_module("p")
    with pytest.raises(RuntimeError, match=r"to_thread"):
        module(question="a")
    assert (await asyncio.to_thread(module, question="a")).answer == "A"


def test_a_module_of_a_blocking_pool_works_in_every_thread_and_loop_on_the_loop_of_the_pool(blocking):
    module = blocking.as_module("p")
    assert module(question="a").answer == "A"
    assert asyncio.run(module.acall(question="b")).answer == "B"
    assert len(blocking.pool.loops) == 1


def test_dspy_evaluates_a_pool_program(blocking):
    examples = [
        dspy.Example(question=q, answer=q.upper()).with_inputs("question") for q in ("a", "b", "bad", "c")
    ]
    evaluate = dspy.Evaluate(
        devset=examples, metric=lambda example, got, trace=None: example.answer == got.answer, num_threads=4
    )
    result = evaluate(blocking.as_module("p"))
    assert result.score == 75.0


def test_tokens_of_the_pool_are_a_predictions_usage_also_where_dspy_tracks(blocking):
    module = blocking.as_module("p")
    assert module(question="a").get_lm_usage() == USAGE
    with dspy.context(track_usage=True):
        assert module(question="a").get_lm_usage() == USAGE


def test_a_copy_of_a_module_asks_the_same_pool(blocking):
    assert copy.deepcopy(blocking.as_module("p"))(question="a").answer == "A"
