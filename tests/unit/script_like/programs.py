"""Programs that configure nothing."""

from typing import Any

import dspy


class Answers(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.answer(question=question)


class Reports(dspy.Module):
    """Says under which settings it runs."""

    def forward(self, question: str) -> Any:
        s = dspy.settings
        retrieved = dspy.Retrieve(k=2)(question).passages if s.rm else []
        return dspy.Prediction(
            lm=s.lm.model,
            adapter=type(s.adapter).__name__,
            max_errors=s.max_errors,
            num_threads=s.num_threads,
            style=s.get("house_style", ""),
            keeps_history=not s.disable_history,
            trace=len(s.trace or ()),
            callbacks=len(s.callbacks),
            retrieved=len(retrieved),
        )
