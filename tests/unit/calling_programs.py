"""Programs that call models in every way that DSPy and Python offer, for tests to name by import path."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy

embedded: list[list[str]] = []


def embed(texts: list[str]) -> list[list[float]]:
    embedded.append(list(texts))
    return [[float(len(text)), 1.0] for text in texts]


class Asking(dspy.Module):
    """The base of those below: one predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def examples(self, question: str) -> list[tuple[Any, Any]]:
        one = dspy.Example(question=question).with_inputs("question")
        two = dspy.Example(question=f"{question} Again?").with_inputs("question")
        return [(self.answer, one), (self.answer, two)]


class Plain(Asking):
    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.answer(question=question).answer)


class InParallel(Asking):
    def forward(self, question: str) -> Any:
        found = dspy.Parallel(num_threads=2, disable_progress_bar=True)(self.examples(question))
        return dspy.Prediction(answer=found[0].answer)


class InParallelWithinParallel(Asking):
    def forward(self, question: str) -> Any:
        inner = InParallel()
        example = dspy.Example(question=question).with_inputs("question")
        found = dspy.Parallel(num_threads=2, disable_progress_bar=True)([(inner, example)])
        return dspy.Prediction(answer=found[0].answer)


class InBatch(Asking):
    def forward(self, question: str) -> Any:
        found = self.answer.batch([example for _, example in self.examples(question)], num_threads=2)
        return dspy.Prediction(answer=found[0].answer)


class Tracked(Asking):
    """It counts tokens for itself, and calls in threads meanwhile."""

    def forward(self, question: str) -> Any:
        with dspy.track_usage():
            self.answer(question=question)
            found = dspy.Parallel(num_threads=2, disable_progress_bar=True)(self.examples(question)[:1])
        return dspy.Prediction(answer=found[0].answer)


class Untracked(Asking):
    """It puts a tracker of its own in place."""

    def forward(self, question: str) -> Any:
        with dspy.context(usage_tracker=dspy.utils.usage_tracker.UsageTracker()):
            self.answer(question=f"{question} First?")
            return dspy.Prediction(answer=self.answer(question=question).answer)


class Asyncified(Asking):
    async def aforward(self, question: str) -> Any:
        found = await asyncio.gather(*(dspy.asyncify(self.answer)(question=q) for q in (question, "Again?")))
        return dspy.Prediction(answer=found[0].answer)


class InTasks(Asking):
    async def aforward(self, question: str) -> Any:
        found = await asyncio.gather(*(self.answer.acall(question=q) for q in (question, "Again?")))
        return dspy.Prediction(answer=found[0].answer)


class ToThread(Asking):
    async def aforward(self, question: str) -> Any:
        found = [await asyncio.to_thread(self.answer, question=q) for q in (question, "Again?")]
        return dspy.Prediction(answer=found[0].answer)


class Nested(Asking):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.BestOfN(self.answer, N=2, reward_fn=lambda inputs, found: 0.0, threshold=1.0)

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.inner(question=question).answer)


class OwnThread(Asking):
    """A thread of its own, into which it takes the model and nothing else."""

    def forward(self, question: str) -> Any:
        lm, found = dspy.settings.lm, []

        def ask() -> None:
            with dspy.context(lm=lm):
                found.append(self.answer(question=question).answer)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return dspy.Prediction(answer=found[0])


class OwnPool(Asking):
    def forward(self, question: str) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return dspy.Prediction(answer=pool.submit(self.answer, question=question).result().answer)


class CachesAnyway(Asking):
    """It wants every answer cached."""

    def forward(self, question: str) -> Any:
        with dspy.context(lm=dspy.settings.lm.copy(cache=True)):
            return dspy.Prediction(answer=self.answer(question=question).answer)


class ChoosesRollouts(Asking):
    """It gives its calls rollout ids of its own."""

    def forward(self, question: str) -> Any:
        found = self.answer(question=question, config={"rollout_id": 7, "temperature": 1.0})
        return dspy.Prediction(answer=found.answer)


class OwnLM(Asking):
    """It brings a model of its own."""

    def __init__(self, url: str, rollout: int | None = None) -> None:
        super().__init__()
        more = {} if rollout is None else {"rollout_id": rollout, "temperature": 1.0}
        self.own = dspy.LM("openai/own", api_base=url, api_key="none", num_retries=0, **more)

    def forward(self, question: str) -> Any:
        with dspy.context(lm=self.own):
            return dspy.Prediction(answer=self.answer(question=question).answer)


class Embedding(Asking):
    def __init__(self) -> None:
        super().__init__()
        self.embedder = dspy.Embedder(embed)

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=str(self.embedder(question).tolist()))


class Refusing(dspy.Module):
    """It quotes what it was given when it fails."""

    def forward(self, question: str) -> Any:
        raise ValueError(f"cannot answer {question}")


class RefusingInParallel(dspy.Module):
    def forward(self, question: str) -> Any:
        example = dspy.Example(question=question).with_inputs("question")
        dspy.Parallel(num_threads=2, disable_progress_bar=True)([(Refusing(), example)] * 2)
        return dspy.Prediction(answer="done")


class BringsLM(Asking):
    """It gives its predictor a model of its own."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.answer.set_lm(
            dspy.LM("openai/brought", api_base=url, api_key="none", num_retries=0, cache=False)
        )

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.answer(question=question).answer)
