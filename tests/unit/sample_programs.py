"""Programs, tools and rewards that the tests name by import path."""

from __future__ import annotations

from typing import Any

import dspy

calls: list[str] = []


class Shout(dspy.Module):
    def __init__(self, mark: str = "!") -> None:
        super().__init__()
        self.mark = mark
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.answer(question=question).answer.upper() + self.mark)


class AsyncShout(Shout):
    async def aforward(self, question: str) -> Any:
        found = await self.answer.acall(question=question)
        return dspy.Prediction(answer=found.answer.upper() + self.mark)


class Failing(dspy.Module):
    def forward(self, **inputs: Any) -> Any:
        raise ValueError(f"secret {inputs}")


class Odd(dspy.Module):
    def forward(self, **inputs: Any) -> Any:
        return dspy.Prediction(answer=object())


finished = Shout("?")


def not_a_program() -> int:
    return 3


def longest(inputs: dict[str, Any], prediction: Any) -> float:
    calls.append(prediction.answer)
    return float(len(prediction.answer))


def never_good(inputs: dict[str, Any], prediction: Any) -> float:
    calls.append(prediction.answer)
    return 0.0


def broken_reward(inputs: dict[str, Any], prediction: Any) -> float:
    raise RuntimeError(f"secret {prediction.answer}")


def lookup(word: str) -> str:
    """Look a word up."""
    return f"{word} is a word"


async def lookup_later(word: str) -> str:
    """Look a word up, asynchronously."""
    return f"{word} is a word"
