"""OpenInference's way, which Langfuse and Phoenix use too: an instrumentor and a tracer provider."""

import dspy
from dspy.utils import DummyLM
from openinference.instrumentation.dspy import DSPyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
DSPyInstrumentor().instrument(tracer_provider=provider)
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
    found: dict[int, list[str]] = {}
    for span in reversed(spans.get_finished_spans()):
        found.setdefault(span.context.trace_id, []).append(span.name)
    return list(found.values())
