"""Programs that behave in every way that a pool has an answer to. Local pools and real ones run them alike."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import dspy


class Answer(dspy.Module):
    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self.answer = dspy.Predict("context, question -> answer")
        self.prefix = prefix

    async def aforward(self, context: str, question: str) -> dspy.Prediction:
        found = await self.answer.acall(context=context, question=question)
        return dspy.Prediction(answer=self.prefix + found.answer)


class Blocking(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.ChainOfThought("context, question -> answer")

    def forward(self, context: str, question: str) -> dspy.Prediction:
        return self.answer(context=context, question=question)


class Odd(dspy.Module):
    """Does what `how` says."""

    async def aforward(self, how: str) -> Any:
        if how == "value error":
            raise ValueError("order 4711 has no line items")
        if how == "key error":
            raise KeyError("PINECONE_API_KEY")
        if how == "exit":
            sys.exit(3)
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "wait":
            await asyncio.sleep(60)
        if how == "nap":
            await asyncio.sleep(0.3)
        if how == "number":
            return 42
        if how == "object":
            return dspy.Prediction(answer=object())
        if how == "nothing":
            return None
        return dspy.Prediction(how=how)


class Slow(dspy.Module):
    """Blocks the thread that it runs in."""

    def forward(self, seconds: float) -> dspy.Prediction:
        time.sleep(seconds)
        return dspy.Prediction(seconds=seconds)


class Broken(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        raise RuntimeError("the index is not there")
