"""MLflow's own way: at module level."""

import os

import dspy
import mlflow
from dspy.utils import DummyLM

mlflow.set_tracking_uri(os.environ["TRACKING_URI"])
mlflow.set_experiment("DSPy")
mlflow.dspy.autolog()
dspy.configure(lm=DummyLM([{"reasoning": "known", "answer": "Rome"}] * 100))


class Answers(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.ChainOfThought("question -> answer")

    def forward(self, question):
        return self.answer(question=question)


class Later(Answers):
    async def aforward(self, question):
        return await self.answer.acall(question=question)


class InParallel(Answers):
    def forward(self, question):
        example = dspy.Example(question=question).with_inputs("question")
        return dspy.Parallel(num_threads=2, disable_progress_bar=True)([(self.answer, example)] * 2)[0]


def traces() -> list[list[str]]:
    """The names of the spans of each trace, the root first."""
    mlflow.flush_trace_async_logging()
    return [[span.name for span in trace.data.spans] for trace in mlflow.search_traces(return_type="list")]
