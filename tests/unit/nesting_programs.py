"""Programs made of DSPy's own programs, as its tutorials put them together."""

from __future__ import annotations

from typing import Any

import dspy
from calling_programs import Asking
from dspy.primitives.local_interpreter import LocalInterpreter

dspy.configure(interpreter_factory=LocalInterpreter, num_threads=2)


def never_good(inputs: Any, prediction: Any) -> float:
    return 0.0


def double(n: int) -> int:
    """Twice the number."""
    return 2 * n


async def weather(city: str) -> str:
    """The weather in a city, as the tools of an MCP server answer: later."""
    return f"weather: {city} is sunny"


class Refined(Asking):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.Refine(self.answer, N=2, reward_fn=never_good, threshold=1.0)

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.inner(question=question).answer)


class Best(Asking):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.BestOfN(self.answer, N=3, reward_fn=never_good, threshold=1.0)

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.inner(question=question).answer)


class Compared(Asking):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")
        self.compare = dspy.MultiChainComparison("question -> answer", M=2)

    def forward(self, question: str) -> Any:
        chains = [self.think(question=question, config={"rollout_id": n, "temperature": 1.0}) for n in (1, 2)]
        return dspy.Prediction(answer=self.compare(chains, question=question).answer)


class _Later(Asking):
    async def aforward(self, question: str) -> Any:
        return await self.answer.acall(question=question)


class Syncified(Asking):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.syncify(_Later(), in_place=False)

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.inner(question=question).answer)


class Evaluated(Asking):
    """It asks itself how good it is."""

    def forward(self, question: str) -> Any:
        examples = [example for _, example in self.examples(question)]
        evaluate = dspy.Evaluate(devset=examples, metric=lambda example, found: 1.0, display_progress=False)
        return dspy.Prediction(answer=str(evaluate(self.answer).score))


class Copied(Asking):
    """It asks the same model at another temperature, and one predictor has a copy of its own."""

    def forward(self, question: str) -> Any:
        with dspy.context(lm=dspy.settings.lm.copy(temperature=0.7)):
            self.answer(question=question)
        second = dspy.Predict("question -> answer")
        second.set_lm(dspy.settings.lm.copy(max_tokens=99))
        return dspy.Prediction(answer=second(question=question).answer)


class TracksItself(Asking):
    """It counts its own tokens twice, one within the other."""

    def forward(self, question: str) -> Any:
        with dspy.track_usage() as outer:
            self.answer(question=question)
            with dspy.track_usage() as inner:
                self.answer(question=f"{question} Again?")
        counts = [sum(m["total_tokens"] for m in t.get_total_tokens().values()) for t in (outer, inner)]
        return dspy.Prediction(answer="counted", outer=counts[0], inner=counts[1])


class Acted(Asking):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.CodeAct("question -> answer", tools=[double], max_iters=2)

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.inner(question=question).answer)


class Thought(Asking):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.ProgramOfThought("question -> answer")

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.inner(question=question).answer)


class Recursive(Asking):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.RLM("question -> answer", max_iters=2)

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.inner(question=question).answer)


recursive = dspy.RLM("question -> answer", max_iters=2)


class Agent(Asking):
    """Its tool is async."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.ReAct("question -> answer", tools=[weather], max_iters=2)

    async def aforward(self, question: str) -> Any:
        found = await self.inner.acall(question=question)
        return dspy.Prediction(answer=found.answer, seen=found.trajectory.get("observation_0", ""))


class BlockingAgent(Asking):
    """The same, called as the tutorials of plain functions do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.ReAct("question -> answer", tools=[weather], max_iters=2)

    def forward(self, question: str) -> Any:
        found = self.inner(question=question)
        return dspy.Prediction(answer=found.answer, seen=found.trajectory.get("observation_0", ""))
